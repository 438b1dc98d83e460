"""The log on Apache Kafka: reading, writing, administration."""
