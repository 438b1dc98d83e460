"""Partitions added to real topics under the real learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from consumers.errors import PartitionsAdded
from deploy.roles.start import counts_of
from learner.artifact import Version
from tests.kafka.conftest import Cluster
from tests.kafka.learning import Learner, Shop, open_shop, trained


def grow(broker: Cluster, shop: Shop, count: int) -> None:
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        client.create_partitions(dict.fromkeys(shop.settings.kafka.topics.kinds(), count))
    finally:
        client.close()
    for topic in shop.settings.kafka.topics.kinds():
        shop.log.grow(topic, count)


def knows(version: Version, count: int) -> bool:
    return set((counts_of(version) or {}).values()) == {count}


def test_partitions_that_are_added_are_read_by_the_same_process_each_record_once(
    broker: Cluster, tmp_path: Path
) -> None:
    shop = open_shop(broker, num_events=2000)
    # Of two copies in two partitions, the one that is read first counts: that is no matter here
    shop.written = list(dict.fromkeys(shop.written))
    shop.begin()
    with Learner(shop.at(tmp_path / "store")) as learner:
        learner.version(lambda version: version.step > 0 and knows(version, 2))
        grow(broker, shop, 4)
        learner.version(lambda version: knows(version, 4))
        shop = replace(shop, num_partitions=4)
        shop.end()
        wanted = shop.trained()
        last = learner.version(lambda version: trained(version).num >= wanted.num)
    assert dict(last.next_offsets) == shop.ends
    assert trained(last) == wanted


def test_stop_ends_the_learner_by_name(broker: Cluster, tmp_path: Path) -> None:
    shop = open_shop(broker, num_events=2000)
    shop.begin()
    settings = shop.at(tmp_path / "store")
    settings = replace(settings, kafka=replace(settings.kafka, on_new_partitions="stop"))

    def grown() -> None:
        with Learner(settings) as learner:
            learner.version(lambda version: version.step > 0)
            grow(broker, shop, 3)
            learner.join()

    with pytest.raises(PartitionsAdded, match="has 3 and 2 are read"):
        grown()
