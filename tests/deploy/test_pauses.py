"""Pauses: garbage collection of what is loaded, and threads that wait for the interpreter."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from deploy.process.pauses import exempt_what_is_loaded, hand_over_often
from deploy.roles.connections import ConnectionConfig
from tests.deploy.test_connections import serving


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_not_looked_through_again() -> None:
    loaded, threshold = Node(), gc.get_threshold()
    gc.set_threshold(700)
    assert any(each is loaded for each in gc.get_objects())
    try:
        exempt_what_is_loaded()
        fresh = Node()
        watched = gc.get_objects()
        assert not any(each is loaded for each in watched)
        assert any(each is fresh for each in watched)
        assert gc.get_threshold()[0] > 700
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)


def test_a_thread_waits_for_the_interpreter_no_longer_than_a_millisecond() -> None:
    before = sys.getswitchinterval()
    try:
        hand_over_often()
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(before)


def test_a_server_keeps_its_pauses_short(tmp_path: Path) -> None:
    before, threshold = sys.getswitchinterval(), gc.get_threshold()
    gc.unfreeze()
    try:
        with serving(tmp_path, ConnectionConfig()):
            assert gc.get_freeze_count() > 1000
            assert sys.getswitchinterval() <= 0.001
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
        sys.setswitchinterval(before)
