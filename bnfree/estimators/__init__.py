"""Gradient estimators of the sign beyond those of `bnfree.binarize`, a file each."""
