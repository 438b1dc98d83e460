"""Checkpoints on the command line: a server takes a promotion, and nothing needed is retired."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from deploy.admin import checkpoints
from deploy.errors import Unsafe, UsageError
from learner.artifact import Corrupt, Refusal, Scorer, Store, Version, VersionMissing
from learner.store import commands
from learner.store.blobs import Disk
from serving.inference.slot import Slot
from serving.rollout.watcher import Watcher, WatcherConfig
from serving.telemetry import Telemetry
from tests.fakes.paper import Paper
from tests.fakes.scorer import FakeScorer
from tests.learner.saving import cut, files, owner, saved


class Served(Store):
    """The real store; its versions' files are no models, so what is loaded from them is a fake."""

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        self.verify(version)
        return FakeScorer(version.name)


class Shop:
    """A learner that announces and a server that follows, on one store."""

    def __init__(self, root: Path) -> None:
        self.learner = owner(root)
        self.slot = Slot()
        self.store = Served(root)
        self.watcher = Watcher(
            self.store, self.slot, Telemetry(CollectorRegistry()), WatcherConfig()
        )
        self._step = 0

    def publish(self) -> str:
        self._step += 1
        version = self.learner.save(files(self._step), cut(self._step))
        self.learner.announce(version)
        return self.serves()

    def serves(self) -> str:
        self.watcher.poll()
        return self.slot.current.name if self.slot.current else ""


def test_a_rollback_takes_a_running_server_back_and_keeps_it_there_while_the_learner_goes_on(
    tmp_path: Path,
) -> None:
    shop, paper = Shop(tmp_path), Paper()
    assert [shop.publish() for _ in range(3)] == ["v000002", "v000003", "v000004"]
    assert checkpoints.rollback(shop.store, paper.output(), yes=True) == 0
    assert paper.written == [
        "champion: v000004 -> v000003",
        "serving stays on v000003 until: steelyard checkpoints promote @announced",
    ]
    assert shop.serves() == "v000003"
    assert [shop.publish() for _ in range(2)] == ["v000003", "v000003"]
    assert checkpoints.promote(shop.store, "@announced", paper.output(), yes=True) == 0
    assert paper.written[-1] == "serving follows what the learner announces"
    assert shop.serves() == "v000006"
    assert shop.publish() == "v000007"


