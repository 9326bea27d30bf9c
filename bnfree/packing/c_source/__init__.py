"""Packed networks as C: one file and one header, without dependencies and without allocation."""
