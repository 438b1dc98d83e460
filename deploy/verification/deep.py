"""Step 5 of a verification: the state, learned again and compared with every checkpoint passed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from consumers.errors import LogTruncated
from consumers.kafka.source import KafkaSource
from deploy.process.terminal import Output
from deploy.settings.tree import Settings
from deploy.verification.check import Check
from deploy.verification.journal_steps import Unlearnable
from deploy.verification.recount import Deep
from deploy.verification.relearn import Compared, relearn
from learner.artifact import Corrupt, Store, Version
from learner.errors import LogRewritten

_MAX_SHOWN = 5


def deep(settings: Settings, store: Store, out: Output) -> Deep:
    """Return step 5 of `recount.run`, which reads Kafka."""

    def check(since: Version, until: Version) -> Check:
        passed: list[Compared] = []
        num_steps = until.step - since.step
        source = KafkaSource(settings.kafka, tuple(settings.kafka.topics.kinds()))
        try:
            with (
                contextlib.closing(source.start()),
                out.progress("steps learned again", num_steps) as advance,
            ):
                for compared in relearn(settings, store, source, since, until, advance):
                    passed.append(compared)
        except Unlearnable as error:
            text, num_compared = str(error), len(passed)
            return Check(step="state", outcome="undecided", text=text, num_compared=num_compared)
        except (LogRewritten, LogTruncated, Corrupt) as error:
            text, num_compared = str(error), len(passed)
            return Check(step="state", outcome="differs", text=text, num_compared=num_compared)
        return _check(passed, f"{num_steps:,} steps since {since.name} learned again")

    return check


def _check(passed: Sequence[Compared], learned: str) -> Check:
    num_passed = len(passed)
    wrong = [each for each in passed if each.differs]
    if not wrong:
        text = f"{learned}: {num_passed} versions passed, every file the same"
        return Check(step="state", outcome="equal", text=text, num_compared=num_passed)
    shown = [f"{each.version} ({', '.join(each.differs)})" for each in wrong[:_MAX_SHOWN]]
    text = f"{learned}: {len(wrong)} of {num_passed} versions differ: {'; '.join(shown)}"
    return Check(
        step="state",
        outcome="differs",
        text=text,
        num_compared=num_passed,
        versions=tuple(each.version for each in wrong),
    )