def test_any_kept_version_can_be_promoted(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    for _ in range(4):
        shop.publish()
    assert checkpoints.promote(shop.store, "v000002", Paper().output(), yes=True) == 0
    assert shop.serves() == "v000002"


def test_a_rollback_asked_for_twice_does_not_bring_back_the_version_that_was_left(
    tmp_path: Path,
) -> None:
    shop = Shop(tmp_path)
    for _ in range(4):
        shop.publish()
    assert checkpoints.rollback(shop.store, Paper().output(), yes=True) == 0
    back = shop.serves()
    assert back < "v000005"
    with pytest.raises(
        Unsafe,
        match=r"v000005 is not older than .* rollback --to VERSION; forwards: .* promote v000005",
    ):
        checkpoints.rollback(shop.store, Paper().output(), yes=True)
    assert shop.serves() == back


def test_a_damaged_version_is_not_promoted(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    for _ in range(2):
        shop.publish()
    damaged = shop.store.version("v000002").path / "model.safetensors"
    damaged.chmod(0o640)
    damaged.write_bytes(b"x")
    with pytest.raises(Corrupt):
        checkpoints.promote(shop.store, "v000002", Paper().output(), yes=True)
    assert shop.serves() == "v000003"
    paper = Paper()
    assert checkpoints.verify(shop.store, None, paper.output(as_json=True)) == 1
    assert paper.objects[0]["damaged"].keys() == {"v000002"}
    assert checkpoints.verify(shop.store, "v000003", paper.output()) == 0


def test_promoting_asks_a_person_and_needs_yes_elsewhere(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    store = Store(tmp_path)
    with pytest.raises(
        UsageError,
        match=r"Let champion be v000002 \(now none\)\? There is nobody to ask: add --yes",
    ):
        checkpoints.promote(store, "v000002", Paper().output())
    assert checkpoints.promote(store, "v000002", Paper(answer=False).output()) == 1
    assert store.aliases()["champion"] is None
    assert checkpoints.promote(store, "v000002", Paper(answer=True).output()) == 0


def test_a_rollback_goes_back_and_never_forward(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    store = Store(tmp_path)
    with pytest.raises(Unsafe, match="no version served before"):
        checkpoints.rollback(store, Paper().output(), yes=True)
    store.promote(store.version("v000003"))
    with pytest.raises(Unsafe, match="v000004 is not older than v000003"):
        checkpoints.rollback(store, Paper().output(), to="v000004", yes=True)
    assert checkpoints.rollback(store, Paper().output(), to="v000002", yes=True) == 0


def test_a_challenger_is_named_and_no_other_alias_is(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    store = Store(tmp_path)
    assert (
        checkpoints.promote(store, "v000003", Paper().output(), alias="challenger", yes=True) == 0
    )
    assert store.aliases()["challenger"] == "v000003"
    with pytest.raises(UsageError, match="expected champion or challenger"):
        checkpoints.promote(store, "v000003", Paper().output(), alias="previous", yes=True)
    with pytest.raises(VersionMissing):
        checkpoints.promote(store, "v000009", Paper().output(), yes=True)


# --- looking ---


def test_a_refusal_is_shown_and_a_promotion_names_and_withdraws_it(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    store, paper = Store(tmp_path), Paper()
    refusal = Refusal(version="v000003", reason="agreement: r .1", server="shop-1:8080", at_us=0)
    store.refuse(refusal)
    checkpoints.list_(store, paper.output())
    assert paper.written[-1].endswith("@announced refused")
    as_json = Paper()
    checkpoints.list_(store, as_json.output(as_json=True))
    refused = [v["refused"] for v in as_json.objects[0]["versions"]]
    assert refused == [None, "agreement: r .1"]
    checkpoints.show(store, "v000003", paper.output())
    assert paper.written[-1] == "refused by shop-1:8080 at 1970-01-01T00:00:00Z: agreement: r .1"
    checkpoints.promote(store, "v000003", paper.output(), alias="challenger", yes=True)
    assert store.refusal("v000003") == refusal, "nobody serves a challenger"
    assert checkpoints.promote(store, "v000003", paper.output(), yes=True) == 0
    assert "its refusal is withdrawn" in paper.written
    assert store.refusal("v000003") is None


def test_a_running_server_takes_a_refused_version_when_it_is_promoted(tmp_path: Path) -> None:
    shop, paper = Shop(tmp_path), Paper()
    shop.publish()
    shop.store.refuse(Refusal(version="v000003", reason="x", server="shop-1:8080", at_us=0))
    assert shop.publish() == "v000002"
    assert checkpoints.promote(shop.store, "v000003", paper.output(), yes=True) == 0
    assert shop.serves() == "v000003"


def test_every_version_is_listed_with_what_names_it(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    store, paper = Store(tmp_path), Paper()
    store.promote(store.version("v000002"), by_operator=True)
    checkpoints.list_(store, paper.output(as_json=True))
    assert [
        (v["version"], v["step"], v["aliases"], v["superseded"])
        for v in paper.objects[0]["versions"]
    ] == [
        ("v000002", 1, ["@pinned", "@champion"], False),
        ("v000003", 2, ["@announced"], False),
    ]
    checkpoints.list_(store, paper.output())
    assert paper.written[-1].endswith("@announced")
    checkpoints.list_(Store(tmp_path / "new"), paper.output())
    assert paper.written[-1].endswith("no version yet")


def test_a_version_is_shown_as_its_manifest_has_it(tmp_path: Path) -> None:
    (version,) = saved(tmp_path, 3)
    paper = Paper()
    checkpoints.show(Store(tmp_path), "v000002", paper.output(as_json=True))
    assert version.manifest.items() <= paper.objects[0].items()
    checkpoints.show(Store(tmp_path), "@announced", paper.output(), path=True)
    assert paper.written[-1] == str(version.path)


def test_a_version_names_the_file_that_its_learner_never_changes(tmp_path: Path) -> None:
    checkpointer, paper = owner(tmp_path), Paper()
    plain = checkpointer.save(files(1), cut(1))
    adapter = checkpointer.save({**files(2), "adapter_model.safetensors": b"small"}, cut(2))
    checkpoints.show(Store(tmp_path), adapter.name, paper.output())
    digest = adapter.files["model.safetensors"]
    assert f"base: model.safetensors, sha256 {digest.sha256}" in paper.written
    paper = Paper()
    checkpoints.show(Store(tmp_path), adapter.name, paper.output(as_json=True))
    base = {"file": "model.safetensors", "sha256": digest.sha256, "size": digest.size}
    assert paper.objects[-1]["base"] == base
    checkpoints.show(Store(tmp_path), plain.name, paper.output(as_json=True))
    assert paper.objects[-1]["base"] is None


def test_what_lies_between_two_versions_is_reported(tmp_path: Path) -> None:
    saved(tmp_path, 1, 4)
    paper = Paper()
    checkpoints.diff(Store(tmp_path), "v000002", "v000003", paper.output(as_json=True))
    diff: Any = paper.objects[0]
    assert (diff["step"], diff["samples"]) == (3, 96)
    assert {(row["topic"], row["partition"]): row["delta"] for row in diff["offsets"]} == {
        ("clicks", 0): 30,
        ("clicks", 1): 33,
        ("exposures", 0): 300,
    }
    checkpoints.diff(Store(tmp_path), "v000002", "v000003", paper.output())
    assert paper.written[1] == "v000002 -> v000003: +3 steps, +96 samples"


# --- pruning ---


def test_old_versions_are_retired_but_for_those_that_something_names(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 10))
    store = Store(tmp_path)
    store.promote(store.version("v000003"), by_operator=True)
    commands.write(tmp_path, Disk(), "replay", {"version": "v000004"}, now_us=0)
    paper = Paper()
    assert checkpoints.prune(store, paper.output(as_json=True), keep=5, yes=True) == 0
    assert paper.objects[0]["retired"] == ["v000002", "v000005"]
    assert [version.name for version in store.versions()] == [
        "v000003",
        "v000004",
        *(f"v{n:06d}" for n in range(6, 11)),
    ]
    assert len(list((tmp_path / "trash").iterdir())) == 4, (
        "files and commit marks, for the learner to empty"
    )
    assert checkpoints.prune(store, paper.output(), keep=5, yes=True) == 0
    assert paper.written[-1] == "nothing to retire"


def test_pruning_wants_to_know_what(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exactly one of --keep N, --superseded"):
        checkpoints.prune(Store(tmp_path), Paper().output(), yes=True)


def test_without_a_yes_nothing_is_retired(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 8))
    with pytest.raises(UsageError, match="add --yes"):
        checkpoints.prune(Store(tmp_path), Paper().output(), keep=5)
    assert len(Store(tmp_path).versions()) == 7
