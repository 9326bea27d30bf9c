"""Equal networks give equal masks in another process, with another number of threads and another hash seed."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from bnfree.backbones import ReActNet18
from bnfree.tickets import checksum, prune, random_masks, reinitialize, shuffle_signs, take_snapshot

torch.manual_seed(0)
network = ReActNet18(width=8)
# As if this process had done something else before.
torch.manual_seed({seed})
masks = prune(network, 0.3)
print(checksum(masks), checksum(prune(network, 0.3, score="random", scope="filter", seed=2)))
print(checksum(random_masks(masks, 3)), checksum(random_masks(masks, 3, keep="global")))
for control in (reinitialize, shuffle_signs):
    print(sum(float(w.double().sum()) for w in control(network, take_snapshot(network), masks, 4).values()))
"""


@pytest.mark.slow
def test_processes_agree():
    said = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", SCRIPT.format(seed=threads)]
        said.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(said) == 1
    assert len(set(said.pop().split())) == 6
