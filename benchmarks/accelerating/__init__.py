"""Parts of `benchmarks.gpu`: checks, and measurements of updates and of freshness on a device."""
