"""A table and a figure of one or several runs."""
