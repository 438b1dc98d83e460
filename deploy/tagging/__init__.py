"""Learning tags of words from a file: texts, parts, epochs, and the folder that comes of it."""
