"""Iterative magnitude pruning with rewinding, level by level, and the controls beside it."""
