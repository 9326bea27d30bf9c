"""Packed files where a checkpoint is expected: to test and to predict with."""
