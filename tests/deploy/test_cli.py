"""Command line: output, errors and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consumers.errors import OptionRefused, SourceUnavailable, TopicMissing
from deploy.cli.app import app
from deploy.cli.exit_codes import exit_code, refusal_of_system
from deploy.errors import PortTaken, SettingsError, StoreAbsent, Unsafe, UsageError
from learner.artifact import Store
from learner.errors import Corrupt, Fenced, StoreFailed
from serving.errors import NotReady
from tests.accept_surface import GOLDEN
from tests.deploy.test_events import CLICK, NO_OFFSET
from tests.learner.saving import saved
from weighting.errors import WeightError

HEAVY = ("torch", "transformers", "river", "kafka", "starlette", "uvicorn", "numpy")


def commands() -> list[str]:
    """Every command and group of commands, "" for the program itself."""
    found = set()
    for line in (GOLDEN / "commands.txt").read_text().splitlines():
        words = [word for word in line.split()[1:] if re.fullmatch("[a-z]+", word)]
        found |= {" ".join(words[:length]) for length in range(len(words) + 1)}
    return sorted(found)


def run(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The program as a user runs it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STEELYARD_")}
    command = [sys.executable, "-c", "from deploy.cli.app import main; main()", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env=clean | (env or {})
    )


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [(["learn"], "torch", "learn"), (["serve"], "uvicorn", "serve")],
)
def test_a_command_without_its_extra_ends_in_one_line(
    tmp_path: Path, command: list[str], package: str, extra: str
) -> None:
    code = f"""
