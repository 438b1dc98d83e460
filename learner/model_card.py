"""Model card of a version: what it is, and how good its scores were before it learned from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from learner.evaluation.block import FREQUENCIES, FREQUENCY, SCENARIO, Block
from learner.evaluation.evaluation import Evaluation
from learner.evaluation.rankings import GAINS, RATIOS
from learner.training.budget import Budget
from weighting.estimators.attribute_choice import Coefficients

_FIGURES = (*RATIOS, "auc", "log_loss", "predicted_to_observed", "calibration_error")
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]()<>#|!&~"})


def model_card(
    evaluations: Mapping[str, bytes],
    *,
    step: int,
    num_samples: int,
    weighting: Mapping[str, str | float],
    attributes: Mapping[str, Coefficients],
    adapter: Mapping[str, str | int] | None = None,
    head: str = "",
    budget: Budget | None = None,
) -> bytes:
    """Return the card as Markdown; equal state gives equal bytes.

    Args:
        evaluations: task -> snapshot of its evaluation.
        step: number of steps taken.
        num_samples: in all steps.
        weighting: scheme and parameters of the weights.
        attributes: how much each counts.
        adapter: its tuning, its number of parameters and the digest of its base, where the encoder
            is one.
        head: family of the fine-tuned cross-encoder whose head the scores started from, if any.
        budget: of each list, where there is noise on the gradients.
    """
    lines = [
        "---",
        "pipeline_tag: text-ranking",
        "tags: [ranking, incremental-learning]",
        "---",
        "",
        "# Ranking model, one version of a stream",
        "",
        "Scores a query and an item by the probabilities of a click and of a purchase after it. "
        "Encoder and tokenizer are in the files that transformers reads; the whole score is served "
        "by Steelyard.",
        "",
        f"Learned in {step:,} steps from {num_samples:,} samples. "
        f"Weights: {', '.join(f'{k} {_text(str(v))}' for k, v in sorted(weighting.items()))}.",
        *_adapter(adapter or {}),
        *_head(head),
        *_privacy(budget),
        "",
        "## Evaluation",
        "",
        "Every sample was scored before it was learned. `shown_` is the order in which the shop "
        "showed the items, `_gain` ours less the shop's; both are corrected for position. Values "
        "in brackets are 95 % intervals.",
    ]
    for task, snapshot in sorted(evaluations.items()):
        evaluation = Evaluation()
        evaluation.restore(snapshot)
        lines += _task(task, evaluation)
    lines += _attributes(attributes)
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _task(task: str, evaluation: Evaluation) -> Iterator[str]:
    whole, latest = evaluation.block(), evaluation.latest_block()
    yield from ("", f"### {_text(task)}", "")
    if not whole.num_samples:
        yield "No samples yet."
        return
    first, second = whole.figures(), latest.figures()
    yield from _table(
        ("figure", f"all {whole.num_samples:,} samples", f"latest {latest.num_samples:,}"),
        [(f"`{n}`", _value(first, n), _value(second, n)) for n in _FIGURES if n in first],
    )
    for heading, dimension, order in (
        ("scenario", SCENARIO, ()),
        ("lists of the query before", FREQUENCY, FREQUENCIES),
    ):
        yield from _gains(whole, heading, dimension, order)


def _adapter(adapter: Mapping[str, str | int]) -> Iterator[str]:
    if adapter:
        yield ""
        yield (
            f"Encoder: adapter {_text(str(adapter['tuning']))}, {adapter['parameters']:,} "
            "parameters in `adapter_model.safetensors`; its base never moves: `model.safetensors`, "
            f"sha256 `{adapter['base_sha256']}`."
        )


def _head(family: str) -> Iterator[str]:
    if family:
        yield ""
        yield (
            f"Reads query and item together; its scores started from the head of a fine-tuned "
            f"cross-encoder ({_text(family)}), which is in `heads.safetensors`."
        )


def _privacy(budget: Budget | None) -> Iterator[str]:
    if budget is None:
        return
    yield from ("", "## Privacy", "")
    since = f" after step {budget.since_step:,}, and of nothing before" if budget.since_step else ""
    yield (
        f"The parameters of encoder and heads were learned with noise (DP-SGD){since}: per shown "
        f"list epsilon {budget.epsilon:.3g} at delta {budget.delta:g}, from at most "
        f"{budget.max_contributions:,} steps with noise {budget.noise_multiplier:g} times the "
        f"largest gradient of a list (norm {budget.max_norm:g}). {budget.num_dropped:,} "
        "contributions beyond that were dropped."
    )
    yield ""
    yield (
        "This takes as known how many samples each step has and how much each weighs, though the "
        "estimators that weigh them learn the same lists without noise. It does not cover what "
        "else is learned from these lists and is in this version: estimators of the "
        "weights, word counts, item priors, prototypes, attributes, client profiles, residuals of "
        "queries with their texts, stackers, and the figures below. A served score uses them, so "
        "the score has no such guarantee. A list without an id counts sample by sample."
    )


def _attributes(attributes: Mapping[str, Coefficients]) -> Iterator[str]:
    if not attributes:
        return
    yield from ("", "## Attributes", "")
    yield (
        "How much each counts in what is clicked: the coefficients of a conditional logit on the "
        "log lift of the item's value under any query, and under the words of the query beyond "
        "that. 0 is nothing, 1 all that the lift says."
    )
    yield ""
    rows = [
        (_text(name), *(f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in of.values()))
        for name, of in ((name, found.intervals()) for name, found in attributes.items())
    ]
    yield from _table(("attribute", *next(iter(attributes.values())).intervals()), rows)


def _gains(block: Block, heading: str, dimension: str, order: Sequence[str]) -> Iterator[str]:
    gains = block.gains(dimension)
    names = [name for name in order if name in gains] or list(gains)
    if names:
        yield ""
        rows = [(_text(name), *(_value(gains[name], each) for each in GAINS)) for name in names]
        yield from _table((heading, *(f"`{each}`" for each in GAINS)), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _value(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return ""
    value, low, high = (figures.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _text(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return " ".join(text.split()).translate(_SPECIAL)
