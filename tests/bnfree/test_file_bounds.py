import zipfile

import pytest
import torch
from torch import nn

from bnfree import file_bounds
from bnfree.errors import InputError
from bnfree.file_bounds import bounded_network, check_archive, check_tensors
from bnfree.state_dicts import read_checkpoint_file


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    check_archive(tmp_path / "plain.pt", "f")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part), compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 50_000
    with pytest.raises(InputError, match="more than its size"):
        read_checkpoint_file(tmp_path / "bomb.pt", "f")


def test_a_pickle_of_nested_lists_is_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for part in plain.infolist():
            content = b"\x80\x02" + b"]" * (1 << 25) + b"." if part.filename.endswith(".pkl") else plain.read(part)
            bomb.writestr(part.filename, content)
    with pytest.raises(InputError, match="bytes, as no checkpoint does"):
        read_checkpoint_file(tmp_path / "bomb.pt", "f")


def test_a_tensor_that_claims_more_than_it_stores_is_refused(tmp_path):
    check_tensors({"a": [torch.zeros(3), torch.zeros(4, 5).t(), torch.zeros(10)[2:4]]}, "f")
    torch.save({"a": [torch.zeros(1).expand(10**6, 10**6)]}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 5000
    with pytest.raises(InputError, match="more numbers than it stores"):
        read_checkpoint_file(tmp_path / "a.pt", "f")


def test_a_network_much_larger_than_its_file_is_not_built(tmp_path, monkeypatch):
    monkeypatch.setattr(file_bounds, "MOST_WEIGHTS", 10_000)
    monkeypatch.setattr(file_bounds, "MOST_TENSORS", 50)
    file = tmp_path / "small"
    file.write_bytes(b"0" * 1000)
    with bounded_network(file, "f"):
        nn.Linear(100, 100)
    with pytest.raises(InputError, match="ckpt_path='small' describes"), bounded_network(file, "ckpt_path='small'"):
        nn.Linear(200, 100)
    with pytest.raises(InputError, match="describes"), bounded_network(file, "f"):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(30))
    for much in (10**8, 10**12):
        with pytest.raises(InputError, match="describes"), bounded_network(file, "f"):
            nn.Linear(much, much)
    # Without a file, and outside, nothing is counted.
    with bounded_network(None, "f"):
        nn.Linear(200, 100)
    nn.Linear(200, 100)
