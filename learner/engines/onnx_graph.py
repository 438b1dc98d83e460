"""ONNX graph of an encoder, with pooling and normalisation, compared with torch before use.

Legend: n texts, T tokens, D width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learner.errors import ModelUnsupported
from learner.extras import needed_by
from learner.passes.pooling import Pool

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
TOLERANCE = 1e-4
"""Largest difference of a component of a unit vector."""
_MAX_BYTES = 2_000_000_000
"""A file of protobuf has less than 2 GiB."""


class _Embedder(nn.Module):
    """Token ids and mask (n, T) to unit vectors (n, D)."""

    def __init__(self, model: Any, pool: Pool) -> None:
        super().__init__()
        self.model = model
        self._pool = pool

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return self._pool(output.last_hidden_state, attention_mask)


def onnx_graph(model: Any, pool: Pool, *, max_tokens: int) -> bytes:
    """Return the file of a graph from `INPUTS` (n, T), int64, to `OUTPUT` (n, D).

    Args:
        model: as transformers loads it, padded on the right.
        pool: of its token states.
        max_tokens: longest text that the comparison with torch is made on.

    Raises:
        ModelUnsupported: a library is missing, the model is too large, or the graph gives other
            vectors than torch.
    """
    with needed_by("--format onnx", ModelUnsupported):
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    if sum(p.nbytes for p in model.parameters()) > _MAX_BYTES:
        raise ModelUnsupported("the encoder has more than 2 GB, which one ONNX file cannot hold")
    embedder = _Embedder(model.eval(), pool).eval()
    try:
        graph = _traced(embedder, next(_texts(model, max_tokens)))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        difference = max(_differences(embedder, session, max_tokens))
    # The libraries declare no common error for a model that they cannot express
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be written as ONNX: {reason}"
        ) from error
    if not difference <= TOLERANCE:
        raise ModelUnsupported(
            f"{type(model).__name__}: its ONNX graph gives other vectors than torch, by "
            f"{difference:.2g}; expected at most {TOLERANCE}. Nothing was kept."
        )
    return graph


def _traced(embedder: nn.Module, example: tuple[Tensor, Tensor]) -> bytes:
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            embedder,
            example,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _differences(embedder: nn.Module, session: Any, max_tokens: int) -> Iterator[float]:
    for ids, mask in _texts(embedder.model, max_tokens):
        with torch.no_grad():
            own = embedder(ids, mask).numpy()
        (found,) = session.run(
            [OUTPUT], dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        )
        yield float(np.abs(found - own).max())


def _texts(model: Any, max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and masks (n, T) of invented texts of different lengths, padded on the right."""
    vocabulary, padding = int(model.config.vocab_size), model.config.pad_token_id or 0
    for lengths in (
        (5, 2, 7),
        (max_tokens, 1, 3, max_tokens // 2 + 1),
        (max_tokens,),
        (1,),
        (3, 2),
    ):
        numbers = torch.arange(sum(lengths)) * 37 + 11
        ids = torch.where(numbers % vocabulary == padding, numbers + 1, numbers) % vocabulary
        rows = list(torch.split(ids, list(lengths)))
        masks = [torch.ones_like(row) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        yield pad(rows, batch_first=True, padding_value=padding), pad(masks, batch_first=True)
