"""Exit codes of the program, and of an error that ends it."""

from __future__ import annotations

OK = 0
FAILED = 1  #: a check failed
USAGE = 2
UNSAFE = 3  #: refused; nothing was written
TRY_AGAIN = 75  #: fenced, stalled or unreachable: start it again
INTERRUPTED = 130


def exit_code(error: Exception) -> int | None:
    """Return the exit code that the class of an error declares."""
    code: int | None = getattr(error, "exit_code", None)
    return code
