"""The pinned jars: missing ones are fetched, other ones refused, and offline is one sentence."""

import hashlib
import re
from pathlib import Path

import pytest

from deploy.broker.jars import Jar, obtain, pinned
from deploy.errors import BrokerFailed, BrokerUnavailable

CONTENT = b"the bytes that were pinned"
JAR = Jar(coordinate="org.example:thing:1.0", sha256=hashlib.sha256(CONTENT).hexdigest())


class Registry:
    """Hands out one content for every coordinate and counts how often it was asked."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.asked: list[str] = []

    def download(self, coordinate: str, folder: Path) -> Path:
        self.asked.append(coordinate)
        file = folder / coordinate.replace(":", "-")
        file.write_bytes(self.content)
        return file


def offline(coordinate: str, folder: Path) -> Path:
    raise ConnectionError("network is unreachable")


def test_a_missing_jar_is_downloaded_once_to_where_maven_keeps_it(tmp_path: Path) -> None:
    registry = Registry()
    (path,) = obtain([JAR], tmp_path, download=registry.download)
    assert obtain([JAR], tmp_path, download=registry.download) == [path]
    assert path == tmp_path / "org/example/thing/1.0/thing-1.0.jar"
    assert path.read_bytes() == CONTENT
    assert registry.asked == [JAR.coordinate]


def test_a_cached_jar_needs_no_network(tmp_path: Path) -> None:
    obtain([JAR], tmp_path, download=Registry().download)
    assert obtain([JAR], tmp_path, download=offline)


def test_a_download_that_differs_from_its_pin_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(BrokerFailed, match=f"org.example:thing:1.0.*pinned is {JAR.sha256}"):
        obtain([JAR], tmp_path, download=Registry(b"something else").download)
    assert list(tmp_path.iterdir()) == []


def test_half_a_jar_in_the_cache_is_replaced(tmp_path: Path) -> None:
    half = tmp_path / JAR.path
    half.parent.mkdir(parents=True)
    half.write_bytes(CONTENT[:5])
    obtain([JAR], tmp_path, download=Registry().download)
    assert half.read_bytes() == CONTENT


def test_offline_with_an_empty_cache_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        BrokerUnavailable, match=r"1 of its 1 jars.*ConnectionError.*KAFKA_BOOTSTRAP_SERVERS"
    ):
        obtain([JAR], tmp_path, download=offline)


def test_every_pin_names_a_version_and_a_whole_digest() -> None:
    jars = pinned()
    assert any(jar.coordinate.startswith("org.apache.kafka:kafka_2.13:4.") for jar in jars)
    assert len({jar.coordinate for jar in jars}) == len(jars)
    for jar in jars:
        assert re.fullmatch(r"[^:\s]+:[^:\s]+:\d[^:\s]*", jar.coordinate)
        assert re.fullmatch(r"[0-9a-f]{64}", jar.sha256)
