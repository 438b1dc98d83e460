"""Options that several commands share, declared once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import typer

from deploy.errors import StoreAbsent, UsageError

if TYPE_CHECKING:
    from deploy.process.terminal import Output
    from deploy.settings.tree import Settings
    from learner.artifact import Store

Command: TypeAlias = Callable[..., None]

#: Names to pass to `takes`.
JSON = ("as_json",)
SETTINGS = ("config", "sets")
KAFKA = (*SETTINGS, "bootstrap_servers")

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; needed without a terminal.")]
Execute = Annotated[
    bool, typer.Option("--execute/--dry-run", help="Carry the plan out, or only show it.")
]
Export = Annotated[
    bool, typer.Option("--export", help="Print Kafka's CSV: topic,partition,offset.")
]
Datetime = Annotated[
    str | None, typer.Option("--to-datetime", metavar="TIME", help="ISO 8601; UTC by default.")
]
Duration = Annotated[
    str | None, typer.Option("--by-duration", metavar="P1D", help="Go back this far from now.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Values of the shared options, and the objects that they lead to."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings in YAML; by default $STEELYARD_CONFIG, or ./steelyard.yaml.",
        ),
    ] = None
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set learner.batch_size=64, say; repeatable."
        ),
    ] = None
    bootstrap_servers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Set kafka.bootstrap_servers.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False

    def settings(self) -> Settings:
        """Load the settings.

        Raises:
            UsageError: a --set has no value.
            SettingsError: all that is wrong with the settings.
        """
        from deploy.settings.load import load

        servers = self.bootstrap_servers
        overrides = {"kafka.bootstrap_servers": servers} if servers else {}
        for given in self.sets or ():
            key, equals, text = given.partition("=")
            if not equals:
                raise UsageError("--set: got a text without =, expected KEY=VALUE")
            overrides[key] = text
        return load(self.file(), os.environ, overrides)

    def file(self) -> Path | None:
        """Return the file that the settings are read from, None for defaults."""
        from deploy.settings.load import settings_file

        return settings_file(self.config, os.environ)

    def process_settings(self) -> Settings:
        """Load the settings of a long-running process, set up its logs, and log the sources."""
        settings = self.settings()
        from deploy.process.observability import configure_logging
        from deploy.settings.leaf import secrets_in

        configure_logging(settings.observability, secrets=secrets_in(settings))
        where = {"settings": str(self.file() or "defaults"), "store": str(settings.store.root)}
        logging.getLogger("steelyard").info("settings are read", extra=where)
        return settings

    def told_settings(self) -> Settings:
        """Load the settings of a command, and tell their file and their store on standard error."""
        settings = self.settings()
        typer.echo(f"{self._source()}; store: {settings.store.root}", err=True)
        return settings

    def store_settings(self) -> Settings:
        """Load the settings of a command on the store, as `told_settings`.

        Raises:
            StoreAbsent: there is no store.
        """
        settings = self.told_settings()
        if not settings.store.root.is_dir():
            raise StoreAbsent(settings.store.root, self._source())
        return settings

    def store(self) -> Store:
        """Open the store of the settings, as `store_settings`.

        Raises:
            StoreAbsent: there is none.
        """
        root = self.store_settings().store.root
        from learner.artifact import Store

        return Store(root)

    def _source(self) -> str:
        file = self.file()
        return f"settings: {file}" if file else "settings: defaults, no file"

    def output(self, *, as_json: bool | None = None) -> Output:
        """Return the output of a command; `as_json` overrides the option."""
        from deploy.process.terminal import Output

        return Output(
            write=typer.echo,
            report=functools.partial(typer.echo, err=True),
            as_json=self.as_json if as_json is None else as_json,
            ask=functools.partial(typer.confirm, err=True) if _interactive() else None,
        )

    def command_line(self, command: str) -> str:
        """Return another command line with the same settings."""
        words = ["steelyard", command]
        words += ["--config", str(self.config)] if self.config else []
        words += [word for given in self.sets or () for word in ("--set", given)]
        servers = self.bootstrap_servers
        return shlex.join([*words, "--bootstrap-servers", servers] if servers else words)


def takes(*names: str) -> Callable[[Command], Command]:
    """Add shared options to a command, which receives them as its parameter `options`.

    They are listed where `options` stands among the parameters, --json after all others.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            shared = {name: values.pop(name) for name in names}
            command(options=Options(**shared), **values)

        declared = list(inspect.signature(command, eval_str=True).parameters.values())
        parameters = list(_expanded(declared, names))
        # Typer reads both; `__wrapped__` would lead it back to the parameter `options`.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        del run.__wrapped__
        return run

    return decorate


def _expanded(
    declared: Sequence[inspect.Parameter], names: Sequence[str]
) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(Options, include_extras=True)
    defaults = {entry.name: entry.default for entry in dataclasses.fields(Options)}
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, keyword, default=defaults[name], annotation=hints[name])
        for name in names
    ]
    for parameter in declared:
        if parameter.name == "options":
            yield from (one for one in shared if one.name != "as_json")
        else:
            yield parameter.replace(kind=keyword)
    yield from (one for one in shared if one.name == "as_json")


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
