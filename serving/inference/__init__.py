"""Forward passes for requests that arrive together."""
