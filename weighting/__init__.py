"""Sample weights, and the online estimators that they are made from."""
