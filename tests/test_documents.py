"""Checks of the examples in the documents.

Commands exist, settings load, events decode, requests are answered and links lead somewhere.
"""

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from kafka.cli.admin import main_parser
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient
from typer.testing import CliRunner

from consumers.codec import REASONS, decode
from consumers.events import Click, Exposure, ItemUpdate, Kind, Purchase
from consumers.source import Record
from deploy.admin.events import validate
from deploy.cli.app import app
from deploy.process.terminal import Output
from deploy.settings.load import load
from deploy.settings.render import describe
from deploy.settings.tree import Settings
from learner.artifact import Store
from serving.app import ROUTES
from tests.layering import DOORS, INNER_DOORS, modules
from tests.learner.saving import saved
from tests.serving.conftest import Replica

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "BENCHMARKS.md", "LOG.md"),
    *(
        "docs/benchmark.md",
        "docs/compression.md",
        "docs/fit.md",
        "docs/gpu.md",
        "docs/producers.md",
        "docs/replay.md",
        "docs/runbooks.md",
        "docs/tracking.md",
    ),
)
TODAY = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/benchmark.md",
    "docs/compression.md",
    "docs/fit.md",
    "docs/gpu.md",
    "docs/producers.md",
    "docs/replay.md",
    "docs/runbooks.md",
    "docs/tracking.md",
)
"""Pages about how it is now: the names in them must exist."""

