"""Settings: order of the layers, and errors with the nearest known key."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from consumers.joining.join import JoinConfig
from consumers.kafka.options import KafkaConfig
from deploy.cli.exit_codes import USAGE, exit_code
from deploy.errors import SettingsError
from deploy.settings.environment import variable
from deploy.settings.leaf import leaves
from deploy.settings.load import load
from deploy.settings.renamed import KEYS, NOTES
from deploy.settings.render import describe, json_schema, starter
from deploy.settings.tree import Settings
from deploy.settings.yaml import parse
from learner.config import LearnerConfig
from learner.losses.registry import LOSSES
from learner.losses.task_weights import TaskWeights
from learner.training.budget import PrivacyConfig
from learner.training.rehearsal import RehearsalConfig
from weighting.clip import ClipConfig
from weighting.config import WeigherConfig
from weighting.constraints import SettingError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "steelyard.yaml"


def problems(
    file: Path | None = None,
    text: str = "",
    env: Mapping[str, str] | None = None,
    sets: Mapping[str, str] | None = None,
) -> list[str]:
    """Problems of some layers, with the file by its name only."""
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
    file.write_text("learner: {batch_size: 1, seed: 1, max_tokens: 16}")
    env = {"STEELYARD_LEARNER__BATCH_SIZE": "2", "STEELYARD_LEARNER__SEED": "2"}
    settings = load(file, env, {"learner.batch_size": "3"})
    learner = settings.learner
    found = (learner.batch_size, learner.seed, learner.max_tokens, learner.threads)
    assert found == (3, 2, 16, 1)
    origins = {entry.key: entry.origin for entry in describe(settings)}
    assert origins["learner.batch_size"] == "command line"
    assert origins["learner.seed"] == "STEELYARD_LEARNER__SEED"
    assert origins["learner.max_tokens"] == str(file)
    assert origins["learner.threads"] == "default"


def test_durations_and_sizes_are_read_with_their_units_in_every_layer(file: Path) -> None:
    join = "join: {attribution_window: P7D, observation_window: 15m}"
    file.write_text(f"{join}\nserving: {{limits: {{max_body: 1MiB}}}}")
    settings = load(file, {"STEELYARD_JOIN__GRACE": "90s"}, {"learner.publish_every": "500ms"})
    assert settings.join.attribution_window_us == 7 * 86_400 * 1_000_000
    assert settings.join.observation_window_us == 900_000_000
    assert settings.join.grace_us == 90_000_000
    assert settings.learner.publish_every_seconds == 0.5
    assert settings.serving.limits.max_body_bytes == 1 << 20


def test_a_bare_number_where_a_unit_belongs_is_an_error(file: Path) -> None:
    duration = "a duration with its unit, such as 500ms, 30s, 15m, 7d or P7D"
    size = "a size with its unit, such as 64KB, 2MB or 1GiB"
    assert problems(file, "join: {grace: 10}\nserving: {limits: {max_body: 5}}") == [
        f"steelyard.yaml: join.grace: got 10, expected {duration}.",
        f"steelyard.yaml: serving.limits.max_body: got 5, expected {size}.",
    ]


def test_integers_are_refused_on_another_device_than_a_cpu(file: Path) -> None:
    assert problems(file, "serving: {precision: int8, device: cuda}") == [
        "steelyard.yaml: serving.precision: got 'int8', expected learned with device=cuda."
    ]


def test_another_engine_is_refused_on_another_device_than_a_cpu(file: Path) -> None:
    assert problems(file, "serving: {engine: openvino, device: cuda}") == [
        "steelyard.yaml: serving.engine: got 'openvino', expected torch with device=cuda."
    ]
    file.write_text("serving: {engine: openvino, precision: int8}")
    assert load(file, {}, {}).serving.engine == "openvino"


def test_an_unknown_key_names_the_nearest_known_one(file: Path) -> None:
    assert problems(
        file, "kafka: {groupid: x}\nleaner: {batch_size: 1}", sets={"store.kep": "5"}
    ) == [
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
    unknown = "no setting has this variable. Did you mean"
    assert problems(env=env) == [
        f"STEELYARD_KAFAK__GROUP_ID: {unknown} STEELYARD_KAFKA__GROUP_ID?",
        "STEELYARD_KAFKA: kafka is a section. "
        "Set its keys one by one, such as STEELYARD_KAFKA__BOOTSTRAP_SERVERS.",
        f"STEELYARD_KAFKA__GROUPID: {unknown} STEELYARD_KAFKA__GROUP_ID?",
        f"STEELYARD_SERVING_PORT: {unknown} STEELYARD_SERVING__PORT?",
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
    env = {"STEELYARD_LEARNER__BATCH_SIZE": "many"}
    batch_size = "learner.batch_size: got 'many', expected a whole number >= 1"
    assert problems(file, text, env, {"learner.seed": "1.5"}) == [
        "steelyard.yaml: weighting.clip.normalise: got 'btach', expected raw, running or self.",
        "steelyard.yaml: kafka.group_id: got 3, expected a text that is not empty.",
        "steelyard.yaml: learner.lr: got '2', expected a number > 0 and < 1.",
        f"STEELYARD_LEARNER__BATCH_SIZE: {batch_size}.",
        "command line: learner.seed: got 1.5, expected a whole number >= 0.",
    ]


def test_a_value_out_of_bounds_is_reported_in_the_words_of_the_file(file: Path) -> None:
    text = """
