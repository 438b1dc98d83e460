"""Curves, histograms and explained predictions for trackers of experiments."""
