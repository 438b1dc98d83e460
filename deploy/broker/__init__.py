"""Apache Kafka from packages, for machines that have none."""
