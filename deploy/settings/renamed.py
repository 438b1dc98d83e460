"""Former names of settings, so that an error can name the present one."""

from __future__ import annotations

_PROPENSITY = "weighting.conditional.propensity"
_PRIOR = {"initial_mass": "initial_pseudo_count", "mass": "pseudo_count"}
_TASK = {
    **{f"prior.{former}": f"prior.{present}" for former, present in _PRIOR.items()},
    **{f"late.{former}": f"delayed_positives.{present}" for former, present in _PRIOR.items()},
    "late": "delayed_positives",
}

#: Former key or section -> its present name; keys of a section stand before it.
KEYS = {
    "weighting.conditional.memory": "weighting.conditional.half_life",
    "weighting.conditional.effective_samples": "weighting.conditional.half_life",
    f"{_PROPENSITY}.mass": f"{_PROPENSITY}.pseudo_count",
    f"{_PROPENSITY}.memory": f"{_PROPENSITY}.half_life",
    f"{_PROPENSITY}.effective_samples": f"{_PROPENSITY}.half_life",
    **{f"weighting.click.{former}": f"weighting.click.{name}" for former, name in _TASK.items()},
    **{f"weighting.purchase.{former}": f"weighting.purchase.{n}" for former, n in _TASK.items()},
    "learner.batch": "learner.batch_size",
    "learner.residual.max_exposure": "learner.residual.half_life",
    "learner.pull": "learner.l2_sp_samples",
    "learner.l2_sp": "learner.l2_sp_samples",
    "learner.scale": "learner.logit_scale",
    "learner.max_gradient_norm": "learner.max_grad_norm",
    "serving.watcher.max_shift_ratio": "serving.gate.max_logit_shift",
}

#: Former key -> how its value has changed with its name.
NOTES = dict.fromkeys(("learner.pull", "learner.l2_sp"), "; now in samples, 320 / (lr l2_sp)")

#: Key -> its former values with their present names.
VALUES = {
    "learner.interaction": {"towers": "bi_encoder", "cross": "cross_encoder"},
    "weighting.clip.normalise": {"batch": "running"},
}


def present_key(key: str) -> str | None:
    """Return the present name of a former key.

    >>> present_key("learner.batch")
    'learner.batch_size'
    """
    for former, present in KEYS.items():
        if key == former or key.startswith(f"{former}."):
            return present + key.removeprefix(former)
    return None


def present_value(key: str, value: object) -> str | None:
    """Return the present name of a former value."""
    return VALUES.get(key, {}).get(value) if isinstance(value, str) else None
