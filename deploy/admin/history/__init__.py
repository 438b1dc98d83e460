"""A shop's past as events: mapping, conversion, and where they are written."""
