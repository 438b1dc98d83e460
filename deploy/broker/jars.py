"""Jars of Apache Kafka, pinned by name, version and sha256; never used unverified.

They are found in the user's Maven folder or downloaded.
`python -m deploy.broker.jars > deploy/broker/kafka/jars.lock` resolves and pins them anew. At run
time nothing is resolved: the lock names every file.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import BrokerFailed, BrokerUnavailable
from learner.extras import needed_by

if TYPE_CHECKING:
    from jgo.maven import MavenContext

ROOTS = ("org.apache.kafka:kafka_2.13:4.2.2", "org.slf4j:slf4j-simple:1.7.36")
"""Roots of the lock: the broker, and the smallest logger (without one its log is empty)."""

LOCK = Path(__file__).parent / "kafka" / "jars.lock"

STARTING = "Starting Apache Kafka from packages"

Download = Callable[[str, Path], Path]
"""(coordinate, folder) -> the file, laid out under folder as Maven does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One pinned file: `group:artifact:version` and the digest of its bytes."""

    coordinate: str
    sha256: str

    @property
    def path(self) -> Path:
        """Path of the file in a Maven folder, relative to that folder."""
        group, artifact, version = self.coordinate.split(":")
        return Path(*group.split("."), artifact, version, f"{artifact}-{version}.jar")

    def matches(self, file: Path) -> bool:
        """Return whether the file is there and its bytes are the pinned ones."""
        return file.is_file() and _sha256(file) == self.sha256


def pinned(lock: Path = LOCK) -> list[Jar]:
    """Return the jars of the lock, in class path order.

    One `group:artifact:version sha256` a line; `#` starts a comment line.
    """
    lines = lock.read_text().splitlines()
    pins = (line.split() for line in lines if line and not line.startswith("#"))
    return [Jar(coordinate=coordinate, sha256=sha256) for coordinate, sha256 in pins]


def maven_folder() -> Path:
    """Return the user's Maven folder: `M2_REPO`, else `.m2/repository` in the home folder."""
    return _maven().repo_cache


def from_maven(coordinate: str, folder: Path) -> Path:
    """Download one file into a Maven folder; Maven knows the address.

    Raises:
        OSError: no network, or it broke off.
        RuntimeError: there is no such file.
    """
    return _maven(folder).create_dependency(coordinate).artifact.resolve()


def obtain(jars: Sequence[Jar], folder: Path, *, download: Download = from_maven) -> list[Path]:
    """Return verified paths of the jars; download those missing or other than their pin.

    A download is made aside, verified, and moved into place: neither a crash nor a second process
    can leave half a file.

    Raises:
        BrokerUnavailable: something is missing and cannot be downloaded.
        BrokerFailed: a downloaded file differs from its pin; nothing of it is kept.
    """
    missing = [jar for jar in jars if not jar.matches(folder / jar.path)]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".steelyard-") as aside,
            ThreadPoolExecutor(8) as pool,
        ):
            try:
                files = pool.map(lambda jar: download(jar.coordinate, Path(aside)), missing)
                for jar, file in zip(missing, files, strict=True):
                    _adopt(jar, file, folder / jar.path)
            except (OSError, RuntimeError) as error:
                raise BrokerUnavailable(
                    f"Apache Kafka cannot be started here: {len(missing)} of its {len(jars)} jars "
                    f"are not in {folder} and could not be downloaded ({type(error).__name__}). "
                    "Run once with network, or name a broker of your own with "
                    "KAFKA_BOOTSTRAP_SERVERS."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
    return [folder / jar.path for jar in jars]


def _adopt(jar: Jar, file: Path, place: Path) -> None:
    if not jar.matches(file):
        raise BrokerFailed(
            f"{jar.coordinate}: the download has sha256 {_sha256(file)}, pinned is {jar.sha256} "
            f"({LOCK.name}). It was not kept."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    file.replace(place)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _maven(folder: Path | None = None) -> "MavenContext":
    with needed_by(STARTING, BrokerUnavailable):
        from jgo.maven import MavenContext
    return MavenContext(repo_cache=folder)


def _pin_anew() -> Iterator[str]:
    """Yield the lines of a new lock, resolved from ROOTS."""
    context = _maven()
    inputs, others = context.resolver.resolve([context.create_dependency(root) for root in ROOTS])
    yield f"# {' '.join(ROOTS)} and all they need at run time; made by python -m deploy.broker.jars"
    for dependency in [*inputs, *others]:
        coordinate = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
        yield f"{coordinate} {_sha256(dependency.artifact.resolve())}"


if __name__ == "__main__":
    for line in _pin_anew():
        sys.stdout.write(line + "\n")
