"""Exposures, clicks and purchases to labelled samples, in event time."""
