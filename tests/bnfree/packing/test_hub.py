"""Files on the Hugging Face hub, from the library's own cache without a connection, and a library that records."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.packed_files import names_packed_file, open_packed
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.packing import hub, load, pack, pretrained_path

COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The library offline, with a repository in its cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install 'bnfree[hub]'")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--binary"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_packed_file_is_called_by_its_repository(cache):
    (cache / "network.safetensors").write_bytes(pretrained_path("digits").read_bytes())
    for given in ("hf://someone/binary", "hf://someone/binary/network.safetensors", f"hf://someone/binary@{COMMIT}"):
        assert names_packed_file(given)
        assert open_packed(given, "torch").num_classes == 10


def test_a_checkpoint_is_a_start_and_not_run(cache):
    network = ReActNet18(width=2)
    torch.save(network.state_dict(), cache / "checkpoint.ckpt")
    assert not names_packed_file("hf://someone/binary/checkpoint.ckpt")
    other = ReActNet18(width=2)
    load_initial_weights(other, "hf://someone/binary/checkpoint.ckpt")
    assert all(map(torch.equal, other.state_dict().values(), network.state_dict().values()))

    class Evil:
        def __reduce__(self):
            return Path.touch, (cache / "run",)

    torch.save({"state_dict": Evil()}, cache / "evil.ckpt")
    with pytest.raises(InputError, match="damaged or holds more than tensors"):
        load_initial_weights(other, "hf://someone/binary/evil.ckpt")
    assert not (cache / "run").exists()
    (cache / "network.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError):
        open_packed("hf://someone/binary", "torch")


def test_what_is_not_there_is_one_sentence(cache):
    with pytest.raises(InputError, match=r"'hf://someone/other' cannot be pulled from the hub .*; check name and conn"):
        hub.pull("hf://someone/other")


@pytest.mark.parametrize("given", ["hf://", "hf://someone", "hf://a/b/../c", "hf://a/b/c d", "hf:///etc/passwd"])
def test_other_places_are_refused(given):
    with pytest.raises(InputError, match="must be hf://user/repo"):
        hub.pull(given)


def test_a_missing_library_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else find(name))
    with pytest.raises(InputError, match=r"needs huggingface_hub, .*: pip install 'bnfree\[hub\]'"):
        hub.pull("hf://a/b")


def test_files_are_pushed_in_one_commit(tmp_path, monkeypatch):
    pack(ReActNet18(width=2), engine="torch").save(tmp_path / "mine.safetensors")
    done = []

    class Api:
        def create_repo(self, repo, private, exist_ok):
            done.append((repo, private, exist_ok))

        def create_commit(self, repo, operations, commit_message):
            done.append((repo, operations))
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo}/commit/1")

    library = SimpleNamespace(HfApi=Api, CommitOperationAdd=lambda name, path: (name, path))
    monkeypatch.setattr(hub, "_library", lambda given: library)
    files = {hub.PACKED_NAME: tmp_path / "mine.safetensors"}
    assert hub.push(files, "hf://me/net", private=True) == "https://huggingface.co/me/net/commit/1"
    assert done == [("me/net", True, True), ("me/net", [("network.safetensors", str(tmp_path / "mine.safetensors"))])]
    assert load(done[1][1][0][1], "torch").num_classes == 10
    with pytest.raises(InputError, match="'nowhere' is not a file"):
        hub.push({"a": Path("nowhere")}, "hf://me/net")
    with pytest.raises(InputError, match="must be hf://user/repo"):
        hub.push(files, "hf://me/net/file")


def test_the_printed_push(tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs" / "packing.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*import push\n.*?)```", text, re.DOTALL)
    done = []
    monkeypatch.setattr(hub, "push", lambda files, given: done.append((files, given)))
    exec(code, {})
    assert done[0][1] == "hf://user/repo"
    assert set(done[0][0]) == {"network.safetensors", "checkpoint.ckpt", "README.md"}
