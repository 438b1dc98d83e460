"""Errors of serving: each class names its HTTP status, its `error_type`, and whether to try again.

ServingError
├── Invalid            400 validation  a field is wrong: names it
├── Empty              400 empty       nothing to score
├── NotFound           404 not_found   no such model here: names the known ones
├── TooLarge           413 validation  more documents than the limits allow
├── BodyTooLarge       413 validation  more bytes than the limits allow
├── NotJson            415 validation  another content type than JSON
├── BackendFailed      424 backend     the model failed, or its answer is not usable
├── Overloaded         429 overloaded  more work waits than callers do; try again
├── ClientGone         499 gone        the caller hung up; nobody reads the answer
├── NotReady           503 unhealthy   no model yet, or draining; try again
├── DeadlinePassed     504 timeout     no answer in time; try again
└── Refused            (no status)     a version is not fit to serve: names the check
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class ServingError(Exception):
    """Root of the tree: a message for an operator, and its form in HTTP."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "internal"
    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    retry_after_seconds: int | None = None


class Invalid(ServingError):
    """A request that does not have the documented shape."""

    status, error_type = 400, "validation"


class Empty(ServingError):
    """A request with nothing to score."""

    status, error_type = 400, "empty"

    def __init__(self, field: str) -> None:
        """Name the `field` that must not be empty."""
        super().__init__(f"Expected at least one item - at `$.{field}`")


class NotFound(ServingError):
    """A model that this process does not hold."""

    status, error_type = 404, "not_found"

    def __init__(self, model: str, known: Iterable[str]) -> None:
        """Name the `model` that was asked for, and the `known` ones."""
        super().__init__(f"model {model[:100]!r} is not served here. Known: {', '.join(known)}")


class TooLarge(ServingError):
    """More than the limits allow in one request."""

    status, error_type = 413, "validation"

    def __init__(self, field: str, got: int, most: int) -> None:
        """Name the `field`, its length and the longest allowed; "" is the whole body."""
        where = f"items, got {got} - at `$.{field}`" if field else f"values, got {got} - at `$`"
        problem = f"Expected at most {most} {where}"
        super().__init__(f"{problem}. Send them in several requests")


class BodyTooLarge(ServingError):
    """A body with more bytes than the limits allow."""

    status, error_type = 413, "validation"

    def __init__(self, most: int) -> None:
        """Name the largest number of bytes allowed."""
        super().__init__(f"Expected a body of at most {most} bytes. Send several requests")


class NotJson(ServingError):
    """A body that does not say that it is JSON."""

    status, error_type = 415, "validation"

    def __init__(self, content_type: str) -> None:
        """Quote the `Content-Type` that was sent."""
        super().__init__(f"Content-Type: got {content_type!r}, expected 'application/json'")


class BackendFailed(ServingError):
    """The model raised, or answered with something that is no score."""

    status, error_type = 424, "backend"

    def __init__(self, version: str, cause: Exception) -> None:
        """Name the `version` that failed; the message of `cause` stays in the log."""
        problem = f"model {version} could not score this request ({type(cause).__name__})"
        super().__init__(f"{problem}; the log has the reason")


class Overloaded(ServingError):
    """More work waits than can be done while callers wait."""

    status, error_type, retriable = 429, "overloaded", True
    exit_code = 75

    def __init__(self, wait_seconds: float, retry_after_seconds: int) -> None:
        """Report for how long there is work, in seconds, and when to come back."""
        problem = f"the work that waits here takes about {wait_seconds:.2g} s"
        super().__init__(f"{problem}. Try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class ClientGone(ServingError):
    """The caller closed the connection before its answer; the status is nginx's."""

    status, error_type = 499, "gone"

    def __init__(self) -> None:
        """Compose the message, for logs."""
        super().__init__("the caller hung up before its answer")


class NotReady(ServingError):
    """Nothing can be scored now: no model yet, or this process is going away."""

    status, error_type, retriable = 503, "unhealthy", True
    exit_code = 75

    def __init__(self, reason: str, retry_after_seconds: int = 1) -> None:
        """Give the `reason` and when to come back."""
        super().__init__(f"{reason}. Try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassed(ServingError):
    """The answer did not come in time."""

    status, error_type, retriable = 504, "timeout", True
    exit_code = 75

    def __init__(self, deadline_seconds: float, retry_after_seconds: int) -> None:
        """Name the deadline and when to come back."""
        problem = f"no answer within the deadline of {deadline_seconds} s"
        super().__init__(f"{problem}. Send fewer documents, or try in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Refused(ServingError):
    """A version that is not fit to serve; never part of an HTTP answer."""

    def __init__(self, check: str, reason: str) -> None:
        """Name the `check` that it failed and the `reason`."""
        super().__init__(f"{check}: {reason}")
        self.check = check
