"""A GPU pretended on a CPU: where its host would wait for it, and what was left behind there.

Tensors lie on it that `learner.passes.device.moved` sent there, that were made with its device,
and all that is calculated from these. A GPU goes on by itself until somebody asks for a number of a
tensor there, for a size that depends on its numbers, or copies from memory that is not pinned. On a
CPU these go unnoticed, so they are looked for in every call of torch, from Python and from within;
not in what checkpoints run again in a backward pass, where torch lets nobody watch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner import transfer
from learner.passes import device

DEVICE = torch.device("cpu", 0)
"""What a tensor there says that it is on; one of the host says ``cpu``, without a number."""
_ASKED = {
    "__array__",
    "__bool__",
    "__contains__",
    "__float__",
    "__format__",
    "__index__",
    "__int__",
    "__repr__",
    "cpu",
    "item",
    "numpy",
    "tolist",
}
"""Methods of a tensor whose answer is on the host."""
_SIZED = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
"""Operations that a GPU's host waits for: a number, or a result of a size that it must know."""
_MADE_OF_NUMBERS = {"tensor", "as_tensor", "from_numpy"}
_TORCH, _OWN = str(Path(torch.__file__).parent), __file__
_Arguments: TypeAlias = tuple[Any, ...]


class Pretended:
    """Everything that torch is asked for while this is entered, watched.

    Example:
        with Pretended(model.parameters()) as gpu:
            step()
        assert (gpu.reads, gpu.waits) == (1, [])

    Attributes:
        reads: copies to the host by `learner.transfer.to_host`.
        waits: every other call that a GPU's host would wait for, or that a GPU would refuse, with
            the line that made it.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        """Begin with tensors that lie on the device."""
        self.reads = 0
        self.waits: list[str] = []
        self._there: dict[int, object] = {}  # what was there is kept, so that its id stays its own
        self._within: list[bool] = []  # of the calls that run: whether they are the device's
        self._stack = ExitStack()
        self.lay(there)

    def lay(self, tensors: Iterable[Tensor]) -> None:
        """Let tensors lie on the device."""
        for tensor in tensors:
            key, kept = _memory(tensor)
            self._there[key] = kept

    def has(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies on the device."""
        return _memory(tensor)[0] in self._there

    def __enter__(self) -> Pretended:
        """Watch from here on."""
        self._stack.enter_context(_Calls(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Watch no longer."""
        self._stack.close()

    def call(
        self, function: Callable[..., Any], given: _Arguments, named: Mapping[str, Any]
    ) -> Any:
        """Run what Python called; note what waits."""
        name, frame = getattr(function, "__name__", ""), sys._getframe(2)
        tensors = _tensors(given, named)
        there = [self.has(tensor) for tensor in tensors]
        if name == "__get__":
            found = function(*given, **named)
            asks = not frame.f_code.co_filename.startswith(_TORCH)  # torch compares what it gives
            return DEVICE if isinstance(found, torch.device) and any(there) and asks else found
        if name in _ASKED and any(there):
            if frame.f_code is _code(transfer.to_host):
                self.reads += 1
                with torch._C._DisableTorchDispatch():  # so that the copy is the host's
                    return function(*given, **named).clone()
            self._note(name)
        target = self._target(given, named) if name == "to" else named.get("device")
        made = target == DEVICE
        if name == "to" and target is not None:
            if any(there) and not made and not frame.f_code.co_filename.startswith(_TORCH):
                self._note("to the host")
            if made and not all(there) and frame.f_code is not _code(device.moved):
                self._note("to the device from memory that is not pinned")
        elif made and name in _MADE_OF_NUMBERS:
            self._note(f"{name} on the device, of numbers of the host")
        self._within.append(any(there) or made)
        try:
            found = function(*given, **named)
        finally:
            self._within.pop()
        if made:
            found = found.clone() if found is given[0] else found
            self.lay(_tensors(found))
        return found

    def operation(self, operation: Any, given: _Arguments, named: Mapping[str, Any]) -> Any:
        """Run what torch calls within; its results lie where its tensors do."""
        name = operation._schema.name.partition("::")[2]
        tensors = _tensors(given, named)
        there = [self.has(tensor) for tensor in tensors]
        if any(there):
            chosen = _tensors(given[1]) if name.startswith("index") and len(given) > 1 else []
            masks = any(own.dtype == torch.bool for own in chosen)
            if name in _SIZED or masks:
                self._note(f"{name} of a mask" if masks else name)
            left = [t for t, own in zip(tensors, there, strict=True) if t.dim() and not own]
            if left:
                self._note(f"{name} of tensors on the device and tensors of the host")
        found = operation(*given, **named)
        if any(there) or (not tensors and self._within and self._within[-1]):
            self.lay(_tensors(found))
        return found

    def _target(self, given: _Arguments, named: Mapping[str, Any]) -> torch.device | None:
        """Return the device that `Tensor.to` was given, None if none."""
        for own in (*given[1:], *named.values()):
            if isinstance(own, Tensor):
                return DEVICE if self.has(own) else own.device
            if isinstance(own, torch.device | str):
                return torch.device(own)
        return None

    def _note(self, what: str) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _OWN)):
            frame = frame.f_back
        where = "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self.waits.append(f"{what} at {where}")


class CountedReads(TorchFunctionMode):
    """Count of the copies by `learner.transfer.to_host` from a GPU that is there.

    Attributes:
        number: of them.
    """

    def __init__(self) -> None:
        """Start at none."""
        super().__init__()
        self.number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run what Python called; count what copies to pinned memory."""
        if sys._getframe(1).f_code is _code(transfer._pinned):
            self.number += getattr(func, "__name__", "") == "copy_"
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Calls of torch from Python."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._device.call(func, args, kwargs or {})


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that torch calls within, those of a backward pass among them."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._device.operation(func, args, kwargs or {})


def _memory(tensor: Tensor) -> tuple[int, object]:
    """Return what tells a tensor's memory from all other, and what keeps it."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # of another library, such as oneDNN
        return id(tensor), tensor
    return storage._cdata, storage


def _tensors(*given: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _code(function: Callable[..., Any]) -> CodeType:
    return function.__code__
