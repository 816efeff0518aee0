"""Predictions against the truth: pure functions on arrays, and the videos that they are applied to."""
