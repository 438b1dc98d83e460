"""Learning from a file, beside sentence-transformers' trainer: quality and seconds of each.

    python -m benchmarks.fit --dataset banking77|msrd_movie_search --source DIR [--json]

Both begin with the same encoder (minilm-l6) and the same training queries, take as many epochs, cut
texts at the same number of tokens, and rank the same queries, none of which was learned from. Ours
is the code of `steelyard fit`, under the default settings but for `--set`. Theirs trains the whole
encoder on the positive pairs (MultipleNegativesRankingLoss) and on all pairs with their labels
(CoSENTLoss), with their defaults (AdamW, 5e-5, linear decay; batches of 32 positives, 64 pairs).
NDCG@10 (gain 2^grade - 1) of ours is of the encoder's cosine alone and of the served score;
differences are paired by query, with a 95 % bootstrap interval.

Banking77: every question is a list of its intent and nine others, drawn by the seed; judged are
test questions over all 77. Movie search: the marked lists of folds 0 to 7; judged is fold 9.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_data.answers import SOURCES, judged_questions, title
from benchmarks.learning_data.dataset import JudgedQuery, judged_query
from benchmarks.learning_data.movies import load_movies
from benchmarks.learning_data.table import read_table
from benchmarks.learning_judging.metrics import ndcg
from benchmarks.learning_judging.zero_shot import Embedder, untrained
from benchmarks.peers.folder import installed
from deploy.demo.judge import interval
from deploy.fitting import judging
from deploy.fitting.columns import find_columns
from deploy.fitting.epochs import Plan, fit
from deploy.fitting.examples import Reading, read_examples
from deploy.fitting.split import split
from deploy.settings.load import load
from deploy.settings.tree import Settings
from deploy.tables.rows import open_table
from deploy.tables.values import LeftOut
from learner.encoder.load import load_pretrained
from learner.request import Document, ScoringInput

Array = NDArray[np.float64]
_NEGATIVES = 9
_AS_OF_US = 1_790_000_000_000_000
LOSSES = ("mnrl", "cosent")


class Data:
    """Training rows, judged queries, and texts of items."""

    def __init__(
        self, rows: list[dict[str, Any]], judged: list[JudgedQuery], texts: Mapping[str, str]
    ) -> None:
        """Take them."""
        self.rows = rows
        self.judged = judged
        self.texts = texts


def banking(folder: Path, *, lists: int, judged: int, seed: int) -> Data:
    """Return pairs of question and intent, `lists` questions of them."""
    source = SOURCES["banking77"]
    table = read_table(folder / "train.parquet", source.columns)
    questions = list(zip(*(table[column] for column in source.columns), strict=True))
    intents = sorted(set(table[source.columns[1]]))
    draw = np.random.Generator(np.random.PCG64(seed))
    rows = []
    for place in draw.permutation(len(questions))[:lists].tolist():
        question, right = questions[place]
        others = [intent for intent in intents if intent != right]
        chosen = draw.permutation(len(others))[:_NEGATIVES].tolist()
        for intent in (right, *(others[i] for i in chosen)):
            rows.append(_row(f"b{place}", question, intent, title(intent), intent == right))
    asked = dict(judged_questions(folder, source, choosing=False))
    pool = [
        judged_query("unseen_queries", text, {intent: float(intent == own) for intent in intents})
        for text, own in asked.items()
    ]
    order = draw.permutation(len(pool))[:judged].tolist()
    return Data(rows, [pool[i] for i in order], {intent: title(intent) for intent in intents})


def movies(folder: Path, *, lists: int, judged: int, seed: int) -> Data:
    """Return marked lists, the first `lists` of the seed's order."""
    dataset = load_movies(folder, seed=seed, choosing=False)
    rows = [
        _row(shown.id, shown.query, item, dataset.items[item].text, clicked)
        for shown in dataset.lists[:lists]
        for item, clicked in zip(shown.items, shown.clicked, strict=True)
    ]
    texts = {item: own.text for item, own in dataset.items.items()}
    return Data(rows, list(dataset.judged)[:judged], texts)


def _row(list_id: str, query: str, item: str, text: str, right: bool) -> dict[str, Any]:
    return {"list_id": list_id, "query": query, "item_id": item, "text": text, "label": int(right)}


