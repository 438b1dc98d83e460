"""Where a start goes on: evidence, plan, decision."""
