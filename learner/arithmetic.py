"""Arithmetic of torch on a CPU: equal inputs give equal bits, in any process and any batch.

What would break that, and what is done about it:

- Gradients of index expressions are added up by atomics, in any order, where several threads share
  the work: torch's deterministic algorithms.
- Matrix products choose a kernel by the number of rows, and kernels add up in different orders, so
  that a text's vector would depend on its neighbours in the batch: MKL's strict reproducibility.
- It does not hold for a single row, nor for up to three on processors that are not Intel's:
  `product` adds rows. (The encoder multiplies eight tokens or more, see `passes.packing`.)
- oneDNN, which `linear` takes where MKL has no kernels of 512 bits, gives a row the same bits for
  any number of rows from eight on. In bfloat16 it may not: see `row_counts`.
- The number of threads belongs to a thread, not to the process, and torch takes all cores by
  default: whoever trains calls `use` first, in the thread that trains.

A learner and a server in one process use one number of threads.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional

from learner import row_counts
from learner.errors import ThreadsRefused

# MKL, cuBLAS and oneDNN read these at their first call, so before anything is calculated
os.environ["MKL_CBWR"] = "AUTO,STRICT"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Kernels that oneDNN keeps: by default so many that those of all lengths are half a gigabyte
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

#: Products of fewer rows may have kernels of their own.
_LEAST_ROWS = 8
_CPUINFO = Path("/proc/cpuinfo")


def use(threads: int, device: str = "cpu") -> None:
    """Calculate deterministically from here on, with so many threads in the calling thread.

    On another device than a CPU as far as its kernels can, and with TF32 products.
    """
    on_cpu = device == "cpu"
    torch.use_deterministic_algorithms(True, warn_only=not on_cpu)
    if not on_cpu and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return rows (n, D) times a matrix (D, K); a row's bits are the same for any n."""
    number = len(rows)
    if number >= _LEAST_ROWS:
        return rows @ matrix
    missing = rows.new_zeros(_LEAST_ROWS - number, rows.shape[1])
    return (torch.cat([rows, missing]) @ matrix)[:number]


@cache
def by_onednn() -> bool:
    """Return whether `linear` is oneDNN's: MKL has its AVX-512 kernels for Intel's processors."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return wide and built and _vendor() != "GenuineIntel"


def _vendor() -> str:
    """Return the maker of the processor as Linux names it, empty where it does not."""
    with suppress(OSError):
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "vendor_id":
                return value.strip()
    return ""


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return rows (..., D) times a weight (K, D) transposed, plus a bias (K,).

    On a CPU in float32 it is oneDNN's product where that is the faster one (`by_onednn`); in
    bfloat16, under autocast too, a row's bits are the same for any number of rows.
    """
    if rows.device.type != "cpu":
        return functional.linear(rows, weight, bias)
    lowered = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if lowered or rows.dtype == weight.dtype == torch.bfloat16:
        return row_counts.linear(rows, weight, bias)
    if not rows.dtype == weight.dtype == torch.float32 or not by_onednn():
        return functional.linear(rows, weight, bias)
    found: torch.Tensor = torch.ops.aten.mkldnn_linear(rows.to_mkldnn(), weight, bias).to_dense()
    return found


def check_environment(threads: int) -> None:
    """Refuse an environment in which OpenMP may take fewer threads than it was told.

    Raises:
        ThreadsRefused: names the variable, and what to do.
    """
    if threads == 1:
        return
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() in ("true", "1"):
        raise ThreadsRefused(threads, "OMP_DYNAMIC", "adapts their number to the load")
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    if limit.isdecimal() and int(limit) < threads:
        raise ThreadsRefused(threads, "OMP_THREAD_LIMIT", f"allows {limit} in the whole process")
