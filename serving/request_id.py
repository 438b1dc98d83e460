"""Request ids: the client's `X-Request-Id` if well formed, else a new one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

_WELL_FORMED = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_id() -> str:
    """Return a random id of 128 bits, in hexadecimal."""
    return secrets.token_hex(16)


def request_id(sent: str, new_id: Callable[[], str] = new_id) -> str:
    """Return the id that was sent, or a new one if it must not be repeated in an answer.

    >>> request_id("order-7", lambda: "new")
    'order-7'
    >>> request_id("a b", lambda: "new")
    'new'
    """
    return sent if _WELL_FORMED.fullmatch(sent) else new_id()
