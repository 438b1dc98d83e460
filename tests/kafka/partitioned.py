"""Broker and learner in two network namespaces; the wire between them is cut in three ways.

    unshare --user --map-root-user --net python -m tests.kafka.partitioned FOLDER

It runs where the broker does. Packets of one direction are lost by the address of a neighbour that
does not exist, so that no module for filters or queues is needed: the sender hears no error, and
the receiver hears nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.broker.node import Broker
from deploy.errors import BrokerUnavailable
from deploy.process.child import free_ports, spawn
from learner.artifact import Store, Version
from tests.kafka.conftest import GivenCluster
from tests.kafka.learning import open_shop, trained, until, words
from tests.kafka.reading import small

BROKER, LEARNER = "10.98.0.1", "10.98.0.2"
NOBODY = "02:00:00:00:00:99"
NO_BROKER = 77  #: exit code
CUTS: dict[str, tuple[str, str]] = {  # ip's words behind `there` or `here`, to cut and to mend
    "both ways, the link is down": ("there link set there down", "there link set there up"),
    "what the broker answers is lost": (
        f"here neigh replace {LEARNER} lladdr {NOBODY} dev here",
        f"here neigh del {LEARNER} dev here",
    ),
    "what the learner asks is lost": (
        f"there neigh replace {BROKER} lladdr {NOBODY} dev there",
        f"there neigh del {BROKER} dev there",
    ),
}


class Wire:
    """Between this namespace (`here`) and one that it makes (`there`)."""

    def __enter__(self) -> Self:
        own = Path("/proc/self/ns/net").stat().st_ino
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE
        )  # it is there as long as somebody is in it
        self.there = [
            shutil.which("nsenter") or "nsenter",
            "--target",
            str(self._holder.pid),
            "--net",
        ]
        until(
            lambda: True if Path(f"/proc/{self._holder.pid}/ns/net").stat().st_ino != own else None
        )
        self.do("here link set lo up")
        self.do("here link add here type veth peer name there")
        self.do(f"here link set there netns {self._holder.pid}")
        self.do("there link set lo up")
        for side, address in (("here", BROKER), ("there", LEARNER)):
            self.do(f"{side} addr add {address}/24 dev {side}")
            self.do(f"{side} link set {side} up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder.communicate()

    def do(self, words: str) -> None:
        side, *rest = words.split()
        subprocess.run([*(self.there if side == "there" else ()), "ip", *rest], check=True)


class Process:
    """The learner's process, at the other end of the wire."""

    def __init__(self, command: Sequence[str], store: Store, log: Path) -> None:
        self._store, self._log = store, log
        with log.open("wb") as written:
            self._child = spawn(command, written)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        if error is not None:
            print(self._log.read_text(), file=sys.stderr)

    def num_outages(self) -> int:
        return self._log.read_text().count("broker unreachable")

    def hears_nothing(self, num_before: int) -> None:
        """Wait until it has noticed."""
        until(lambda: True if self.num_outages() > num_before else None, self._has_ended)

    def hears_again(self) -> None:
        """Wait until it has noticed: what is cut before that is the same outage."""
        until(lambda: True if self._num_ended() == self.num_outages() else None, self._has_ended)

    def _num_ended(self) -> int:
        return self._log.read_text().count("broker back")

    def learned(self, *, step: int = 0, num_samples: int = 0) -> Version:
        """Wait for a version of so many steps and samples."""

        def look() -> Version | None:
            newest = next(iter(self._store.versions()[-1:]), None)
            return (
                newest
                if newest is not None and newest.step >= step and trained(newest).num >= num_samples
                else None
            )

        return until(look, self._has_ended)

    def end(self) -> int:
        self._child.terminate()
        return self._child.wait(60)

    def _has_ended(self) -> bool:
        return self._child.poll() is not None


def main(folder: Path) -> None:
    (port, controller), store = free_ports(2), Store(folder / "store")
    properties = {
        "listeners": f"PLAINTEXT://{BROKER}:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://{BROKER}:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
    }
    with Wire() as wire, Broker(folder / "kafka", port=port, properties=properties):
        shop = open_shop(GivenCluster(f"{BROKER}:{port}"), num_events=3000)
        settings = shop.at(folder / "store", batch_size=32)
        # A request that nobody answers is given up after two seconds instead of thirty.
        options = small(
            f"{BROKER}:{port}",
            max_poll_records=20,
            max_partition_fetch_bytes=4_000,
            fetch_max_bytes=8_000,
            request_timeout_ms=2000,
        ).options
        settings = replace(settings, kafka=replace(settings.kafka, options=options))
        learn = [sys.executable, "-c", "from deploy.cli.app import main; main()", "learn"]
        with Process([*wire.there, *learn, *words(settings)], store, folder / "log") as learner:
            step = 0
            for cut, mend in CUTS.values():
                num_outages = learner.num_outages()
                shop.begin(0.15)
                step = learner.learned(step=step + 1).step
                shop.begin(0.15)  # partly read
                wire.do(cut)
                shop.begin(0.15)  # not to be seen yet
                learner.hears_nothing(num_outages)
                wire.do(mend)
                learner.hears_again()
                step = learner.learned(step=step + 1).step
            shop.end()
            learner.learned(num_samples=shop.trained().num)
            assert learner.end() == 0
        last = store.versions()[-1]
        assert trained(last) == shop.trained()
        assert last.next_offsets == shop.ends
        assert last.epoch == 1, "it was started again"
        print(f"{learner.num_outages()} outages")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BrokerUnavailable as error:
        print(error, file=sys.stderr)
        sys.exit(NO_BROKER)
