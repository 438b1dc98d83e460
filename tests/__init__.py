"""Guarantees, each as a sentence that can fail."""
