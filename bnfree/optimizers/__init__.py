"""Optimizers for latent weights, a file each; in a config by their class."""
