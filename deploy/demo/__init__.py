"""A shop that knows its own truth, and all of Steelyard around it in one go."""
