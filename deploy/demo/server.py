"""Questions of the demo to its server: readiness, version, and the ranking of every query."""

from __future__ import annotations

import http.client
import json
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.demo.judge import Array
from deploy.demo.traffic import rerank
from deploy.demo.world import Query, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Answer of the server about one query's n products.

    Attributes:
        score: (n,) a number that ranks them.
        p_click: (n,) the probability of a click.
    """

    score: Array
    p_click: Array


class Server:
    """The server on a port of this machine."""

    def __init__(self, port: int) -> None:
        """Keep the port."""
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        """Return whether a version is served."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def info(self) -> dict[str, Any]:
        """Return the answer of `/info`."""
        with urllib.request.urlopen(f"{self.url}/info", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def rankings(self, world: World) -> dict[str, Ranking]:
        """Return the ranking of every query, by its text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        found = {query.text: _ranking(connection, query) for query in world.queries}
        connection.close()
        return found


def _ranking(connection: http.client.HTTPConnection, query: Query) -> Ranking:
    order = [row["index"] for row in rerank(connection, query)["results"]]
    score = np.zeros(len(order))
    score[order] = -np.arange(len(order), dtype=np.float64)
    instances = [
        {"query": query.text, "document": {"id": p.id, "text": p.text, **p.attributes}}
        for p in query.products
    ]
    body, headers = json.dumps({"instances": instances}), {"content-type": "application/json"}
    connection.request("POST", "/v1/score", body, headers)
    predictions = json.load(connection.getresponse())["predictions"]
    return Ranking(score=score, p_click=np.array([row["p"]["click"] for row in predictions]))
