"""Cross-origin requests (CORS): which web pages may call the API from a browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from weighting.constraints import check

#: Headers of an answer that a web page of an allowed origin may read.
EXPOSED_HEADERS = (
    "X-Model-Version",
    "X-Model-Event-Time",
    "X-Request-Id",
    "Server-Timing",
    "Retry-After",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsConfig:
    """Origins that may call the API from a browser."""

    origins: Annotated[
        str,
        Meta(
            description="Origins of web pages that may call the API, separated by commas, such as "
            "https://shop.example; * allows all, empty none."
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "cors")
        for origin in self.allowed:
            scheme, _, rest = origin.partition("://")
            if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
                expected = "origins like https://shop.example without a path, or *"
                raise ValueError(f"cors.origins: got {origin!r}, expected {expected}")

    @property
    def allowed(self) -> list[str]:
        """The origins, one by one."""
        return [origin.strip() for origin in self.origins.split(",") if origin.strip()]

    def answer_headers(self, origin: str | None) -> list[tuple[str, str]]:
        """Return the headers that an answer to a request of `origin` has, in lower case.

        They are those of Starlette's middleware, for answers that it does not see.
        """
        headers = [("vary", "Origin")] if self.allowed else []
        if not headers or origin is None:
            return headers
        headers.append(("access-control-expose-headers", ", ".join(EXPOSED_HEADERS)))
        if "*" in self.allowed or origin in self.allowed:
            allowed = "*" if "*" in self.allowed else origin
            headers.append(("access-control-allow-origin", allowed))
        return headers
