"""Int8 graph of an encoder for OpenVINO, quantised with fixed scales.

Post-training quantisation by NNCF: weights and activations of matrix products are int8, with scales
that texts of yours fix once. Scales that each batch makes anew (*dynamic* quantisation) would let a
text's vector depend on its neighbours, so they are not offered.

Legend: n texts, T tokens, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.engines.onnx_graph import INPUTS, OUTPUT
from learner.engines.openvino_import import nncf_for, openvino_for
from learner.errors import ModelUnsupported
from learner.passes.forward import Ids

_FORMAT = "--format openvino-int8"
GRAPH, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
_FEWEST_TEXTS = 2
LEAST_COSINE = 0.95
"""Of a text's int8 vector and its own in float32, over the texts of the calibration."""
_ALONE = 1e-3
"""Largest difference of a component between a text alone and beside others."""
_CHECKED = 32

Vectors = NDArray[np.float32]


def int8_files(graph: bytes, texts: Sequence[Ids]) -> dict[str, bytes]:
    """Return the files of a quantised graph, from the ONNX graph of an encoder.

    Args:
        graph: as `learner.engines.onnx_graph.onnx_graph` returns it.
        texts: token ids that the scales are fixed by, such as queries and items of the shop.

    Raises:
        ModelUnsupported: a library is missing, there are too few texts, or vectors of int8 are far
            from those of float32 or depend on what is beside a text.
    """
    openvino, nncf = openvino_for(_FORMAT), nncf_for(_FORMAT)
    if len(texts) < _FEWEST_TEXTS:
        raise ModelUnsupported(f"int8 needs texts to fix its scales by: got {len(texts)}")
    core = openvino.Core()
    plain = core.read_model(graph)
    quantized = nncf.quantize(
        plain,
        nncf.Dataset([_given([ids]) for ids in texts]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(texts),
    )
    _check(core, plain, quantized, texts[:_CHECKED])
    with tempfile.TemporaryDirectory(prefix="steelyard-int8-") as folder:
        path = Path(folder, GRAPH)
        openvino.save_model(quantized, path, compress_to_fp16=False)
        return {name: Path(folder, name).read_bytes() for name in (GRAPH, WEIGHTS)}


def _check(core: Any, plain: Any, quantized: Any, texts: Sequence[Ids]) -> None:
    """Refuse a graph whose vectors are far from float32's, or not the texts' own."""
    one, other = (core.compile_model(model, "CPU") for model in (plain, quantized))
    alone = np.concatenate([_vectors(other, [ids]) for ids in texts])
    cosine = float((alone * _vectors(one, texts)).sum(-1).min())
    if not cosine >= LEAST_COSINE:
        raise ModelUnsupported(
            f"int8 gives other vectors than float32: a cosine of {cosine:.3f}, expected at least "
            f"{LEAST_COSINE}. Nothing was kept."
        )
    apart = float(np.abs(alone - _vectors(other, texts)).max())
    if not apart <= _ALONE:
        raise ModelUnsupported(
            f"int8: a text's vector depends on what is beside it, by {apart:.2g}; expected at "
            f"most {_ALONE}. Nothing was kept."
        )


def _vectors(compiled: Any, texts: Sequence[Ids]) -> Vectors:
    return np.asarray(compiled(_given(texts))[OUTPUT], dtype=np.float32)


def _given(texts: Sequence[Ids]) -> Mapping[str, NDArray[np.int64]]:
    """Return ids and mask (n, T) of texts, padded on the right; padding is never seen."""
    longest = max(map(len, texts))
    ids, mask = (np.zeros((len(texts), longest), dtype=np.int64) for _ in INPUTS)
    for row, own in enumerate(texts):
        ids[row, : len(own)] = own
        mask[row, : len(own)] = 1
    return dict(zip(INPUTS, (ids, mask), strict=True))
