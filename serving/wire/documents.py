"""Metrics and documentation: text, an OpenAPI document, and a page that shows it offline."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from serving.service import service_of
from serving.telemetry import CONTENT_TYPE
from serving.wire.http import JsonResponse
from serving.wire.openapi import document, text_route

STATIC = Path(__file__).parents[1] / "static"
#: The page may load from its own origin only; Swagger UI sets style attributes.
PAGE_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


class Files(StaticFiles):
    """Files of a folder; a name that no file can have is not found."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return the full path and the status of a file, None if there is none."""
        try:
            return super().lookup_path(path)
        except (OSError, ValueError):  # too long, or with a null character
            return "", None


async def metrics(request: Request) -> Response:
    """Expose the Prometheus series."""
    return Response(service_of(request).telemetry.exposition(), media_type=CONTENT_TYPE)


async def openapi(request: Request) -> JsonResponse:
    """Describe the routes of this application."""
    return JsonResponse(document(request.app.routes))


async def docs(request: Request) -> FileResponse:
    """Show the description as a page."""
    headers = {"Content-Security-Policy": PAGE_POLICY}
    return FileResponse(STATIC / "docs.html", media_type="text/html", headers=headers)


ROUTES = (
    text_route("/metrics", metrics, "Prometheus series", "Exposition"),
    Route("/openapi.json", openapi),
    Route("/docs", docs),
    Mount("/static", Files(directory=STATIC)),
)
