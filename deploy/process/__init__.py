"""Process life: signals, logs, metrics, terminal output."""
