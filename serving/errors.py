"""What can go wrong while serving, drawn as a tree; each class says its HTTP status, its `error_type` and whether to try again.

ServingError
├── Invalid            400 validation  a field is wrong: names it
├── Empty              400 empty       nothing to score
├── NotFound           404 not_found   no such model here: names the known ones
├── TooLarge           413 validation  more than the limits allow
├── NotJson            415 validation  another content type than JSON
├── BackendFailed      424 backend     the model failed, or its answer is not usable
├── Overloaded         429 overloaded  in-flight limit; try again
├── NotReady           503 unhealthy   no model yet, or draining; try again
├── DeadlinePassed     504 timeout     no answer in time; try again
└── Refused            (no status)     a version is not fit to serve: names the check
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import ClassVar

import msgspec


class ServingError(Exception):
    """Root of the tree: a sentence for a tired person, and how HTTP says it."""

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
        """Say which `model` was asked for, and what can be."""
        super().__init__(f"model {model!r} is not served here. Known: {', '.join(known)}")


class TooLarge(ServingError):
    """More than the limits allow in one request."""

    status, error_type = 413, "validation"

    def __init__(self, field: str, got: int, most: int) -> None:
        """Name the `field`, what it has and the most it may have."""
        super().__init__(
            f"Expected at most {most} items, got {got} - at `$.{field}`. Send them in several requests"
        )


class NotJson(ServingError):
    """A body that does not say that it is JSON."""

    status, error_type = 415, "validation"

    def __init__(self, content_type: str) -> None:
        """Say what the `Content-Type` was."""
        super().__init__(f"Content-Type: got {content_type!r}, expected 'application/json'")


class BackendFailed(ServingError):
    """The model raised, or answered with something that is no score."""

    status, error_type = 424, "backend"

    def __init__(self, version: str, cause: Exception) -> None:
        """Say which `version` failed; the cause's own words stay in the log."""
        super().__init__(
            f"model {version} could not score this request ({type(cause).__name__}); the log has the reason"
        )


class Overloaded(ServingError):
    """As many requests in flight as this process takes."""

    status, error_type, retriable = 429, "overloaded", True
    exit_code = 75

    def __init__(self, in_flight: int, retry_after_seconds: int) -> None:
        """Say how many are `in_flight` and when to come back."""
        super().__init__(
            f"{in_flight} requests are in flight, the most that this process takes. Try again in {retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class NotReady(ServingError):
    """Nothing can be scored now: no model yet, or this process is going away."""

    status, error_type, retriable = 503, "unhealthy", True
    exit_code = 75

    def __init__(self, reason: str, retry_after_seconds: int = 1) -> None:
        """Say the `reason` and when to come back."""
        super().__init__(f"{reason}. Try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassed(ServingError):
    """The answer did not come in time."""

    status, error_type, retriable = 504, "timeout", True
    exit_code = 75

    def __init__(self, deadline_seconds: float) -> None:
        """Say what the deadline was."""
        super().__init__(
            f"no answer within the deadline of {deadline_seconds} s. Send fewer documents, or try again"
        )


class Refused(ServingError):
    """A version that is not fit to serve; never part of an HTTP answer."""

    def __init__(self, check: str, reason: str) -> None:
        """Name the `check` that it failed and the `reason`."""
        super().__init__(f"{check}: {reason}")
        self.check = check


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer that is not a success: RFC 9457, and Text Embeddings Inference's `error` and `error_type`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    error_type: str


def problem(status: int, error_type: str, detail: str, *, instance: str) -> Problem:
    """Return the body for `status`; `instance` names this one occurrence."""
    return Problem(
        type=f"urn:steelyard:error:{error_type}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=instance,
        error=detail,
        error_type=error_type,
    )
