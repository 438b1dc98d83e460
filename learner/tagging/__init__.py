"""Tags of words: an encoder with a linear head per token, and figures of what it predicts."""
