"""Recomputing what was learned, from Kafka and the journal."""
