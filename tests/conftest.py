"""Settings of every test process, made before torch is imported."""

import os

# The tensors here are small: more threads gain nothing, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
