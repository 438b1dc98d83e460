"""Libraries that benchmarks compare with, pinned, each list in a folder of its own."""
