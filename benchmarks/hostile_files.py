"""Mutates files as a stranger might, reads each, and counts the answers.

Every reader must answer with what it has read or with one `InputError`: no other exception, nothing run, no answer that
takes longer than some seconds, no more than 1 GB. Bytes are changed (flipped, cut, repeated, inserted), and what is in
a file (values replaced by others of every type, entries left out, tensors of other shapes and types), with checksums
that are right again, as a stranger would write them.

    python benchmarks/hostile_files.py --mutations 10000 --kinds checkpoint ticket packed
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import logging
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from bnfree import trust
from bnfree.datamodules.cifar_files import read_batch
from bnfree.datamodules.idx import read_idx
from bnfree.datamodules.image_store import ImageStore
from bnfree.errors import InputError
from bnfree.images.decoding import decode_image
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.experiments.tickets.looking import ticket_info
from bnfree.lightning_modules.modules.teacher import remembered_network
from bnfree.lightning_modules.modules.teacher_logits import FORMAT, TeacherLogits
from bnfree.lightning_modules.training.checkpoints import as_argument, read_checkpoint, remembered_config
from bnfree.lightning_modules.training.config.found import check_found
from bnfree.packing import load
from bnfree.tickets import load_ticket
from bnfree.tickets.masks import checksum
from bnfree.tickets.ticket_file import Ticket, _content_checksum

EARLIER = Path(__file__).parents[1] / "tests" / "data" / "earlier"
SLOW = 10.0
# One in so many is given to a whole command, which takes a hundred times as long as a reader.
OF_COMMANDS = 200
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn")
ODD = [
    None, True, False, 0, -1, 1, 2, 10**6, 10**18, -(10**30), 0.5, float("nan"), float("inf"), "", "x",
    "a.b", "\0", "ä" * 9,
    "planted.X", "os.system", "../..", "/", "{class_path: planted.X}", "[" * 500, "!!python/object:os.system x",
    b"bytes",
    [], {}, (), [[]], {"class_path": "planted.X"}, {"class_path": 3}, {"class_path": None, "init_args": 1}, {1: 2},
    {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": {}}, {"init_args": {}}, {"": ""},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**7, "out_features": 10**7}}, [1] * 1000, {1, 2},
    "bnfree.backbones.ReActNet18", {"class_path": "bnfree.backbones.ReActNet18", "init_args": {"width": 10**5}},
]  # fmt: skip


def odd_tensors() -> list[torch.Tensor]:
    """Tensors that no layer has."""
    return [
        torch.zeros(()), torch.zeros(0), torch.zeros(3, dtype=torch.int8), torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool),
        torch.zeros(2, 3, dtype=torch.complex64), torch.full((2, 2), float("nan")), torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(2, 0, 3), torch.zeros(4, dtype=torch.float64), torch.eye(3).to_sparse(),
    ]  # fmt: skip


def mutated_bytes(content: bytes, random_: random.Random) -> bytes:
    """A file with one to eight changes in its bytes."""
    changed = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4, 8))):
        at, length = random_.randrange(len(changed) + 1), random_.choice((1, 1, 4, 64, 4096))
        kind = random_.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            changed[at : at + length] = random_.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[random_.randrange(len(changed) + 1) :][:length]
        elif kind == 4:
            del changed[at:]
        else:
            changed[at : at + 4] = random_.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"))
    return bytes(changed)


def mutated(value: Any, random_: random.Random) -> Any:
    """A copy of plain values and tensors in which one place, at any depth, is something else."""
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        kind, rest = random_.random(), dict(value)
        if kind < 0.12:
            del rest[key]
        elif kind < 0.18:
            rest[random_.choice(("class_path", "x", "init_args", 3, "backbone.class_path"))] = random_.choice(ODD)
        elif kind < 0.24:
            rest[random_.choice(list(value))] = value[key]
        else:
            rest[key] = mutated(value[key], random_)
        return rest
    if isinstance(value, list | tuple) and value and random_.random() < 0.8:
        items = list(value)
        at = random_.randrange(len(items))
        items[at] = mutated(items[at], random_)
        return items
    if isinstance(value, torch.Tensor):
        return random_.choice([*odd_tensors(), value.flatten(), value[:1] if value.dim() else value, value.double()])
    return random_.choice([*ODD, random_.choice(odd_tensors())])


def _torch_file(content: Any, path: Path) -> None:
    torch.save(content, path)


def _sealed_ticket(content: Any, path: Path) -> None:
    """A ticket with right checksums, where it can have any."""
    with contextlib.suppress(Exception):
        ticket = Ticket(state_dict=content["state_dict"], rewind=content["rewind"], **content["found"])
        content = {**content, "checksums": {"masks": checksum(ticket.masks), "content": _content_checksum(ticket)}}
    torch.save(content, path)


def _yaml_file(content: Any, path: Path) -> None:
    with contextlib.suppress(yaml.YAMLError):
        path.write_text(yaml.safe_dump(content))


def read_as_checkpoint(path: Path) -> None:
    """All that is done with a checkpoint before a network of its size is built."""
    content = read_checkpoint(str(path))
    sections = remembered_config(content)
    if "model" in sections:
        as_argument(sections, f"ckpt_path={str(path)!r}")
    if random.random() < 0.05:
        remembered_network(str(path))


def read_as_ticket(path: Path) -> None:
    """A ticket, and what training starts from."""
    load_ticket(path).start()
    if random.random() < 0.05:
        ticket_info(path)


def read_as_cache(path: Path) -> None:
    """A file of teachers' logits."""
    cache = TeacherLogits(str(path.parent))
    cache._made_with, cache._variants = {"teachers": ["x"], "precision": "32-true"}, 1
    path.replace(cache._path(0))
    cache._check(0)


