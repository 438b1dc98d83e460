"""Checkpoints on disk: durable, verified, owned by one learner at a time."""
