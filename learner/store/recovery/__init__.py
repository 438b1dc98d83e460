"""Recovery at a start: evidence, plan, decision."""
