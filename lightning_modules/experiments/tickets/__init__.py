"""Tickets compared, stretched, transferred and signed."""
