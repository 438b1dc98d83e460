"""Fine-tune an encoder with sentence-transformers' trainer, as a process with its peers' path.

Reads ``asked.json`` of a folder that holds the encoder, writes ``answer.json`` there.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Train, then write the cosines of each judged query with its texts, and the seconds."""
    datasets: Any = importlib.import_module("datasets")
    st: Any = importlib.import_module("sentence_transformers")
    modules: Any = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    losses: Any = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    torch: Any = importlib.import_module("torch")
    asked = json.loads((folder / "asked.json").read_text())
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    began = time.perf_counter()
    transformer = modules.Transformer(asked["model"], max_seq_length=asked["max_tokens"])
    pooling = modules.Pooling(transformer.get_embedding_dimension(), "mean")
    model = st.SentenceTransformer(modules=[transformer, pooling, modules.Normalize()])
    pairs, is_mnrl = asked["pairs"], asked["loss"] == "mnrl"
    if is_mnrl:
        pairs = [pair for pair in pairs if pair[2] == 1]
    columns: dict[str, list[Any]] = {
        "query": [query for query, _, _ in pairs],
        "text": [text for _, text, _ in pairs],
    }
    if not is_mnrl:
        columns["score"] = [float(label) for _, _, label in pairs]
    loss = losses.MultipleNegativesRankingLoss if is_mnrl else losses.CoSENTLoss
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=asked["epochs"],
        per_device_train_batch_size=32 if is_mnrl else 64,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )
    trainer = st.SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=loss(model),
    )
    trainer.train()
    seconds = time.perf_counter() - began
    model.eval()
    wanted = list(dict.fromkeys(t for query, texts in asked["judged"] for t in (query, *texts)))
    vectors = model.encode(wanted, convert_to_numpy=True, show_progress_bar=False)
    row = {text: vector for text, vector in zip(wanted, vectors, strict=True)}
    cosines = [
        [float(row[query] @ row[text]) for text in texts] for query, texts in asked["judged"]
    ]
    (folder / "answer.json").write_text(json.dumps({"cosines": cosines, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
