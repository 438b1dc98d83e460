"""A model that never stops training, and what it publishes."""
