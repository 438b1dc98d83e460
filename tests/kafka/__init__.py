"""Tests on Apache Kafka, from packages or as KAFKA_BOOTSTRAP_SERVERS names it."""
