"""What tests put in place of the world: each behind a seam that the code already has."""
