"""Networks by name: registries, and files that are downloaded, from a server on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bnfree.errors import InputError
from bnfree.packing import load, pretrained_names, pretrained_path, zoo
from bnfree.packing.download import cache_folder, fetch
from bnfree.packing.registry import Entry, add_entry, read_registry, users_registry

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Answers every request with `content`, from the byte that is asked for if `ranges`, and ends after `at_most`."""

    def __init__(self):
        self.content, self.ranges, self.at_most, self.asked = CONTENT, True, None, []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                owner.asked.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and owner.ranges else 0
                body = owner.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if owner.at_most is None else body[: owner.at_most])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/network.safetensors"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    made = Server()
    yield made
    made.stop()


def entry(server, **changed):
    return Entry(**{"name": "net", "sha256": SHA256, "size": len(CONTENT), "url": server.url, **changed})


def left():
    return sorted(path.name for path in cache_folder().iterdir())


def test_a_file_is_downloaded_once(server):
    path = fetch(entry(server))
    assert path.read_bytes() == CONTENT
    assert fetch(entry(server)) == path
    assert len(server.asked) == 1
    server.stop()
    assert fetch(entry(server)) == path
    # What has been damaged in the cache is not taken for it.
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(InputError, match="cannot be downloaded from"):
        fetch(entry(server))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(server, ranges):
    server.at_most, server.ranges = 3000, ranges
    with pytest.raises(InputError, match=r"net' cannot be downloaded from http\S+ .*; try again .* or put the file to"):
        fetch(entry(server))
    assert left() == [f".net-{SHA256[:16]}.safetensors.unfinished"]
    server.at_most = None
    assert fetch(entry(server)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-"]
    assert left() == [f"net-{SHA256[:16]}.safetensors"]


@pytest.mark.parametrize("other", [CONTENT[::-1], CONTENT + b"more"])
def test_another_file_is_refused_and_not_kept(server, other):
    server.content = other
    with pytest.raises(InputError, match=f"is not the file that the registry means, whose SHA-256 is {SHA256}"):
        fetch(entry(server))
    assert left() == []


def test_a_registered_url_is_a_name(server):
    digits = pretrained_path("digits")
    server.content = digits.read_bytes()
    sha256 = hashlib.sha256(server.content).hexdigest()
    add_entry(users_registry(), Entry("far_network", sha256, len(server.content), url=server.url))
    assert "far_network" in pretrained_names()
    # Nothing is downloaded by being looked for.
    assert zoo.full_name("far_net") == "far_network"
    assert server.asked == []
    assert load(pretrained_path("far"), "torch").num_classes == 10


def test_a_registry_is_read_as_it_was_written(tmp_path):
    place = tmp_path / "registry.json"
    assert read_registry(place) == {}
    inside, outside = tmp_path / "a.safetensors", tmp_path.parent / "b.safetensors"
    entries = [Entry("a", SHA256, 3, inside), Entry("b", SHA256, 4, outside, "https://example.org/b")]
    for one in reversed(entries):
        add_entry(place, one)
    assert list(read_registry(place).values()) == entries
    assert json.loads(place.read_text())["networks"]["a"] == {"file": "a.safetensors", "sha256": SHA256, "size": 3}
    with pytest.raises(InputError, match="register='a' is taken in .*; give another name, or --overwrite"):
        add_entry(place, Entry("a", SHA256, 5, inside))
    add_entry(place, Entry("a", SHA256, 5, inside), replace=True)
    assert read_registry(place)["a"].size == 5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "../a"}, "must begin with a letter or digit"),
        ({"name": "a/b"}, "must begin with a letter or digit"),
        ({"sha256": "0" * 63}, "64 hexadecimal digits"),
        ({"sha256": 7}, "64 hexadecimal digits"),
        ({"size": 0}, "must be the bytes"),
        ({"size": True}, "must be the bytes"),
        ({"size": 1 << 40}, "must be the bytes"),
        ({"url": "file:///etc/passwd"}, "must begin with https:// or http://"),
        ({"url": "https://a\nb"}, "must begin with https:// or http://"),
        ({"url": None}, "neither a file nor a url"),
    ],
)
def test_entries_are_bounded(tmp_path, changed, said):
    values = {"name": "net", "sha256": SHA256, "size": 5, "url": "https://example.org", **changed}
    with pytest.raises(InputError, match=said):
        Entry(**values)
    name = values.pop("name")
    (tmp_path / "registry.json").write_text(json.dumps({"version": 1, "networks": {name: values}}))
    with pytest.raises(InputError, match=said):
        read_registry(tmp_path / "registry.json")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"version": 1}', b'{"version": 1, "networks": {"a": 3}}', b"[" * 100_000]
)
def test_what_is_no_registry_is_refused(tmp_path, content):
    (tmp_path / "registry.json").write_bytes(content)
    with pytest.raises(InputError, match="is no registry of networks"):
        read_registry(tmp_path / "registry.json")


def test_a_registry_of_the_future_is_named(tmp_path):
    (tmp_path / "registry.json").write_text('{"version": 2, "networks": {}}')
    with pytest.raises(InputError, match="has version 2, this bnfree reads 1"):
        read_registry(tmp_path / "registry.json")


def test_a_registered_file_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    add_entry(users_registry(), Entry("gone", SHA256, 5, tmp_path / "gone.safetensors"))
    with pytest.raises(InputError, match=r"'gone' is registered as .*gone.safetensors', which is not there"):
        pretrained_path("gone")


def test_the_networks_that_come_with_bnfree_are_those_of_its_registry():
    entries = read_registry(zoo.FOLDER / "registry.json")
    assert set(entries) == {path.stem for path in zoo.FOLDER.glob("*.safetensors")}
    for name, one in entries.items():
        content = one.file.read_bytes()
        assert (one.size, one.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert one.sha256 in (zoo.FOLDER / f"{name}.md").read_text()
