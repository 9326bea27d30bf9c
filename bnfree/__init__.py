"""bnfree: binary neural networks without batch normalisation (the method, torch only)."""

__version__ = "0.1.0"
