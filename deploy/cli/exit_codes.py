"""Exit codes of the program, and of an error that ends it."""

from __future__ import annotations

import errno
import os

from deploy.errors import UsageError
from learner.extras import EXTRA_OF, not_installed

_REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
}

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


def missing_extra(error: Exception) -> UsageError | None:
    """Return the error of a package that its extra would bring, None for other errors."""
    package = error.name if isinstance(error, ModuleNotFoundError) else None
    if package is None or package not in EXTRA_OF:
        return None
    return UsageError(not_installed("this command", package))


def refusal_of_system(error: Exception) -> str | None:
    """Return one line on what the system refused, None where the error is one of the program.

    A full disk, a file that may not be written or too many open files can end any command; which
    line of the program met it tells an operator nothing.
    """
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    where = error.filename or "a file, or the output"
    return (
        f"{where}: {os.strerror(error.errno)}. Check free space (also of TMPDIR), mode and limits, "
        "then start it again."
    )