weighting: {exponent: -2, click: {prior: {half_life: 0s}}, clip: {low: -20}}
learner: {tuning: top, lr: .inf, dropout: .nan}
"""
    assert problems(file, text, {"STEELYARD_STORE__KEEP": "2"}) == [
        "steelyard.yaml: weighting.exponent: got -2, expected a number > -0.9 or auto.",
        "steelyard.yaml: weighting.click.prior.half_life: got '0s', expected a number > 0.",
        "steelyard.yaml: weighting.clip.low: got -20, expected a number >= 0.",
        "steelyard.yaml: learner.tuning: got 'top', expected full, frozen, top:N, lora:R, ia3 or "
        "prefix:N, the last three with or without @top:N, where N, R >= 1.",
        "steelyard.yaml: learner.lr: got inf, expected a number > 0 and < 1.",
        "steelyard.yaml: learner.dropout: got nan, expected a number >= 0 and < 1.",
        "STEELYARD_STORE__KEEP: store.keep: got 2, expected a whole number >= 5.",
    ]


def test_two_values_that_contradict_each_other_are_named_with_their_units(file: Path) -> None:
    text = "join: {click_window: 8d}\nweighting: {clip: {high: 0.05}}"
    assert problems(file, text) == [
        "steelyard.yaml: join.click_window: got '8d', expected a number <= attribution_window=7d.",
        "steelyard.yaml: weighting.clip.low: got 0.1, expected a number < high=0.05.",
    ]


@pytest.mark.parametrize("former", KEYS)
def test_a_former_key_names_the_present_one_in_every_layer(file: Path, former: str) -> None:
    text = "1"
    for name in reversed(former.split(".")):
        text = f"{{{name}: {text}}}"
    env = {variable(former): "1"}
    # A file is refused at the outermost section that has another name now.
    section = min((key for key in KEYS if f"{former}.".startswith(f"{key}.")), key=len)
    note = NOTES.get(former, "")
    assert problems(file, text, env, {former: "1"}) == [
        f"steelyard.yaml: {section}: renamed to {KEYS[section]}{note}.",
        f"{variable(former)}: renamed to {variable(KEYS[former])}{note}.",
        f"command line: {former}: renamed to {KEYS[former]}{note}.",
    ]


def test_a_former_key_is_no_present_one_and_its_successor_is() -> None:
    keys = {entry.key for entry in describe(Settings())}
    assert not keys & set(KEYS)
    assert all(any(key.startswith(present) for key in keys) for present in KEYS.values())


def test_a_former_value_names_the_present_one(file: Path) -> None:
    text = "{learner: {interaction: towers}, weighting: {clip: {normalise: batch}}}"
    interaction = "expected bi_encoder or cross_encoder ('towers' is now bi_encoder)"
    normalise = "expected raw, running or self ('batch' is now running)"
    assert problems(file, text) == [
        f"steelyard.yaml: learner.interaction: got 'towers', {interaction}.",
        f"steelyard.yaml: weighting.clip.normalise: got 'batch', {normalise}.",
    ]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"lr": 2}, "learner.lr: got 2, expected a number > 0 and < 1"),
        ({"lr": "3"}, "learner.lr: got '3', expected a number > 0 and < 1"),
        ({"l2_sp_samples": math.inf}, "learner.l2_sp_samples: got inf, expected a number >= 0"),
        ({"seed": True}, "learner.seed: got True, expected a whole number >= 0"),
        (
            {"tuning": "top:0"},
            "learner.tuning: got 'top:0', expected full, frozen, top:N, lora:R, ia3 or prefix:N",
        ),
        (
            {"tuning": "top:1\n"},
            "learner.tuning: got 'top:1\\n', expected full, frozen, top:N, lora:R, ia3 or prefix:N",
        ),
        ({"interaction": "towers"}, "got 'towers', expected bi_encoder or cross_encoder"),
        (
            {"pooling": "weightedmean"},
            "learner.pooling: got 'weightedmean', expected auto, mean, cls, max or lasttoken",
        ),
        ({"momentum": 1.0}, "learner.momentum: got 1.0, expected a number >= 0 and < 1"),
        ({"optimizer": "adam"}, "learner.optimizer: got 'adam', expected adamw or sgd"),
        (
            {"adversarial_steps": 1, "tuning": "frozen"},
            "learner.adversarial_steps: got 1, expected 0 with tuning='frozen'",
        ),
        (
            {"compute_share": 0.5, "privacy": PrivacyConfig(noise_multiplier=2)},
            "learner.compute_share: got 0.5, expected 1 with privacy.noise_multiplier=2",
        ),
        (
            {"loss": "in_batch_softmax", "interaction": "cross_encoder"},
            "learner.loss: got 'in_batch_softmax', expected pointwise, squared_error, pairwise or "
            "listwise with interaction='cross_encoder'",
        ),
        (
            {"loss": "in_batch_softmax", "label_smoothing": 0.1},
            "learner.label_smoothing: got 0.1, expected 0 with loss='in_batch_softmax'",
        ),
        ({"label_smoothing": 1.0}, "learner.label_smoothing: got 1.0, expected a number >= 0 and"),
        (
            {"schedule": "inverse_sqrt"},
            "learner.warm_up_samples: got 0, expected a whole number >= 1 with "
            "schedule='inverse_sqrt'",
        ),
        ({"model": ""}, "learner.model: got '', expected a text that is not empty"),
    ],
)
def test_a_config_refuses_a_wrong_value_when_it_is_made(
    changes: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(refusal)):
        LearnerConfig(**changes)
    with pytest.raises(ValueError, match=re.escape(refusal)):
        dataclasses.replace(LearnerConfig(), **changes)


def test_a_schedule_without_its_warm_up_and_a_task_without_a_weight_are_named(file: Path) -> None:
    text = "learner: {schedule: inverse_sqrt, task_weights: {click: -1}}"
    assert problems(file, text) == [
        "steelyard.yaml: learner.task_weights.click: got -1, expected a number >= 0.",
        "steelyard.yaml: learner.warm_up_samples: got 0, expected a whole number >= 1 with "
        "schedule=inverse_sqrt.",
    ]


@pytest.mark.parametrize(
    ("weighting", "bound"),
    [
        ("exponent: 1", "weighting.exponent=1.0"),
        ("exponent: auto", "weighting.exponent='auto'"),
        ("exponent: auto, scheme: uniform", "weighting.exponent='auto'"),
        ("scheme: focal", "weighting.scheme='focal'"),
    ],
)
def test_purchases_over_all_are_refused_under_importance_weights(
    file: Path, weighting: str, bound: str
) -> None:
    learner = "learner: {task_weights: {purchase_over_all: 0.5}}"
    assert problems(file, f"{learner}\nweighting: {{{weighting}}}") == [
        "steelyard.yaml: learner.task_weights.purchase_over_all: got 0.5, expected 0 with "
        f"{bound}.",
    ]
    file.write_text(f"{learner}\nweighting: {{scheme: uniform, exponent: 1}}")
    assert load(file, {}).learner.task_weights == TaskWeights(purchase_over_all=0.5)


def test_estimators_learn_per_batch_only_where_the_model_can(file: Path) -> None:
    file.write_text("weighting: {update_per: batch}")
    assert load(file, {}).weighting.update_per == "batch"
    assert load(file, {}, {"weighting.update_per": "list"}).weighting == WeigherConfig()
    text = "weighting: {update_per: batch, conditional: {model: logistic:adagrad}}"
    assert problems(file, text) == [
        "steelyard.yaml: weighting.update_per: got 'batch', expected list with "
        "conditional.model=logistic:adagrad.",
    ]
    assert problems(file, "weighting: {update_per: sample}") == [
        "steelyard.yaml: weighting.update_per: got 'sample', expected list or batch.",
    ]


def test_a_balance_of_before_has_the_digest_of_before() -> None:
    written = LearnerConfig(task_weights=TaskWeights(purchase=2.0)).on_disk()
    assert written["task_weights"] == {"click": 1.0, "purchase": 2.0}
    assert "task_weights" not in LearnerConfig().on_disk()
    over_all = LearnerConfig(task_weights=TaskWeights(purchase_over_all=0.5)).on_disk()
    assert over_all["task_weights"]["purchase_over_all"] == 0.5


def test_rehearsal_is_sized_in_bytes_and_refused_where_it_can_do_nothing(file: Path) -> None:
    file.write_text("learner: {rehearsal: {size: 8MB, share: 0.5}}")
    assert load(file, {}).learner.rehearsal == RehearsalConfig(size_bytes=8_000_000, share=0.5)
    assert problems(file, "learner: {rehearsal: {size: 8KB, share: 1.0}}") == [
        "steelyard.yaml: learner.rehearsal.share: got 1.0, expected a number > 0 and < 1.",
    ]
    (small,) = problems(file, "learner: {rehearsal: {size: 8KB}}")
    assert small == (
        "steelyard.yaml: learner.rehearsal.size: got '8KB', expected 0B, or at least 100KB."
    )
    (frozen,) = problems(file, "learner: {tuning: frozen, rehearsal: {size: 8MB}}")
    assert frozen == (
        "steelyard.yaml: learner.tuning: got 'frozen', expected one that moves the encoder, or "
        "learner.rehearsal.size: 0B."
    )


def test_privacy_is_read_from_every_layer_and_checked(file: Path) -> None:
    file.write_text("learner: {privacy: {noise_multiplier: 2.0, max_norm: 10}}")
    own = load(file, {}, {"learner.privacy.max_contributions": "3"}).learner.privacy
    assert own == PrivacyConfig(noise_multiplier=2.0, max_norm=10, max_contributions=3)
    assert not load(None, {}).learner.privacy.enabled
    text = "learner: {privacy: {noise_multiplier: -1, delta: 1, max_contributions: 0}}"
    assert problems(file, text) == [
        "steelyard.yaml: learner.privacy.noise_multiplier: got -1, expected a number >= 0 and "
        "< 1000000.0.",
        "steelyard.yaml: learner.privacy.delta: got 1, expected a number > 0 and < 1.",
        "steelyard.yaml: learner.privacy.max_contributions: got 0, expected a whole number >= 1.",
    ]


def test_configs_refuse_contradicting_values_when_they_are_made() -> None:
    refusal = r"join\.click_window_us: got 9, .* <= attribution_window_us=8"
    with pytest.raises(ValueError, match=refusal):
        JoinConfig(click_window_us=9, observation_window_us=1, attribution_window_us=8)
    with pytest.raises(ValueError, match=r"clip\.low: got 2, expected a number < high=1"):
        ClipConfig(low=2, high=1)


def test_a_duplicate_key_is_refused_with_its_line(file: Path) -> None:
    text = "learner:\n  seed: 1\n  seed: 2\nlearner: {}\n"
    assert problems(file, text) == [
        "steelyard.yaml: line 4: learner: the key is there twice; keep one of them.",
        "steelyard.yaml: line 3: seed: the key is there twice; keep one of them.",
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
    remedy = r"`steelyard config init` writes one\."
    refusal = rf"yaml: cannot be read: No such file or directory\. {remedy}"
    with pytest.raises(SettingsError, match=refusal):
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
    reason = "this option is set by Steelyard and cannot be overridden. Remove it."
    refusal = f"kafka.options.{option}: {reason}"
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


def test_the_json_schema_has_the_bounds_and_the_help_texts() -> None:
    sections = json_schema()["properties"]
    assert sections["learner"]["properties"]["lr"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "Learning rate.",
        "default": 1e-4,
    }
    port = sections["serving"]["properties"]["port"]
    assert (port["minimum"], port["maximum"]) == (0, 65535)
    assert sections["learner"]["properties"]["loss"]["enum"] == sorted(LOSSES)


def test_every_key_has_a_help_text() -> None:
    assert [leaf.key for leaf in leaves(Settings()) if not leaf.help] == []


def test_settings_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().learner.batch_size = 1  # type: ignore[misc]


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
        "tracking",
    }


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ("localhost", "such as localhost:9092: localhost has no port"),
        ("a:1,localhost", "such as localhost:9092: localhost has no port"),
        ("PLAINTEXT://host:9092", "without PLAINTEXT:// before it"),
        ("http://host:9092/", "without http:// before it"),
        ("a:1,,b:2", "several separated by single commas: one of them is empty"),
        ("a:1,", "several separated by single commas: one of them is empty"),
        ("", "several separated by single commas: one of them is empty"),
        ("::1:9092", "with brackets around an IPv6 address: [::1]:9092"),
        ("[::1]", "such as [::1]:9092: [::1] has no port"),
        ("host:port", "with a port from 1 to 65535: host:port has 'port'"),
        ("host:70000", "with a port from 1 to 65535: host:70000 has '70000'"),
        ("my host:9092", "such as localhost:9092: 'my host' is no host name"),
        (":9092", "such as localhost:9092: '' is no host name"),
    ],
)
def test_an_address_of_brokers_that_cannot_be_one_is_one_sentence(servers: str, said: str) -> None:
    expected = f"kafka.bootstrap_servers: got {servers!r}, expected host:port, {said}"
    with pytest.raises(SettingsError) as refused:
        load(None, {}, {"kafka.bootstrap_servers": servers})
    assert str(refused.value) == f"command line: {expected}."
    with pytest.raises(SettingError) as alone:
        KafkaConfig(bootstrap_servers=servers)
    assert str(alone.value) == expected
    assert exit_code(alone.value) == USAGE


@pytest.mark.parametrize(
    "servers", ["h:1", "[::1]:9092", "a.example:9092, b_1-x:9093", "10.0.0.1:1"]
)
def test_an_address_of_brokers_is_taken(servers: str) -> None:
    assert load(None, {}, {"kafka.bootstrap_servers": servers}).kafka.servers == [
        server.strip() for server in servers.split(",")
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"learner.loss": "in_batch_softmax"},
            "learner.loss: got 'in_batch_softmax', expected pointwise, squared_error, pairwise or "
            "listwise with privacy.noise_multiplier=1.0.",
        ),
        (
            {"learner.compute_share": "0.5"},
            "learner.compute_share: got 0.5, expected 1 with privacy.noise_multiplier=1.0.",
        ),
        (
            {"learner.rehearsal.size": "1MB"},
            "learner.rehearsal.size: got '1MB', expected 0 with privacy.noise_multiplier=1.0.",
        ),
    ],
)
def test_what_privacy_cannot_go_with_is_refused_by_its_key(
    given: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(None, {}, {"learner.privacy.noise_multiplier": "1", **given})
    assert str(refused.value) == f"command line: {says}"
