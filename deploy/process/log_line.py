"""Lines of the log: of bounded size, without secrets, and none written past it."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from io import TextIOBase
from threading import local
from types import TracebackType
from typing import Any, TextIO

MAX_CHARS = 4_000
"""Characters of one value."""

MAX_LINE_CHARS = 64_000
MAX_FRAMES = 30
_MAX_ITEMS = 100
_MAX_DEPTH = 8
_MIN_SECRET_CHARS = 4  # a shorter one would blank out ordinary words
_MASK = "***"
_USER_IN_URL = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")

_logger = logging.getLogger("stderr")


def bounded(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Cut every value of an event that is too long, with a mark."""
    return {key: _cut(value, 0) for key, value in event.items()}


def _cut(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        kept = list(value.items())[:_MAX_ITEMS]
        return {_short(str(key)): _cut(each, depth + 1) for key, each in kept}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        kept = [_cut(each, depth + 1) for each in value[:_MAX_ITEMS]]
        return kept if len(value) <= _MAX_ITEMS else [*kept, f"... of {len(value)} items"]
    if isinstance(value, tuple) or isinstance(value, BaseException | type):
        return value
    return _short(str(value))


def _short(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:MAX_CHARS]} ... (cut: {len(text)} characters)"


class Finish:
    """Last processor: masks secrets in the line, and bounds the whole of it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Take the values that must not be shown."""
        spellings: set[str] = set()
        for secret in secrets:
            if len(secret) >= _MIN_SECRET_CHARS:
                spellings |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        longest_first = sorted(spellings, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if spellings else None

    def __call__(self, logger: object, method: str, rendered: Any) -> str:
        """Return the line as it is written."""
        line = str(rendered)
        if len(line) > MAX_LINE_CHARS:
            line = _shortened(line)
        if self._secrets is not None:
            line = self._secrets.sub(_MASK, line)
        return _USER_IN_URL.sub(_MASK, line)


def _shortened(line: str) -> str:
    """Return a line within the bound; a JSON object stays one."""
    cut = f"... (cut: {len(line)} characters)"
    if not line.startswith("{"):
        return f"{line[:MAX_LINE_CHARS]} {cut}"
    event = json.loads(line)
    kept = ("event", "level", "logger", "timestamp")
    return json.dumps({**{key: event[key] for key in kept if key in event}, "rest": cut})


class ForeignLines(TextIOBase):
    """Standard error of a process whose log is JSON: what others print becomes records.

    Progress bars that overwrite their line are told by their last state only.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: TextIO) -> None:
        """Stand in for `stream`, whose descriptor it keeps."""
        self.stream = stream
        self._begun = ""
        self._logging = local()

    def write(self, text: str) -> int:
        """Log the lines that are complete."""
        if not isinstance(text, str):
            raise TypeError("text, not bytes")
        if getattr(self._logging, "now", False):  # the log itself failed, and says so here
            return self.stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            said = line.rsplit("\r", 1)[-1].strip()
            if said:
                self._log(said)
        self._begun = self._begun[-MAX_LINE_CHARS:]
        return len(text)

    def _log(self, said: str) -> None:
        self._logging.now = True
        try:
            _logger.warning("%s", said)
        finally:
            self._logging.now = False

    def flush(self) -> None:
        """Do nothing: a line is logged when it ends."""

    def fileno(self) -> int:
        """Return the descriptor of standard error, which child processes inherit."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Return False: it is no terminal."""
        return False


def standard_error() -> TextIO:
    """Return what is under standard error, taken over or not."""
    return sys.stderr.stream if isinstance(sys.stderr, ForeignLines) else sys.stderr


def take_over_standard_error() -> None:
    """Turn all that is printed to standard error, and the error that ends us, into records."""
    if not isinstance(sys.stderr, ForeignLines):
        sys.stderr = ForeignLines(sys.stderr)
        sys.excepthook = _log_end


def log_end(error: Exception, exit_code: int) -> bool:
    """Log the known error that ends the process, where standard error is the log.

    Returns:
        False where it is not, and the caller must tell the error.
    """
    if not isinstance(sys.stderr, ForeignLines):
        return False
    details = {"error": str(error), "exit_code": exit_code}
    logging.getLogger("steelyard").error("the process ends", extra=details)
    return True


def _log_end(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    _logger.critical("ended by %s", kind.__name__, exc_info=(kind, error, traceback))