def _logits() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "x.safetensors"
        metadata = {"format": FORMAT, "made_with": '{"teachers": ["x"], "precision": "32-true"}'}
        save_file({"logits": torch.randn(64, 1, 10)}, place, metadata=metadata)
        with safe_open(place, framework="pt") as file:
            assert file.metadata()
        return place.read_bytes()


def read_as_image_cache(path: Path) -> None:
    """The index (odd sizes of `path`) or the images (even ones) of a cache that lies beside its image files."""
    root = path.parent / "images"
    if not root.is_dir():
        root.mkdir()
        for number in range(4):
            Image.new("RGB", (20 + number, 12), (40 * number, 0, 0)).save(root / f"{number}.png")
    store = ImageStore(path.parent / "cache", "train", "jpeg256", 8)
    names = sorted(file.name for file in root.iterdir())
    store.fill(root, names)
    part = store._path("index.npz" if path.stat().st_size % 2 else "data")
    part.write_bytes(mutated_bytes(part.read_bytes(), random.Random(path.read_bytes())))
    again = ImageStore(path.parent / "cache", "train", "jpeg256", 8)
    again.fill(root, names)
    sizes = {tuple(again.image(number).shape) for number in range(4)}
    if any(size[0] != 3 for size in sizes):
        raise ValueError(f"images of {sizes}")


def _idx(pack: Callable[[bytes], bytes] = bytes) -> bytes:
    return pack(struct.pack(">4B3I", 0, 0, 8, 3, 20, 8, 8) + random.Random(0).randbytes(20 * 64))


def _cifar() -> bytes:
    data = np.frombuffer(random.Random(0).randbytes(20 * 3072), np.uint8).reshape(20, 3072)
    return pickle.dumps({b"data": data, b"labels": [n % 10 for n in range(20)]}, protocol=2)


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def _read_idx(path: Path) -> None:
    read_idx(path, 3)


def _read_cifar(path: Path) -> None:
    read_batch(path, "labels", 10)


def _read_image(path: Path) -> None:
    decode_image(path)


KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], None], Callable[[Any, Path], None] | None, str]] = {
    "checkpoint": ((EARLIER / "run/checkpoints/last.ckpt").read_bytes, read_as_checkpoint, _torch_file, ".ckpt"),
    "ticket": ((EARLIER / "lottery/seed_0/level_01/ticket.pt").read_bytes, read_as_ticket, _sealed_ticket, ".pt"),
    "packed": (
        (EARLIER / "packed.safetensors").read_bytes,
        lambda path: load(path, "torch") and None,
        None,
        ".safetensors",
    ),
    "config": ((EARLIER / "run/config.yaml").read_bytes, check_found, _yaml_file, ".yaml"),
    "logits": (_logits, read_as_cache, None, ".safetensors"),
    "idx": (_idx, _read_idx, None, ".idx"),
    "idx.gz": (lambda: _idx(gzip.compress), _read_idx, None, ".gz"),
    "cifar": (_cifar, _read_cifar, None, ".pickle"),
    "image": (_jpeg, _read_image, None, ".jpg"),
    "image_cache": (lambda: random.Random(0).randbytes(200), read_as_image_cache, None, ".change"),
}
COMMANDS = {
    "checkpoint": [["summary", "{}"], ["test", "--ckpt_path={}", "--trainer.limit_test_batches=1"]],
    "ticket": [["ticket", "info", "{}"], ["test", "--ckpt_path={}", "--trainer.limit_test_batches=1"]],
}


def _answer(read: Callable[[], None]) -> str:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read()
    except InputError as error:
        return "one sentence" if "\n" not in str(error) else "several lines"
    except SystemExit:
        return "left"
    except BaseException as error:
        return f"{type(error).__name__} at {_place(error)}"
    return "read"


def _place(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "bnfree" in name or "lightning_modules" in name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def run_kind(kind: str, mutations: int, seed: int, ran: list[str]) -> Counter[str]:
    """Answers to the mutations of one kind of file, counted."""
    source, read, write, suffix = KINDS[kind]
    content, random_ = source(), random.Random(f"{kind} {seed}")
    random.seed(seed)
    inside: Any = None
    if write is _yaml_file:
        inside = yaml.safe_load(content)
    elif write is not None:
        inside = torch.load(io.BytesIO(content), weights_only=True)
    answers: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "planted.py").write_text("open('marker', 'w').close()\n")
        os.chdir(folder)
        for number in range(mutations):
            path = Path(folder) / f"file{suffix}"
            path.unlink(missing_ok=True)
            if write is None or random_.random() < 0.5:
                path.write_bytes(mutated_bytes(content, random_))
            else:
                changed = mutated(copy.copy(inside), random_)
                with contextlib.suppress(Exception):
                    write(changed, path)
            if not path.exists():
                continue
            trust._approved.clear()
            start, seen = time.monotonic(), len(ran)
            if kind in COMMANDS and number % OF_COMMANDS == OF_COMMANDS - 1:
                words = [word.format(path) for word in random_.choice(COMMANDS[kind])]
                answer = _answer(lambda words=words: main(words) and None)
            else:
                answer = _answer(lambda path=path: read(path))
            seconds = time.monotonic() - start
            answers[answer] += 1
            if answer not in ("read", "one sentence") or seconds > SLOW or len(ran) > seen:
                kept = Path(tempfile.gettempdir()) / f"hostile-{kind}-{seed}-{number}{suffix}"
                if path.exists():
                    kept.write_bytes(path.read_bytes())
                print(f"  {kind} {number}: {answer}, {seconds:.1f} s, {ran[seen:]}, kept as {kept}", flush=True)
            answers["slow"] += seconds > SLOW
        answers["executed"] = len(ran) + (Path(folder) / "marker").exists()
        os.chdir("/")
    return answers


def main_(words: list[str] | None = None) -> int:
    """Prints one line for each kind; the exit code is 1 after an answer that none may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200, help="of each kind (default: 200)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    # A cache that is damaged is made again, which is said each time.
    logging.disable(logging.INFO)
    ran: list[str] = []
    sys.addaudithook(lambda event, arguments: ran.append(event) if event.startswith(FORBIDDEN) else None)
    bad = 0
    for kind in options.kinds:
        start = time.monotonic()
        answers = run_kind(kind, options.mutations, options.seed, ran)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{kind}: {dict(answers)}, {time.monotonic() - start:.0f} s, peak {peak:.0f} MB", flush=True)
        bad += sum(count for answer, count in answers.items() if answer not in ("read", "one sentence"))
        ran.clear()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main_())
