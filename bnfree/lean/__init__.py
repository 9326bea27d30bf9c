"""Lean training: the same arithmetic as the plain modules, with hand-written gradients that keep next to nothing.

Without batch statistics everything between two pre-activations is elementwise: the backward pass can recompute it
exactly, so a residual unit keeps one tensor, where PyTorch's bookkeeping of the plain composition keeps about nine. The
plain modules are the definition of the network and run on the same parameters with `lean = False`.
"""
