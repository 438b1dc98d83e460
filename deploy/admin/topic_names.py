"""Names of topics that a command is given, beside those of the settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from consumers.errors import TopicMissing
from consumers.pipeline import Topics
from deploy.errors import UsageError


def unread(topic: str, topics: Topics) -> str | None:
    """Return a warning that no learner of these settings reads a topic, None where one does."""
    if topic in topics.kinds():
        return None
    return f"topic {topic!r} is read by no learner of these settings. {_known(topic, topics)}"


@contextmanager
def explained(topic: str, topics: Topics) -> Iterator[None]:
    """Name the topics of the settings where the one that was given does not exist.

    Raises:
        UsageError: it does not exist.
    """
    try:
        yield
    except TopicMissing as error:
        if error.topic != topic or topic in topics.kinds():
            raise
        raise UsageError(
            f"topic {topic!r} does not exist at the brokers. {_known(topic, topics)}"
        ) from error


def _known(topic: str, topics: Topics) -> str:
    names = [*topics.kinds(), topics.dead_letter]
    listed = f"Topics of kafka.topics: {', '.join(names)}."
    nearest = difflib.get_close_matches(topic, [name for name in names if name != topic], 1)
    return f"{listed} Did you mean {nearest[0]}?" if nearest else listed
