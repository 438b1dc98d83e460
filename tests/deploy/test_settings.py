"""Settings: a later layer wins, and everything that is wrong is told at once, by key, value, expectation and the nearest known key."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.errors import SettingsError
from deploy.settings.tree import Settings, describe, json_schema, load, starter
from deploy.settings.yaml import parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "steelyard.yaml"


def problems(
    file: Path | None = None,
    text: str = "",
    env: Mapping[str, str] | None = None,
    sets: Mapping[str, str] | None = None,
) -> list[str]:
    """What is wrong; the path of the file is cut to its name."""
    if file is not None:
        file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load(file, env or {}, sets or {})
    return [line.replace(f"{file}", file.name) if file else line for line in refused.value.problems]


def test_without_file_and_environment_every_value_is_its_owners_default() -> None:
    assert load(None, {}) == Settings()


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    file: Path,
) -> None:
    file.write_text("learner: {batch: 1, seed: 1, max_tokens: 16}")
    env = {"STEELYARD_LEARNER__BATCH": "2", "STEELYARD_LEARNER__SEED": "2"}
    settings = load(file, env, {"learner.batch": "3"})
    assert (
        settings.learner.batch,
        settings.learner.seed,
        settings.learner.max_tokens,
        settings.learner.threads,
    ) == (3, 2, 16, 1)
    origins = {entry.key: entry.origin for entry in describe(settings)}
    assert origins["learner.batch"] == "command line"
    assert origins["learner.seed"] == "STEELYARD_LEARNER__SEED"
    assert origins["learner.max_tokens"] == str(file)
    assert origins["learner.threads"] == "default"


def test_durations_and_sizes_are_read_with_their_units_in_every_layer(file: Path) -> None:
    file.write_text(
        "join: {attribution_window: P7D, observation_window: 15m}\nserving: {limits: {max_body: 1MiB}}"
    )
    settings = load(file, {"STEELYARD_JOIN__GRACE": "90s"}, {"learner.publish_every": "500ms"})
    assert settings.join.attribution_window_us == 7 * 86_400 * 1_000_000
    assert settings.join.observation_window_us == 900_000_000
    assert settings.join.grace_us == 90_000_000
    assert settings.learner.publish_every_seconds == 0.5
    assert settings.serving.limits.max_body_bytes == 1 << 20


def test_a_bare_number_where_a_unit_belongs_is_an_error(file: Path) -> None:
    assert problems(file, "join: {grace: 10}\nserving: {limits: {max_body: 5}}") == [
        "steelyard.yaml: join.grace: got 10, expected a duration with its unit, such as 500ms, 30s, 15m, 7d or P7D.",
        "steelyard.yaml: serving.limits.max_body: got 5, expected a size with its unit, such as 64KB, 2MB or 1GiB.",
    ]


def test_an_unknown_key_names_the_nearest_known_one(file: Path) -> None:
    assert problems(file, "kafka: {groupid: x}\nleaner: {batch: 1}", sets={"store.kep": "5"}) == [
        "steelyard.yaml: kafka.groupid: unknown key. Did you mean kafka.group_id?",
        "steelyard.yaml: leaner: unknown key. Did you mean learner?",
        "command line: store.kep: unknown key. Did you mean store.keep?",
    ]


def test_a_mistyped_variable_is_refused_at_the_top_and_below() -> None:
    names = (
        "STEELYARD_KAFAK__GROUP_ID",
        "STEELYARD_KAFKA__GROUPID",
        "STEELYARD_SERVING_PORT",
        "STEELYARD_KAFKA",
        "OTHER",
    )
    env = dict.fromkeys(names, "x")
    assert problems(env=env) == [
        "STEELYARD_KAFAK__GROUP_ID: no setting has this variable. Did you mean STEELYARD_KAFKA__GROUP_ID?",
        "STEELYARD_KAFKA: kafka is a section. Set its keys one by one, such as STEELYARD_KAFKA__BOOTSTRAP_SERVERS.",
        "STEELYARD_KAFKA__GROUPID: no setting has this variable. Did you mean STEELYARD_KAFKA__GROUP_ID?",
        "STEELYARD_SERVING_PORT: no setting has this variable. Did you mean STEELYARD_SERVING__PORT?",
    ]


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_typing_error() -> None:
    links = {
        "STEELYARD_SERVICE_HOST": "10.0.0.1",
        "STEELYARD_SERVICE_PORT": "8080",
        "STEELYARD_SERVING_SERVICE_PORT_HTTP": "8080",
        "STEELYARD_PORT": "tcp://10.0.0.1:8080",
        "STEELYARD_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "STEELYARD_SERVING_PORT_8080_TCP_PORT": "8080",
    }
    assert load(None, links) == Settings()


def test_a_wrong_value_names_key_value_and_expectation_in_every_layer(file: Path) -> None:
    text = "weighting: {clip: {normalise: btach}}\nkafka: {group_id: 3}\nlearner: {lr: '2'}"
    assert problems(file, text, {"STEELYARD_LEARNER__BATCH": "many"}, {"learner.seed": "1.5"}) == [
        "steelyard.yaml: weighting.clip.normalise: got 'btach', expected 'raw', 'batch' or 'self'.",
        "steelyard.yaml: kafka.group_id: got 3, expected a valid string.",
        "steelyard.yaml: learner.lr: got '2', expected a valid number.",
        "STEELYARD_LEARNER__BATCH: learner.batch: got 'many', expected a valid integer.",
        "command line: learner.seed: got 1.5, expected a valid integer.",
    ]


def test_what_an_owner_refuses_is_told_in_the_words_of_the_file(file: Path) -> None:
    text = "join: {click_window: 8d}\nweighting: {exponent: -2, click: {prior: {half_life: 0s}}}\nlearner: {tuning: top}"
    assert problems(file, text, {"STEELYARD_STORE__KEEP": "2"}) == [
        "steelyard.yaml: join.click_window: got '8d', expected 0 <= click_window <= attribution_window=7d.",
        "steelyard.yaml: weighting.click.prior.half_life: got '0s', expected a number > 0.",
        "steelyard.yaml: weighting.exponent: got -2, expected a finite number > -0.9 (at -1 the weight destroys all signal).",
        "steelyard.yaml: learner.tuning: got 'top', expected full, frozen or top:N with N >= 1.",
        "STEELYARD_STORE__KEEP: store.keep: got 2, expected a whole number >= 5.",
    ]


def test_a_refusal_of_two_values_together_names_the_section(file: Path) -> None:
    expected = "steelyard.yaml: weighting.clip: got [-20.0, 5.0], expected 0 <= low < high."
    assert problems(file, "weighting: {clip: {low: -20}}") == [expected]


def test_a_duplicate_key_is_refused_with_its_line(file: Path) -> None:
    text = "learner:\n  batch: 1\n  batch: 2\nlearner: {}\n"
    assert problems(file, text) == [
        "steelyard.yaml: line 4: learner: the key is there twice; keep one of them.",
        "steelyard.yaml: line 3: batch: the key is there twice; keep one of them.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learner: [1", "steelyard.yaml: line 1: expected ',' or ']', but got '<stream end>'."),
        ("- 1", "steelyard.yaml: the file: got [1], expected a section with keys."),
        ("learner: 5", "steelyard.yaml: learner: got 5, expected a section with keys."),
    ],
)
def test_a_file_of_another_form_is_one_error(file: Path, text: str, expected: str) -> None:
    assert problems(file, text) == [expected]


def test_a_missing_file_is_one_error_that_says_how_to_make_one(file: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"yaml: cannot be read: No such file or directory\. `steelyard config init` writes one\.",
    ):
        load(file, {})


@pytest.mark.parametrize(
    "option",
    [
        *(
            "group_id",
            "enable_auto_commit",
            "auto_offset_reset",
            "key_deserializer",
            "value_deserializer",
        ),
        *("isolation_level", "check_crcs", "allow_auto_create_topics"),
    ],
)
def test_an_option_that_the_guarantee_depends_on_is_refused_in_every_layer(
    file: Path, option: str
) -> None:
    refusal = f"kafka.options.{option}: this option is set by Steelyard and cannot be overridden. Remove it."
    variable = f"STEELYARD_KAFKA__OPTIONS__{option.upper()}"
    text = f"kafka: {{options: {{{option}: x}}}}"
    assert problems(file, text, {variable: "x"}) == [
        f"steelyard.yaml: {refusal}",
        f"{variable}: {refusal}",
    ]


def test_options_reach_kafka_unchanged_and_are_merged_key_by_key(file: Path) -> None:
    file.write_text(
        "kafka: {options: {security_protocol: SSL, request_timeout_ms: 5000, api_version: [2, 5]}}"
    )
    options = load(file, {"STEELYARD_KAFKA__OPTIONS__SECURITY_PROTOCOL": "SASL_SSL"}).kafka.options
    assert options == {
        "security_protocol": "SASL_SSL",
        "request_timeout_ms": 5000,
        "api_version": [2, 5],
    }


def test_a_secret_is_nowhere_shown(file: Path) -> None:
    settings = load(None, {"STEELYARD_KAFKA__OPTIONS__SASL_PLAIN_PASSWORD": "hunter2"})
    assert settings.kafka.options["sasl_plain_password"] == "hunter2"
    assert "hunter2" not in f"{settings!r} {describe(settings)!r}"


def test_several_brokers_are_separated_by_commas_or_a_list_in_the_file(file: Path) -> None:
    file.write_text("kafka: {bootstrap_servers: [a:1, b:2]}")
    assert load(file, {}).kafka.bootstrap_servers == "a:1,b:2"
    assert (
        load(None, {"STEELYARD_KAFKA__BOOTSTRAP_SERVERS": "a:1,b:2"}).kafka.bootstrap_servers
        == "a:1,b:2"
    )


def test_a_topic_may_be_switched_off(file: Path) -> None:
    file.write_text("kafka: {topics: {items: null}}")
    assert load(file, {}).kafka.topics.items is None
    assert load(None, {"STEELYARD_KAFKA__TOPICS__ITEMS": "null"}).kafka.topics.items is None


def test_the_starter_file_changes_nothing_and_its_lines_hold_when_they_are_uncommented(
    file: Path,
) -> None:
    file.write_text(starter())
    assert load(file, {}) == Settings()
    uncommented = [
        line.replace("# ", "", 1) if ": " in line and line.startswith("  ") else line
        for line in starter().splitlines()
    ]
    file.write_text("\n".join(uncommented))
    settings = load(file, {})
    assert settings == Settings()
    assert all(
        entry.origin == str(file) for entry in describe(settings) if entry.key != "kafka.options"
    )


def test_every_key_can_be_set_by_its_variable() -> None:
    env = {}
    for entry in describe(Settings()):
        text = entry.value if isinstance(entry.value, str) else json.dumps(entry.value)
        env[f"STEELYARD_{entry.key.replace('.', '__').upper()}"] = text
    assert load(None, env) == Settings()


def test_the_json_schema_knows_every_key_and_refuses_others() -> None:
    schema = json_schema()
    for entry in describe(Settings()):
        node = schema
        for part in entry.key.split("."):
            assert node["additionalProperties"] is False
            node = node["properties"][part]
        assert node["default"] == entry.value
    assert schema["properties"]["join"]["properties"]["grace"]["pattern"]


def test_settings_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().learner.batch = 1  # type: ignore[misc]


def test_the_starter_file_is_plain_yaml() -> None:
    value, wrong = parse(starter())
    assert wrong == []
    assert set(value) == {
        "kafka",
        "join",
        "weighting",
        "learner",
        "serving",
        "store",
        "observability",
    }
