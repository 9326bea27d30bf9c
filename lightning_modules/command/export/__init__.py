"""`bnfree export`: a trained network as a file for inference, compared with the network that it was made from."""
