"""Parts of one training step."""
