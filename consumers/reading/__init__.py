"""Records of a log to events, in one of three orders: journaled, canonical, live."""
