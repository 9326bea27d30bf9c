"""Image files and pictures to 8-bit pixels, with torch and Pillow alone: what training and a packed network share."""
