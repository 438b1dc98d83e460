"""Methods of fine-tuning an encoder."""