import sys
from deploy.cli.app import main

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing)
main()
"""
    words = [sys.executable, "-c", code, *command, "--set", f"store.root={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert f"this command needs {package}, which is not installed: pip install" in done.stderr
    assert f"steelyard[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from deploy.cli.app import app
for command in {commands()!r}:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, (command, result.output)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_command_has_a_help_text() -> None:
    for command in commands():
        result = CliRunner().invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_the_version_is_one_line_on_standard_output() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"steelyard \d+[^\n]*\n", result.stdout)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError(["x"]), 2),
        (UsageError("x"), 2),
        (OptionRefused("group_id"), 2),
        (Unsafe("x"), 3),
        (TopicMissing("clicks", "h:1"), 1),
        (PortTaken("h", 1, "serving.port", OSError("x")), 1),
        (Corrupt("x", expected="a", found="b"), 1),
        (WeightError("label", 2, "0 or 1"), 1),
        (Fenced(root=Path("/s"), epoch=1, found="epoch 2"), 75),
        (SourceUnavailable("h:1", 1, "x"), 75),
        (StoreFailed(step="C4", path=Path("/s"), cause=OSError("x")), 75),
        (NotReady("x"), 75),
        (ValueError("x"), None),
    ],
)
def test_the_exit_code_of_an_error_says_whether_to_start_again(
    error: Exception, code: int | None
) -> None:
    assert exit_code(error) == code


def test_wrong_settings_are_told_all_at_once_without_a_traceback() -> None:
    done = run("config", "show", "--set", "store.kep=5", env={"STEELYARD_KAFAK__GROUP_ID": "x"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "steelyard: STEELYARD_KAFAK__GROUP_ID: no setting has this variable. "
        "Did you mean STEELYARD_KAFKA__GROUP_ID?",
        "command line: store.kep: unknown key. Did you mean store.keep?",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command"),
        (["events", "send", "x.ndjson"], "Missing option"),
        (
            ["config", "show", "--set", "learner.seed"],
            "--set: got a text without =, expected KEY=VALUE",
        ),
        (
            ["up", "--role", "learn,sing"],
            "--role: got 'sing', expected learn, serve or both with a comma",
        ),
        (["events", "schema", "asyncapi"], "schema: got 'asyncapi', expected json-schema"),
        (
            ["offsets", "reset", "--group", "g", "--all-topics"],
            "target: got none, expected exactly one of --to-earliest, --to-latest",
        ),
        (
            ["offsets", "reset", "--group", "g", "--to-latest"],
            "scope: got none, expected exactly one of --topic, --all-topics, --from-file",
        ),
        (
            ["replay", "--to-datetime", "x", "--by-duration", "P1D"],
            "target: got --to-datetime and --by-duration",
        ),
    ],
)
def test_wrong_usage_is_exit_2_on_standard_error(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_reads_standard_input_and_exits_1_if_a_line_is_none() -> None:
    assert run("events", "validate", "-", stdin=CLICK.decode()).returncode == 0
    done = run("events", "validate", "-", stdin=NO_OFFSET.decode())
    assert done.returncode == 1
    assert (
        done.stdout
        == "-:1: action: Expected `datetime` with a timezone component - at `$.timestamp`\n"
    )
    assert done.stderr == "0 valid, 1 invalid\n"


def test_a_broker_that_is_down_is_one_line_and_worth_another_try(tmp_path: Path) -> None:
    file = tmp_path / "x.ndjson"
    file.write_bytes(CLICK)
    done = run(
        "events", "send", str(file), "--topic", "clicks", "--bootstrap-servers", "127.0.0.1:1"
    )
    assert done.returncode == 75
    where, error = done.stderr.splitlines()
    assert where.startswith("settings: ")
    assert error.startswith("steelyard: no Kafka broker answered at 127.0.0.1:1 within 10 s (")


def test_the_doctor_exits_1_on_a_cross_and_speaks_json(tmp_path: Path) -> None:
    done = run(
        "doctor",
        "--bootstrap-servers",
        "127.0.0.1:1",
        "--set",
        f"store.root={tmp_path}",
        "--set",
        "serving.port=0",
        "--set",
        "kafka.connect_timeout=1s",
        "--json",
    )
    assert done.returncode == 1
    assert done.stderr == f"settings: defaults, no file; store: {tmp_path}\n"
    findings = json.loads(done.stdout)
    assert [
        (finding["area"], finding["mark"]) for finding in findings if finding["mark"] == "X"
    ] == [("Kafka", "X")]


def test_event_schemas_are_printed() -> None:
    result = CliRunner().invoke(app, ["events", "schema"])
    assert set(json.loads(result.stdout)) == {"exposure", "click", "purchase", "item"}


# --- checkpoints ---


def test_a_rollback_without_a_terminal_needs_yes_and_is_one_json_object(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for version in saved(tmp_path, 1, 2):
        store.promote(version)
    root = ["--set", f"store.root={tmp_path}"]
    refused = run("checkpoints", "rollback", *root)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.partition("\n")[2] == (
        "steelyard: Let champion be v000002 (now v000003)? "
        "There is nobody to ask: add --yes. Nothing was written.\n"
    )
    done = run("checkpoints", "rollback", "--yes", "--json", *root)
    assert (done.returncode, json.loads(done.stdout)["aliases"]["champion"]) == (0, "v000002")
    listed = json.loads(run("checkpoints", "list", "--json", *root).stdout)
    assert [version["aliases"] for version in listed["versions"]] == [
        ["@pinned", "@champion"],
        ["@previous", "@announced"],
    ]


def test_no_way_back_is_exit_3(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    done = run("checkpoints", "rollback", "--yes", "--set", f"store.root={tmp_path}")
    assert done.returncode == 3
    assert "\nsteelyard: no version served before this one" in done.stderr


# --- config ---


def test_init_writes_a_file_that_check_accepts_and_never_overwrites_one(tmp_path: Path) -> None:
    file = tmp_path / "steelyard.yaml"
    assert CliRunner().invoke(app, ["config", "init", str(file)]).exit_code == 0
    assert CliRunner().invoke(app, ["config", "check", "--config", str(file)]).exit_code == 0
    file.write_text("learner: {seed: 7}\n")
    again = CliRunner().invoke(app, ["config", "init", str(file)])
    assert again.exit_code == 3
    assert "nothing written" in again.stderr
    assert file.read_text() == "learner: {seed: 7}\n"


def test_check_prints_every_problem_and_exits_1(tmp_path: Path) -> None:
    file = tmp_path / "steelyard.yaml"
    file.write_text("learner: {batch_size: x, lr: y}")
    result = CliRunner().invoke(app, ["config", "check", "--config", str(file)])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{file}: learner.batch_size: got 'x', expected a whole number >= 1.",
        f"{file}: learner.lr: got 'y', expected a number > 0 and < 1.",
    ]
    assert json.loads(
        CliRunner().invoke(app, ["config", "check", "--config", str(file), "--json"]).stdout
    )["problems"]


def test_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "steelyard.yaml"
    file.write_text("learner: {batch_size: 7}\njoin: {grace: 5m}")
    env = {"STEELYARD_LEARNER__SEED": "9"}
    arguments = ["config", "show", "--config", str(file), "--set", "learner.threads=2", "--origin"]
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"], env=env).stdout)
    assert shown["learner.batch_size"] == {"value": 7, "origin": str(file)}
    assert shown["learner.seed"] == {"value": 9, "origin": "STEELYARD_LEARNER__SEED"}
    assert shown["learner.threads"] == {"value": 2, "origin": "command line"}
    assert shown["learner.lr"] == {"value": 1e-4, "origin": "default"}
    lines = CliRunner().invoke(app, arguments, env=env).stdout.splitlines()
    assert [line.split() for line in lines if line.startswith("join.grace")] == [
        ["join.grace:", "5m", "#", str(file)]
    ]


def test_a_secret_is_never_shown() -> None:
    env = {"STEELYARD_KAFKA__OPTIONS__SASL_PLAIN_PASSWORD": "hunter2"}
    result = CliRunner().invoke(app, ["config", "show", "--json"], env=env)
    assert json.loads(result.stdout)["kafka.options.sasl_plain_password"] == "***"
    assert "hunter2" not in result.output


def test_the_settings_schema_is_printed() -> None:
    assert json.loads(CliRunner().invoke(app, ["config", "schema"]).stdout)["properties"]["kafka"]


STORE_COMMANDS = [
    "checkpoints list",
    "checkpoints show @champion",
    "checkpoints verify v000001",
    "checkpoints export v000001 out",
    "checkpoints rollback --yes",
    "checkpoints prune --keep 5 --yes",
    "offsets describe",
    "replay --from-checkpoint v000001",
    "replay cancel --yes",
    "verify",
    "evaluate",
]


@pytest.mark.parametrize("command", STORE_COMMANDS)
def test_an_absent_store_is_an_error_that_names_it_and_the_settings(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steelyard.yaml").write_text("store:\n  root: nowhere\n")
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, StoreAbsent)
    assert exit_code(result.exception) == 2
    assert "nowhere (settings: steelyard.yaml)" in str(result.exception)
    assert not (tmp_path / "nowhere").exists()


def test_settings_are_found_in_the_order_option_variable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("steelyard", "named", "given"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.yaml").write_text(f"store:\n  root: {tmp_path / name}\n")

    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["checkpoints", "list", *arguments])
        assert result.exit_code == 0
        return result.stderr.splitlines()[0]

    assert told() == f"settings: steelyard.yaml; store: {tmp_path}/steelyard"
    monkeypatch.setenv("STEELYARD_CONFIG", str(tmp_path / "named.yaml"))
    assert told() == f"settings: {tmp_path}/named.yaml; store: {tmp_path}/named"
    assert told("--config", "given.yaml") == f"settings: given.yaml; store: {tmp_path}/given"
    monkeypatch.delenv("STEELYARD_CONFIG")
    (tmp_path / "steelyard.yaml").unlink()
    own = f"store.root={tmp_path / 'given'}"
    assert told("--set", own) == f"settings: defaults, no file; store: {tmp_path}/given"


def test_a_variable_that_names_no_file_is_an_error() -> None:
    done = run("config", "show", env={"STEELYARD_CONFIG": "missing.yaml"})
    assert done.returncode == 2
    assert "missing.yaml: cannot be read" in done.stderr


def test_an_output_that_is_full_is_one_line() -> None:
    command = [sys.executable, "-c", "from deploy.cli.app import main; main()", "config", "show"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "steelyard: a file, or the output: No space left on device. Check free space (also of "
        "TMPDIR), mode and limits, then start it again."
    )
    assert "Traceback" not in done.stderr


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    assert refusal_of_system(FileNotFoundError(2, "No such file", "a")) is None
    assert refusal_of_system(ValueError("x")) is None
    assert str(refusal_of_system(OSError(28, "", "/tmp/a"))).startswith("/tmp/a: No space left")
