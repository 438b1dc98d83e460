"""Text to unit vectors through a Hugging Face encoder."""
