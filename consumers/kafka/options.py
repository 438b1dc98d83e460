"""Address and options of the brokers, for source, sink and admin."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from consumers.errors import OptionRefused, SourceUnavailable
from weighting.constraints import Positive, SettingError, check

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
            SettingError: an address is not of the form host:port.
            OptionRefused: names the option.
        """
        check(self, "kafka")
        if refused := _refused(self.servers):
            raise SettingError(
                "kafka", "bootstrap_servers", self.bootstrap_servers, f"host:port, {refused}", None
            )
        for key in GUARDED:
            if key in self.options:
                raise OptionRefused(key)

    @property
    def servers(self) -> list[str]:
        """The addresses, one by one."""
        return [server.strip() for server in self.bootstrap_servers.split(",")]

    def options_for(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a client which takes `known` is given."""
        return {
            "bootstrap_servers": self.servers,
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
        causes = []
        for server in self.servers:
            host, _, port = server.rpartition(":")
            try:
                socket.create_connection(
                    (host.strip("[]"), int(port)),
                    timeout=self.connect_timeout_seconds / len(self.servers),
                ).close()
            except (OSError, UnicodeError) as error:
                causes.append(f"{server}: {error}")
            else:
                return
        raise SourceUnavailable(
            self.bootstrap_servers, self.connect_timeout_seconds, "; ".join(causes)
        )


_HOST = re.compile(r"\[[0-9a-fA-F:.]+(%\w+)?\]|[^\s:/@\[\],]+")


def _refused(servers: Sequence[str]) -> str:
    """Return what is wrong with the first address that cannot be one; empty if none is."""
    for server in servers:
        host, _, port = server.rpartition(":")
        if not server:
            return "several separated by single commas: one of them is empty"
        if "://" in server:
            return f"without {server.partition('://')[0]}:// before it"
        if ":" not in server or server.endswith("]"):
            return f"such as {server}:9092: {server} has no port"
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            return f"with a port from 1 to 65535: {server} has {port!r}"
        if ":" in host and not host.startswith("["):
            return f"with brackets around an IPv6 address: [{host}]:{port}"
        if not _HOST.fullmatch(host):
            return f"such as localhost:9092: {host!r} is no host name"
    return ""
