"""All settings: defaults, file, environment, command line."""
