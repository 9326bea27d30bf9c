"""`bnfree ticket`: what can be done with tickets besides training them."""