def ours(data: Data, settings: Settings, file: Path, epochs: int) -> tuple[dict[str, Array], float]:
    """Learn the rows as `steelyard fit` does; return NDCG@10 (Q,) of each ranking, and seconds."""
    file.write_text("".join(json.dumps(row) + "\n" for row in data.rows), encoding="utf-8")
    began = time.perf_counter()
    table = open_table(file)
    found = read_examples(
        table,
        find_columns(file, table.columns),
        Reading(),
        LeftOut(file.name, skip=True),
        as_of_us=_AS_OF_US,
    )
    parts = split(found.lists, "query", dev=0, test=0, seed=0)
    plan = Plan(epochs=epochs, patience=epochs, seed=0, file=file.name)
    fitted = fit(settings, parts, plan)
    seconds = time.perf_counter() - began
    ranker = fitted.trainer.ranker
    encoder = Embedder(ranker.encoder, ranker.texts)
    served = []
    with judging.loaded(fitted.trainer.files(), threads=settings.learner.threads) as scorer:
        for own in data.judged:
            documents = tuple(Document(id=item, text=data.texts[item]) for item in own.items)
            request = ScoringInput(query=own.query, documents=documents)
            served.append(ndcg(scorer.score([request])[0].score, own.grades))
    return {"encoder": by_cosine(data, encoder), "served": np.array(served)}, seconds


def by_cosine(data: Data, encoder: Embedder) -> Array:
    """Return NDCG@10 (Q,) of an encoder's cosines."""
    return np.array(
        [
            ndcg(encoder.cosines(own.query, [data.texts[i] for i in own.items]), own.grades)
            for own in data.judged
        ]
    )


def theirs(
    data: Data, model: Path, loss: str, epochs: int, settings: Settings
) -> tuple[Array, float]:
    """Fine-tune in a process of its own; return NDCG@10 (Q,) of its cosines, and seconds."""
    asked = {
        "model": str(model),
        "loss": loss,
        "epochs": epochs,
        "max_tokens": settings.learner.max_tokens,
        "threads": settings.learner.threads,
        "pairs": [[row["query"], row["text"], row["label"]] for row in data.rows],
        "judged": [[own.query, [data.texts[i] for i in own.items]] for own in data.judged],
    }
    (model / "asked.json").write_text(json.dumps(asked))
    path = os.pathsep.join([str(installed("fit")), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.peers.fine_tune", str(model)]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    answer = json.loads((model / "answer.json").read_text())
    rankings = zip(answer["cosines"], data.judged, strict=True)
    return np.array([ndcg(np.array(c), own.grades) for c, own in rankings]), answer["seconds"]


def report(found: Mapping[str, Array], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return means, seconds, and differences of ours from each of theirs."""
    differences = {
        f"{own} - {peer}": list(interval(found[own] - found[peer]))
        for own in ("encoder", "served")
        for peer in found
        if peer not in ("encoder", "served")
    }
    return {
        "ndcg": {name: round(float(values.mean()), 4) for name, values in found.items()},
        "queries": len(found["encoder"]),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "differences": differences,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--dataset", choices=("banking77", "msrd_movie_search"), required=True)
    parser.add_argument("--source", type=Path, required=True, help="folder of its Parquet files")
    parser.add_argument("--lists", type=int, default=1000, help="training lists")
    parser.add_argument("--judged", type=int, default=400, help="queries to rank")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", default=",".join(LOSSES), help="of theirs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="one JSON object only")
    given = parser.parse_args(words)
    settings = load(None, {}, dict(word.split("=", 1) for word in given.set))
    read = banking if given.dataset == "banking77" else movies
    data = read(given.source, lists=given.lists, judged=given.judged, seed=given.seed)
    found: dict[str, Array] = {"zero_shot": by_cosine(data, untrained(settings.learner))}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        own, seconds["steelyard fit"] = ours(
            data, settings, Path(folder, "pairs.jsonl"), given.epochs
        )
        found |= own
        pretrained = load_pretrained(settings.learner.model, download=False)
        pretrained.model.save_pretrained(folder)
        pretrained.tokenizer.save_pretrained(folder)
        for loss in given.losses.split(","):
            name = f"sentence_transformers {loss}"
            found[name], seconds[name] = theirs(data, Path(folder), loss, given.epochs, settings)
    result = {"dataset": given.dataset, "lists": given.lists, "epochs": given.epochs}
    result |= report(found, seconds)
    if not given.json:
        for key in ("ndcg", "seconds", "differences"):
            print(key, result[key], file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
