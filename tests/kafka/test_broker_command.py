"""`steelyard broker`: says where it is once it answers, and is gone after a signal."""

import json
import signal
import subprocess
import sys

import pytest

from consumers.errors import SourceUnavailable
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.options import KafkaConfig
from deploy.broker.node import Broker
from tests.kafka.conftest import Cluster


def test_the_broker_answers_where_it_says_and_ends_by_sigterm(broker: Cluster) -> None:
    if not isinstance(broker, Broker):
        pytest.skip("needs the packages of our own broker")
    command = [
        sys.executable,
        "-c",
        "from deploy.cli.app import main; main()",
        "broker",
        "--port",
        "0",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    where = json.loads(process.stdout.readline())["bootstrap_servers"]
    with KafkaAdmin(KafkaConfig(bootstrap_servers=where)) as admin:
        assert admin.brokers() == [where]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    with pytest.raises(SourceUnavailable, match="refused"):
        KafkaConfig(bootstrap_servers=where).reach()
