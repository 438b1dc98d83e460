"""Address and options of the brokers, for source, sink and admin."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from consumers.errors import OptionRefused, SourceUnavailable
from weighting.constraints import Positive, check

#: Options that the guarantee depends on; they cannot be overridden.
GUARDED = (
    "acks",
    "allow_auto_create_topics",
    "auto_offset_reset",
    "bootstrap_servers",
    "check_crcs",
    "enable_auto_commit",
    "enable_idempotence",
    "group_id",
    "isolation_level",
    "key_deserializer",
    "key_serializer",
    "value_deserializer",
    "value_serializer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Address of the brokers and options of the client library."""

    bootstrap_servers: Annotated[
        str, Meta(description="host:port, several separated by commas.")
    ] = "localhost:9092"
    options: Annotated[
        Mapping[str, Any], Meta(description="Handed to kafka-python unchanged; may hold secrets.")
    ] = field(default_factory=dict, repr=False)
    connect_timeout_seconds: Annotated[
        Positive, Meta(description="Longest wait for a first connection.")
    ] = 10.0

    def __post_init__(self) -> None:
        """Check every field, and that no option overrides what the guarantee depends on.

        Raises:
            OptionRefused: names the option.
        """
        check(self, "kafka")
        for key in GUARDED:
            if key in self.options:
                raise OptionRefused(key, self.options[key])

    def options_for(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a client which takes `known` is given."""
        return {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "bootstrap_timeout_ms": int(self.connect_timeout_seconds * 1000),
            **{key: value for key, value in self.options.items() if key in known},
        }

    def reach(self) -> None:
        """Open and close one connection to any of the brokers.

        A client that cannot bootstrap never closes its thread and sockets.

        Raises:
            SourceUnavailable: none of them answers.
        """
        if self.options.get("proxy_url") or self.options.get("socks5_proxy"):
            return
        servers = [server.strip() for server in self.bootstrap_servers.split(",")]
        causes = []
        for server in servers:
            host, _, port = server.rpartition(":")
            try:
                socket.create_connection(
                    (host.strip("[]"), int(port)),
                    timeout=self.connect_timeout_seconds / len(servers),
                ).close()
            except (OSError, ValueError) as error:
                causes.append(f"{server}: {error}")
            else:
                return
        raise SourceUnavailable(
            self.bootstrap_servers, self.connect_timeout_seconds, "; ".join(causes)
        )
