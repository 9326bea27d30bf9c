"""`bnfree lottery`: finding, checking and reporting lottery tickets."""