TEXT = {page: (ROOT / page).read_text() for page in PAGES}
PRODUCERS = TEXT["docs/producers.md"]
APPENDED_US = 1_800_000_000_000_000
PACKAGES = (*DOORS, "tests", "docs", "examples")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKE = set(re.findall(r"^([a-z-]+):|^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
KEYS = {entry.key for entry in describe(Settings())}


def blocks(page: str, language: str) -> list[str]:
    """Return the text between the fences of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of every command of a page.

    They are in blocks, where one may go over several lines inside quotes, and in the text, where a
    command counts if it has arguments.
    """
    for block in blocks(page, "sh"):
        held = ""
        for line in block.splitlines():
            held = f"{held}\n{line}" if held else line
            try:
                words = shlex.split(held, comments=True)
            except ValueError:  # a quote is still open
                continue
            held = ""
            if words:
                yield words
        assert not held, held
    yield from (
        shlex.split(text)
        for text in spans(page)
        if re.match(r"(steelyard|make|pip install) [^<]*$", text)
    )


def spans(page: str) -> list[str]:
    """Return what is written as code inside the text."""
    return re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    )


def check(words: list[str]) -> None:
    """Raise unless a command could be typed."""
    name, arguments = Path(words[0]).name, words[1:]
    match name:
        case "steelyard":
            check_steelyard(arguments)
        case "make":
            for argument in arguments:
                assert any(argument.partition("=")[0] in known for known in MAKE), words
        case "pip":
            asked = {
                extra
                for extras in re.findall(r"\.\[([a-z,]+)\]", " ".join(arguments))
                for extra in extras.split(",")
            }
            assert asked <= set(EXTRAS), words
        case "kafka-python":
            assert arguments[0] == "admin"
            assert main_parser().parse_args(arguments[1:]).command
        case "python":
            assert arguments[0] == "-m", words
            assert (ROOT / f"{arguments[1].replace('.', '/')}.py").is_file(), words
        case "tensorboard" | "wandb":
            assert name in EXTRAS, words
        case _:
            assert name in ("curl", "python3", "sed", "touch"), words


def check_steelyard(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and not (
        command.invoke_without_command and arguments[0] not in command.commands
    ):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    options = command.make_context("steelyard", arguments).params
    for given in options.get("sets") or ():
        key, _, value = given.partition("=")
        load(None, {}, {key: value})


def kind_of(event: dict[str, object]) -> Kind:
    if "query_response_hit_ids" in event:
        return Kind.EXPOSURE
    return Kind(str(event["action_name"])) if "action_name" in event else Kind.ITEM


def decoded(text: str) -> object:
    kind = kind_of(json.loads(text))
    return decode(
        kind,
        Record(
            topic="t",
            partition=0,
            offset=0,
            timestamp_us=APPENDED_US,
            key=None,
            value=text.encode(),
            headers=(),
        ),
    )


def shape(value: object) -> object:
    """A JSON value with its types instead of its values."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


def series() -> set[str]:
    """Every series, by its name as scraped."""
    registry = CollectorRegistry()
    for file in ROOT.glob("*/telemetry.py"):
        importlib.import_module(f"{file.parent.name}.telemetry").Telemetry(registry)
    return {
        family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        for family in registry.collect()
    }


def slugs(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    fences = re.findall(r"^```(.*)$", TEXT[page], re.MULTILINE)
    assert set(fences[::2]) <= {"sh", "json", "yaml", "python", "text"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_typed(page: str) -> None:
    for words in commands(page):
        check(words)


@pytest.mark.parametrize(
    "wrong",
    [
        "steelyard lern",
        "steelyard learn --nope",
        "steelyard learn --set learner.nope=1",
        "make nothing",
    ],
)
def test_a_command_that_cannot_is_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"nope|lern|nothing"):
        check(shlex.split(wrong))


@pytest.mark.parametrize("page", PAGES)
def test_every_yaml_block_is_a_settings_file(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        file = tmp_path / "steelyard.yaml"
        file.write_text(block)
        assert load(file, {}).origins


@pytest.mark.parametrize("page", ["README.md", "docs/producers.md"])
def test_a_page_shows_one_event_of_each_kind_and_each_can_be_read(page: str) -> None:
    events = [
        block
        for block in blocks(page, "json")
        if re.search(r'"(query_response_hit_ids|action_name|object_id)"', block)
    ]
    assert [type(decoded(event)) for event in events] == [Exposure, Click, Purchase, ItemUpdate]
    reported: list[str] = []
    for event in events:  # copied into a file, as the command sees it
        output = Output(write=reported.append, report=reported.append)
        validate(event.encode().splitlines(), "x.json", output)
    kinds = ("exposure", "click", "purchase", "item")
    assert reported == [f"1 valid (1 {kind}), 0 invalid" for kind in kinds]


def test_every_request_is_answered_in_the_shape_that_is_shown() -> None:
    replica = Replica()
    replica.store.publish(2)
    replica.watcher.poll()
    replica.batcher.start()
    shown = re.findall(
        r"^```sh\n(curl .*?)^```\n+```json\n(.*?)^```$", TEXT["README.md"], re.DOTALL | re.MULTILINE
    )
    assert len(shown) == 3
    with TestClient(replica.app) as client:
        for request, answer in shown:
            _, *words = shlex.split(request)
            (url,) = [word for word in words if word.startswith("localhost:8080/")]
            header, body = words[words.index("-H") + 1], words[words.index("-d") + 1]
            response = client.post(
                url.removeprefix("localhost:8080"), content=body, headers=dict([header.split(": ")])
            )
            assert response.status_code == 200, response.text
            assert shape(response.json()) == shape(json.loads(answer))
            parts = (
                response.json()
                if url.endswith("8080/rerank")
                else response.json()["predictions" if "/v1/score" in url else "results"]
            )
            assert len(parts) == len(re.findall('"index"|"prior"', answer))
    replica.batcher.close()


def test_the_example_of_the_weight_holds() -> None:
    (block,) = blocks("README.md", "python")
    exec(block, {})


def test_a_version_is_gone_back_to_as_the_page_says(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for version in saved(tmp_path, 1, 2):
        store.promote(version)
    (command,) = [
        words
        for words in commands("docs/runbooks.md")
        if words[:3] == ["steelyard", "checkpoints", "rollback"]
    ]
    done = CliRunner().invoke(app, [*command[1:], "--yes", "--set", f"store.root={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert store.aliases() == {
        "pinned": "v000002",
        "champion": "v000002",
        "challenger": None,
        "previous": "v000003",
    }


def test_the_producer_that_is_shown_sets_the_partitioner() -> None:
    (block,) = blocks("docs/producers.md", "python")
    pairs = [
        (key.value, value.value)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
    ]
    assert ("partitioner", "murmur2_random") in pairs


@pytest.mark.parametrize(
    ("name", "kind"),
    [("exposure", Exposure), ("click", Click), ("purchase", Purchase), ("item", ItemUpdate)],
)
def test_the_example_files_can_be_read(name: str, kind: type) -> None:
    assert isinstance(decoded((ROOT / "examples" / f"{name}.json").read_text()), kind)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        assert "://" not in target, target
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.is_file(), target
        assert not anchor or anchor in slugs(str(file.relative_to(ROOT))), target


@pytest.mark.parametrize("page", TODAY)
def test_every_setting_module_and_file_that_is_named_exists(page: str) -> None:
    known = {module.name.removesuffix(".__init__") for module in modules(ROOT)}
    for text in spans(page):
        if re.match(rf"({'|'.join(PACKAGES)})/[\w./*-]*$", text):
            assert list(ROOT.glob(text.rstrip("/"))), text
        elif variable := re.match(r"(STEELYARD_\w+)=(\S+)$", text):
            load(None, {variable[1]: variable[2]})
        elif option := re.match(r"--set ([\w.]+)=(\S+)$", text):
            load(None, {}, {option[1]: option[2]})
        elif setting := re.match(r"([a-z]+\.[a-z_.]+): (\w+)$", text):
            load(None, {}, {setting[1]: setting[2]})
        elif name := re.match(
            r"((?:kafka|join|store|observability|tracking|weighting|consumers|learner|serving|deploy)(?:\.[a-z_]+)+)(?<!\.py)$",
            text,
        ):
            assert name[1] in known or any(
                key == name[1] or key.startswith(f"{name[1]}.") for key in KEYS
            ), text


@pytest.mark.parametrize("page", TODAY)
def test_every_series_that_is_named_is_declared(page: str) -> None:
    assert set(re.findall(r"\bsteelyard_[a-z_]+", TEXT[page])) - series() == set()


@pytest.mark.parametrize("page", TODAY)
def test_every_route_that_is_named_is_served(page: str) -> None:
    named = {
        route for text in spans(page) for route in re.findall(r"^(?:POST )?(/[a-z0-9./]+)$", text)
    }
    assert named - {route.path for route in ROUTES} == set()


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    assert [reason for reason in REASONS if f"`{reason}`" not in PRODUCERS] == []


# --- the architecture -----------------------------------------------------------------------------


def test_every_module_stands_in_the_architecture_and_no_other() -> None:
    named = []
    for folder, section in re.findall(
        r"^### ([a-z/]+)/\n(.*?)(?=^##)", TEXT["ARCHITECTURE.md"], re.DOTALL | re.MULTILINE
    ):
        names = re.findall(r"^\| `(\w+\.py)` \|", section, re.MULTILINE)
        named += [f"{folder}/{name}" for name in names]
    there = {
        str(file.relative_to(ROOT))
        for folder in DOORS
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert sorted(named) == sorted(there), "each once"


def test_a_folder_says_in_the_architecture_what_its_init_says() -> None:
    rows = dict(re.findall(r"^\| `([a-z/]+)/` \| (.+) \|$", TEXT["ARCHITECTURE.md"], re.MULTILINE))
    inits = [file for folder in DOORS for file in (ROOT / folder).rglob("__init__.py")]
    assert rows == {
        str(init.parent.relative_to(ROOT)): ast.get_docstring(ast.parse(init.read_text()))
        for init in inits
    }


def test_the_doors_in_the_architecture_are_those_that_are_enforced() -> None:
    for folder, doors in {**DOORS, **INNER_DOORS}.items():
        (cell,) = re.findall(rf"^\| `{folder}` \| (.+?) \|", TEXT["ARCHITECTURE.md"], re.MULTILINE)
        assert {"nothing": set(), "all": set(DOORS) - {folder}}.get(
            cell, set(re.findall(r"`([\w.]+)`", cell))
        ) == doors


def test_every_file_of_a_version_has_its_owner_in_the_architecture() -> None:
    from learner.config import LearnerConfig
    from learner.trainer import Trainer
    from weighting.weigher import Weigher

    named = {text for text in spans("ARCHITECTURE.md") if "." in text}
    written = (
        Trainer(LearnerConfig(model="random:1x32", interaction="cross_encoder"), Weigher())
        .files()
        .keys()
    )
    assert written - named == set()
