"""The learner and its store, held to their guarantees."""
