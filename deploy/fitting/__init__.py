"""Learning from a file: examples, parts, epochs, figures, and the version that comes of it."""
