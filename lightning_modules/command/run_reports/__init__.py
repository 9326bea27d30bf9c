"""`bnfree report`: what runs have measured, as a figure and a table."""
