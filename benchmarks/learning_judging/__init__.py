"""The product on a stream of lists, beside baselines that learn from the same lists."""
