"""Structured compression: networks with fewer channels."""
