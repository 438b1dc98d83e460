"""Long-running processes, wired from settings."""
