"""`bnfree bench`: how fast a packed network is here, against the same network in other forms."""
