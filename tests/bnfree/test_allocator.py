import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from bnfree import allocator

ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
# Blocks of 40 MiB, 10,240 pages each, taken and given back. In a process of its own, since the setting lasts.
PROGRAM = """
import sys
from bnfree.allocator import keep_freed_memory, page_faults
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(20):
    before = page_faults()
    block = bytearray(40 * 2**20)
    block[::1024] = bytes([1]) * len(block[::1024])
    del block
    faults.append(page_faults() - before)
print(*faults)
"""


def faults(variant: str) -> list[int]:
    result = subprocess.run([sys.executable, "-c", PROGRAM, variant], capture_output=True, text=True, check=True)
    return [int(word) for word in result.stdout.split()]


@ON_GLIBC
def test_memory_that_is_taken_again_faults_no_more():
    # The heap settles within a few rounds: what else is allocated comes to lie in the blocks that are free.
    given_back, kept = sum(faults("give back")[10:]), sum(faults("keep")[10:])
    if given_back < 10 * 10_240 * 0.9:
        pytest.skip("this machine's kernel or allocator has larger pages or no such faults")
    assert kept * 100 <= given_back


def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        mallopt = None

    for library in (lambda name: Musl(), lambda name: (_ for _ in ()).throw(OSError), lambda name: object()):
        monkeypatch.setattr(ctypes, "CDLL", library)
        assert allocator.keep_freed_memory() is False


def test_page_faults_are_counted():
    before = allocator.page_faults()
    held = torch.ones(16 * 2**20)
    assert allocator.page_faults() - before > 0
    assert len(held)


def test_without_a_counter_there_is_no_number(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert allocator.page_faults() is None
