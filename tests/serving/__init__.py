"""What serving guarantees, in process and without a model."""
