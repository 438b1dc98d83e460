"""Rate limits: parsed from `100/s`, and kept by a throttle."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from deploy.errors import UsageError

_CREDIT_SECONDS = 0.1  # a sleep ends late; a longer pause is not made up for


def parse(text: str | None, option: str) -> float | None:
    """Return the number per second of `100/s`, None of None.

    Raises:
        UsageError: it is not a rate; names the option.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)/s", text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{option}: got {text!r}, expected a number a second, such as 100/s")
    return float(match[1])


class Throttle:
    """Limits a rate; after a pause, at most a tenth of a second's worth passes at once."""

    def __init__(
        self,
        per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the rate (None: no limit), a clock and a sleep; the first one passes at once."""
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._due: float | None = None

    def wait(self) -> None:
        """Wait until the next one may pass."""
        if self._per_second is None:
            return
        now = self._clock()
        due = now if self._due is None else max(self._due, now - _CREDIT_SECONDS)
        self._sleep(max(0.0, due - now))
        self._due = due + 1 / self._per_second
