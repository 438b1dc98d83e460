"""What only a real broker can show: Apache Kafka from packages, or the one that KAFKA_BOOTSTRAP_SERVERS names."""
