"""The digest of the settings that change what is learned."""

from __future__ import annotations

from dataclasses import replace

from deploy.roles.wiring import config_sha256, fingerprint
from deploy.settings.tree import Settings
from learner.losses.task_weights import TaskWeights
from learner.process_group import SingleProcess
from learner.training.rehearsal import RehearsalConfig

DEFAULTS = "add030315eb941b0b38418b931bc4a1067c885013e0f5f55494a8097e0c90a35"
"""Of the defaults, under the names that the settings have on disk."""


def test_a_renamed_or_a_new_setting_at_its_default_is_the_same_configuration() -> None:
    assert config_sha256(Settings()) == DEFAULTS


def test_another_value_is_another_configuration() -> None:
    settings = Settings()
    learner = settings.learner
    residual = replace(learner.residual, max_items=5)
    others = [
        replace(settings, learner=replace(learner, l2_sp_samples=1.0)),
        replace(settings, learner=replace(learner, interaction="cross_encoder")),
        replace(settings, learner=replace(learner, residual=residual)),
        replace(settings, learner=replace(learner, loss="pairwise")),
        replace(settings, learner=replace(learner, label_smoothing=0.1)),
        replace(settings, learner=replace(learner, optimizer="sgd")),
        replace(settings, learner=replace(learner, adversarial_steps=1)),
        replace(settings, learner=replace(learner, adversarial_radius=0.1)),
        replace(settings, learner=replace(learner, momentum=0.5)),
        replace(settings, learner=replace(learner, pooling="lasttoken")),
        replace(settings, learner=replace(learner, warm_up_samples=7)),
        replace(settings, learner=replace(learner, warm_up_samples=7, schedule="inverse_sqrt")),
        replace(settings, learner=replace(learner, task_weights=TaskWeights(purchase=2.0))),
        replace(settings, learner=replace(learner, rehearsal=RehearsalConfig(size_bytes=10**6))),
        replace(settings, weighting=replace(settings.weighting, scheme="uniform")),
    ]
    assert len({DEFAULTS, *map(config_sha256, others)}) == 1 + len(others)


def test_what_changes_no_bit_of_learning_is_left_out() -> None:
    settings = Settings()
    learner = replace(
        settings.learner,
        publish_every_seconds=1.0,
        flush_seconds=9.0,
        step_timeout_seconds=7.0,
        run_ahead=True,
    )
    assert config_sha256(replace(settings, learner=learner)) == DEFAULTS


def test_the_fingerprint_names_peft_where_an_adapter_is_learned() -> None:
    settings = Settings()
    names = {
        tuning: fingerprint(
            replace(settings, learner=replace(settings.learner, tuning=tuning)), SingleProcess()
        ).keys()
        for tuning in ("top:1", "lora:8", "ia3@top:1", "prefix:8")
    }
    assert names["prefix:8"] == names["top:1"]
    assert names["lora:8"] == names["ia3@top:1"] == names["top:1"] | {"peft"}
