"""One run: its settings, its directory, its checkpoints and loggers, and going on from them."""
