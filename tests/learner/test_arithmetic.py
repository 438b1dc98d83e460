"""Steps give equal bits with any number of threads that the settings allow, beside a server too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from learner import arithmetic
from learner.artifact import Document, Scorer, ScoringInput, Store
from learner.config import LearnerConfig
from learner.errors import ThreadsRefused
from learner.fingerprint import fingerprint
from learner.parts.metric import QueryMetric, unit
from learner.trainer import Trainer
from tests.learner.resumed import digests
from tests.learner.training import lists, published, reader, text, trainer
from weighting.constraints import SettingError
from weighting.sample import Sample


def wide(threads: int, **changes: Any) -> Trainer:
    """A learner with the width of the default encoder."""
    return trainer(model="random:1x384", threads=threads, **changes)


def batch(number: int) -> list[Sample]:
    """At least the 320 samples that a step takes by default."""
    return lists(64, seed=number, start=64 * number)


@pytest.mark.parametrize(
    ("threads", "changes"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (2, {"interaction": "cross_encoder"}),
        (2, {"loss": "listwise", "tuning": "top:1"}),
    ],
)
def test_the_same_step_gives_the_same_bits_again(threads: int, changes: dict[str, str]) -> None:
    own = wide(threads, **changes)
    start, ends = own.files(), set()
    for _ in range(3):
        own.restore(reader(start))
        own.step(batch(0))
        ends.add(digests(own.files())["training/optimizer.safetensors"])
    assert len(ends) == 1


def in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_step_has_the_threads_of_its_settings_whatever_others_set(tmp_path: Path) -> None:
    own = wide(2)
    seen = []
    own.ranker.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    version = published(own, tmp_path)
    Store(tmp_path).load(version, threads=1)
    own.step(batch(0))
    in_a_thread(lambda: torch.set_num_threads(4))
    in_a_thread(lambda: own.step(batch(1)))
    assert seen == [2, 2]


def test_a_server_in_the_process_changes_no_bit_of_a_step(tmp_path: Path) -> None:
    own = wide(2, tuning="top:1")
    own.step(batch(0))
    start = own.files()
    own.step(batch(1))
    expected = digests(own.files())
    own.restore(reader(start))
    store = Store(tmp_path)
    version = published(own, tmp_path)
    scoring, stopped = threading.Event(), threading.Event()

    def serve() -> None:
        scorer: Scorer = store.load(version, threads=2)
        documents = tuple(Document(id=f"{i}", text=text(i)) for i in range(40))
        number = 0
        while not stopped.is_set():
            scorer.score([ScoringInput(query=f"red {number}", documents=documents)])
            number += 1
            scoring.set()

    server = threading.Thread(target=serve)
    server.start()
    scoring.wait()
    own.step(batch(1))
    stopped.set()
    server.join()
    assert digests(own.files()) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_the_fingerprint_has_the_threads_of_the_thread_that_trains(threads: int) -> None:
    wide(threads)
    assert fingerprint()["threads"] == threads


@pytest.mark.parametrize("width", [24, 384])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_of_a_product_has_the_same_bits_beside_any_others(
    width: int, transposed: bool
) -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 384, generator=draw)
    shape = (width, 384) if transposed else (384, width)
    matrix = torch.randn(shape, generator=draw)
    matrix = matrix.T if transposed else matrix
    together = arithmetic.product(rows, matrix)
    for number in range(1, 20):
        for start in (0, 3, 17):
            few = arithmetic.product(rows[start : start + number], matrix)
            assert torch.equal(few, together[start : start + number]), (start, number)


def test_a_query_in_its_metric_has_the_same_bits_beside_any_others() -> None:
    draw = np.random.default_rng(1)
    vectors = unit(draw.normal(size=(40, 384)).astype(np.float32))
    metric = QueryMetric(384, most=1000.0)
    metric.learn(vectors)
    together = metric.unit(vectors)
    for number in range(1, 10):
        np.testing.assert_array_equal(metric.unit(vectors[:number]), together[:number])


def test_the_fingerprint_tells_kernels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    arithmetic.use(1)
    first = fingerprint()
    assert fingerprint() == first
    monkeypatch.setattr(torch.nn.functional, "gelu", torch.nn.functional.silu)
    assert fingerprint()["arithmetic"] != first["arithmetic"]


@pytest.mark.parametrize("threads", [0, 3, 7])
def test_numbers_of_threads_that_divide_vectors_are_refused(threads: int) -> None:
    with pytest.raises(SettingError, match=r"learner\.threads: got \d, expected 1, 2, 4"):
        LearnerConfig(threads=threads)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variable", "value"), [("OMP_DYNAMIC", "TRUE"), ("OMP_THREAD_LIMIT", "1")]
)
def test_an_environment_that_takes_threads_away_is_refused_by_name(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ThreadsRefused, match=rf"learner\.threads: got 2, .* {variable}"):
        wide(2)
    wide(1)


def by_onednn(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of oneDNN, whatever processor this is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "by_onednn", lambda: True)
        return arithmetic.linear(rows, weight, bias)


LINEAR = [functional.linear, arithmetic.linear, by_onednn]


@pytest.mark.parametrize("call", LINEAR[1:], ids=["chosen here", "oneDNN"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("width", "outputs"), [(384, 1536), (1536, 384), (60, 24), (7, 3)])
def test_a_row_of_a_linear_layer_has_the_same_bits_among_any_others(
    call: Callable[..., torch.Tensor], threads: int, width: int, outputs: int
) -> None:
    arithmetic.use(threads)
    layer, rows = torch.nn.Linear(width, outputs), torch.randn(300, width)
    with torch.inference_mode():
        together = call(rows, layer.weight, layer.bias)
        torch.testing.assert_close(together, layer(rows))
        for number in (*range(8, 50), 64, 100, 257):
            found = call(rows[5 : 5 + number], layer.weight, layer.bias)
            assert torch.equal(found, together[5 : 5 + number])


@pytest.mark.parametrize("moving", [("rows",), ("weight", "bias"), ("rows", "weight", "bias")])
def test_a_linear_layer_has_the_gradient_of_torch_s(moving: tuple[str, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    given = {
        "rows": torch.randn(2, 40, 384, generator=draw),
        "weight": torch.randn(96, 384, generator=draw),
        "bias": torch.randn(96, generator=draw),
    }
    gradients = []
    for call in LINEAR:
        own = {n: value.clone().requires_grad_(n in moving) for n, value in given.items()}
        found = call(own["rows"], own["weight"], own["bias"])
        assert found.shape == (2, 40, 96)
        found.sin().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([own[name].grad for name in moving])
    for other in gradients[1:]:
        for expected, gradient in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [("vendor_id\t: GenuineIntel\n", False), ("vendor_id\t: AuthenticAMD\n", True), (None, True)],
)
def test_onednn_multiplies_where_mkl_has_no_kernels_of_512_bits(
    cpuinfo: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        expected = False
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(arithmetic, "_CPUINFO", tmp_path / "cpuinfo")
    assert arithmetic.by_onednn.__wrapped__() is expected
