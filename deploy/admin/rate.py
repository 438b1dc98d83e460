"""At most so many a second: how that is written, and how it is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from deploy.errors import UsageError

_CREDIT_SECONDS = 0.1  # a sleep ends late; what a longer pause left unused is not made up for


def parse(text: str | None, option: str) -> float | None:
    """Return how many a second `100/s` is, None of None.

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
    """Lets so many pass a second, and after a pause of any length at most a tenth of that at once."""

    def __init__(
        self,
        per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the rate, None for none, and what time is told and waited by; the first one passes at once."""
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
