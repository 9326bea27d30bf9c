"""From a trained network to a small file: exporting, checking and timing it."""
