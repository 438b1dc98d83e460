"""From bytes on a topic to labelled samples, each once, in event time."""
