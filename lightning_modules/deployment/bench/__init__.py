"""Packed networks timed against other engines."""
