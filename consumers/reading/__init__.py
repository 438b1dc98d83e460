"""Records of a log to events, in three orders."""
