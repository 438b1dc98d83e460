"""How much a sample should count."""
