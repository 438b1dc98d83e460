"""OpenVINO runs an encoder on a CPU: in float32, bfloat16, or with weights of 8-bit integers.

Under ``int8`` each row of a matrix has one scale. What enters a product is rounded to 8 bits as it
comes, by a scale for each `_GROUP` numbers of a token's row; so a text's states depend on nothing
beside it, and no texts fix any scale. It is OpenVINO's *dynamic quantisation* of matrices with
compressed weights.

Legend: n texts, T tokens, D width.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.engines.openvino_import import openvino_for
from learner.errors import ModelUnsupported
from learner.passes.graph_passes import Forward, Run, Template

NAME = "openvino"
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
_GROUP = 64
_LEVELS = 127
_LEAST_WIDTH = 32
"""Narrower matrices, such as those of LoRA, stay in float32."""
_TINY = 1e-9


class OpenVino:
    """OpenVINO, with as many threads as torch has when a graph is compiled."""

    name: str = NAME

    def __init__(self, precision: str) -> None:
        """Take the precision of products: float32, bfloat16 or int8.

        Raises:
            ModelUnsupported: OpenVINO is not installed, or the processor has no such products.
        """
        openvino = openvino_for("serving.engine: openvino")
        self.exact = precision == "float32"
        self._precision = precision
        self._core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in self._core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise ModelUnsupported(
                "serving.precision: OpenVINO finds no products of bfloat16 in this processor; "
                "use float32 or int8"
            )

    def template(self, forward: Forward, example: Sequence[Any]) -> Template:
        """Convert a function by one trace; see `learner.passes.graph_passes.Engine`."""
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        rows, mask, parameters = example

        def flat(given: Tensor, mask: Tensor, *values: Tensor) -> Tensor:
            return forward(given, mask, values)

        # `openvino.convert_model` does this too, but sets the root logger to errors meanwhile,
        # and for good where it fails; it also reports, if others imported the library before us
        frontend = FrontEndManager().load_by_framework("pytorch")
        trace: Any = torch.jit.trace  # has no types
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are compared: checked by `GraphPasses`
            inputs = (rows, mask, *parameters)
            traced = trace(flat, inputs, check_trace=False)
            decoder = TorchScriptPythonDecoder(traced, example_input=inputs)
            graph = frontend.convert(frontend.load(decoder))
        return OpenVinoTemplate(self._core, graph, self._precision, len(parameters))


class OpenVinoTemplate:
    """A graph of OpenVINO that has an input for each parameter."""

    def __init__(self, core: Any, graph: Any, precision: str, num_parameters: int) -> None:
        """Take a graph of rows, mask and parameters, in this order."""
        given = graph.get_parameters()
        if len(given) != num_parameters + 2:
            raise ValueError(f"got {len(given) - 2} parameters, expected {num_parameters}")
        self._core, self._graph, self._precision = core, graph, precision
        self.used: Sequence[int] = [
            place for place, node in enumerate(given[2:]) if node.output(0).get_target_inputs()
        ]

    def compiled(self, parameters: Sequence[Tensor]) -> Run:
        """Return the graph with these values, which it may read where they lie."""
        import openvino

        graph = self._graph.clone()
        for node, values in zip(graph.get_parameters()[2:], parameters, strict=True):
            node.set_partial_shape(openvino.PartialShape(list(values.shape)))
        graph.validate_nodes_and_infer_types()
        for node, values in zip(graph.get_parameters()[2:], parameters, strict=True):
            targets = node.output(0).get_target_inputs()
            if targets:
                source = self._constant(values.numpy(), targets)
                for target in targets:
                    target.replace_source_output(source.output(0))
            graph.remove_parameter(node)
        graph.validate_nodes_and_infer_types()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if self._precision == "int8" else 0,
        }
        return _Compiled(self._core.compile_model(graph, "CPU", settings))

    def _constant(self, values: NDArray[np.float32], targets: Any) -> Any:
        """Return a node with these values, in 8 bits if they are the matrix of products."""
        from openvino import opset13

        if self._precision != "int8" or not _is_matrix(values, targets):
            return opset13.constant(values, shared_memory=True)
        step = np.maximum(np.abs(values).max(1, keepdims=True), _TINY) / _LEVELS
        rounded = np.rint(values / step).astype(np.int8)
        wide = opset13.convert(opset13.constant(rounded), np.float32)
        return opset13.multiply(wide, opset13.constant(step.astype(np.float32)))


def _is_matrix(values: NDArray[np.float32], targets: Any) -> bool:
    """Return whether values (K, D) are the weight of products x W^T of tokens alone."""
    if values.ndim != 2 or min(values.shape) < _LEAST_WIDTH:
        return False
    return all(map(_is_of_tokens, targets))


def _is_of_tokens(target: Any) -> bool:
    """Return whether an input is W of x W^T, x of as many tokens as a pass has."""
    node = target.get_node()
    return bool(
        node.get_type_name() == "MatMul"
        and target.get_index() == 1
        and node.get_attributes()["transpose_b"]
        and node.input_value(0).get_partial_shape().is_dynamic
    )


class _Compiled:
    """A compiled graph; as many requests of it as threads have asked at once."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: deque[Any] = deque()

    def __call__(self, given: Tensor, mask: Tensor) -> Tensor:
        """Return hidden states (n, T, D)."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        found = request.infer([given.numpy(), mask.numpy()], share_inputs=True)
        hidden = torch.from_numpy(np.array(found[0], dtype=np.float32))
        self._idle.append(request)
        return hidden
