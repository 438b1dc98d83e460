"""The same weights under sentence-transformers, in a process with its peers' path."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.answering.questions import Question, questions

Array = NDArray[np.float64]
HEAD = "head.json"
"""File beside the encoder: weight and bias of the cross-encoder."""
MAX_TOKENS = 160
_CALIBRATION_SEED = 5_000


class CrossEncoder:
    """CrossEncoder: encoder, mean of the tokens, normalisation, and the head as a Dense."""

    def __init__(self, folder: Path, kind: str, threads: int) -> None:
        """Load it; ``openvino_int8`` is exported and quantised first.

        Args:
            folder: as `benchmarks.answering.model` writes it.
            kind: ``torch``, ``bfloat16`` of torch, or ``openvino_int8``.
            threads: of either.
        """
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(threads)
        self._torch = torch
        plain = folder / "plain"
        self._head = json.loads((plain / HEAD).read_text())
        if kind == "openvino_int8":
            self._model = self._quantised(plain, folder / "int8", threads)
        else:
            self._model = self._made(plain, "torch", {})
            if kind == "bfloat16":
                self._model.bfloat16()

    def cold(self, question: Question) -> Array:
        """Rank; nothing of a pair can be kept."""
        pairs = [(question.query, title) for title in question.titles]
        found: Array = self._model.predict(pairs, show_progress_bar=False)
        return found

    warm = logits = cold

    def _made(self, path: Path, backend: str, model_kwargs: dict[str, Any]) -> Any:
        st: Any = importlib.import_module("sentence_transformers")
        base: Any = importlib.import_module("sentence_transformers.base.modules")
        own: Any = importlib.import_module("sentence_transformers.sentence_transformer.modules")
        torch = self._torch
        transformer = base.Transformer(
            str(path), backend=backend, max_seq_length=MAX_TOKENS, model_kwargs=model_kwargs
        )
        width = len(self._head["weight"])
        dense = base.Dense(
            width, 1, activation_function=torch.nn.Identity(), module_output_name="scores"
        )
        with torch.no_grad():
            dense.linear.weight.copy_(torch.tensor([self._head["weight"]]))
            dense.linear.bias.fill_(self._head["bias"])
        modules = [transformer, own.Pooling(width, "mean"), base.Normalize(), dense]
        model = st.CrossEncoder(modules=modules)
        model.activation_fn = torch.nn.Identity()
        return model

    def _quantised(self, plain: Path, folder: Path, threads: int) -> Any:
        """Quantise as `export_static_quantized_openvino_model` does, on pairs of our own."""
        intel: Any = importlib.import_module("optimum.intel.openvino")
        nncf: Any = importlib.import_module("nncf")
        config = {"ov_config": {"INFERENCE_NUM_THREADS": threads}}
        exported = self._made(plain, "openvino", config)
        rows = []
        for own in questions(3, titles=100, seed=_CALIBRATION_SEED):
            for title in own.titles:
                row = dict(exported.tokenizer(own.query, title, return_tensors="np"))
                rows.append({**row, "token_type_ids": np.zeros_like(row["input_ids"])})
        quantizer = intel.OVQuantizer.from_pretrained(exported.transformers_model)
        shutil.copytree(plain, folder)
        quantizer.quantize(
            nncf.Dataset(rows),
            save_directory=folder,
            ov_config=intel.OVConfig(quantization_config=intel.OVQuantizationConfig()),
        )
        return self._made(folder, "openvino", config)


class BiEncoder:
    """SentenceTransformer, and the vectors of the titles of the last question."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load it."""
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(threads)
        st: Any = importlib.import_module("sentence_transformers")
        base: Any = importlib.import_module("sentence_transformers.base.modules")
        own: Any = importlib.import_module("sentence_transformers.sentence_transformer.modules")
        transformer = base.Transformer(str(folder / "plain"), max_seq_length=MAX_TOKENS)
        pooling = own.Pooling(transformer.get_embedding_dimension(), "mean")
        self._model = st.SentenceTransformer(modules=[transformer, pooling, base.Normalize()])
        self._kept: NDArray[np.float32]

    def cold(self, question: Question) -> Array:
        """Encode the query and the titles."""
        vectors = self._encoded([question.query, *question.titles])
        self._kept = vectors[1:]
        found: Array = vectors[1:] @ vectors[0]
        return found

    def warm(self, question: Question) -> Array:
        """Encode the query; the titles are those of the question before."""
        found: Array = self._kept @ self._encoded([question.query])[0]
        return found

    logits = cold

    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._model.encode(list(texts), show_progress_bar=False)
        return found
