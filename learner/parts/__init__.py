"""Parts of the served score: each predicts before it learns, and says nothing when it is cold."""
