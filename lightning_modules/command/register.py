"""`bnfree export --register`: an exported network gets a name and a card."""

from __future__ import annotations

from pathlib import Path

import torch

from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.lightning_modules.deployment.bench import describe_machine
from bnfree.lightning_modules.deployment.export import ExportResult
from bnfree.lightning_modules.deployment.packed_files import open_packed
from bnfree.lightning_modules.deployment.timing import interleaved
from bnfree.lightning_modules.reports.model_card import CardFacts, model_card
from bnfree.lightning_modules.training.run_directory import run_directory_of
from bnfree.packing.engines import is_available
from bnfree.packing.registry import Entry, add_entry, check_free, read_registry, users_registry

# For the card's speed.
SECONDS = 1.0


def check_registration(
    name: str | None, url: str | None, registry: str | None, kind: str, replace: bool
) -> Path | None:
    """The registry that an entry goes to, before anything is written; None: no entry is asked for.

    Args:
        name: of the entry; None: none.
        url: where the file will lie.
        registry: file of the registry; None: the user's.
        kind: the format of the file.
        replace: whether the name may be taken.

    Raises:
        InputError: names, URLs or formats that no entry can have, or a name that is taken.
    """
    if name is None:
        if url is not None or registry is not None:
            raise InputError(f"{'url' if url is not None else 'registry'} goes with register; add --register=NAME.")
        return None
    if kind != "packed":
        raise InputError(f"register={name!r} goes with the format packed; networks are called by name from such files.")
    place = users_registry() if registry is None else Path(registry).expanduser()
    # A name and a URL are looked at as an entry's are.
    Entry(name, "0" * 64, 1, Path("file"), url)
    check_free(read_registry(place), name, place, replace)
    return place


def register(found: ExportResult, checkpoint: str | Path, name: str, url: str | None, place: Path) -> Path:
    """Writes the entry of an exported network and its card.

    Args:
        found: what has been exported.
        checkpoint: what was exported.
        name: the network's name from now on.
        url: where the file will lie for others; None: nowhere.
        place: the registry.

    Returns:
        The card, `NAME.md` beside the registry.
    """
    path = found.paths[0]
    facts = CardFacts(
        name=name, layers=found.packed.layers, info=found.packed.info, sha256=found.sha256, size=found.size,
        float32_size=found.float32_size, speed=_speed(path), url=url,
        export_command=f"bnfree export RUN/checkpoints/{Path(checkpoint).name} --register {name}",
    )  # fmt: skip
    card = place.parent / f"{name}.md"
    text = model_card(facts, run_directory_of(checkpoint))
    add_entry(place, Entry(name, found.sha256, found.size, path, url), replace=True)
    with whole_file(card) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return card


def _speed(path: Path) -> str:
    engine = "numba" if is_available("numba") else "torch"
    network, machine = open_packed(path, engine, threads=1), describe_machine()
    if network.info.image_shape is None:
        return ""
    images = torch.zeros(1, *network.info.image_shape)
    times = interleaved({engine: lambda: network(images)}, SECONDS)[engine]
    busy = f", on a busy machine (load {machine.load:.1f})" if machine.load is not None and machine.busy else ""
    return (
        f"{1e3 * times.median:.3g} ms an image (batch 1, one thread, {engine}, median of {times.calls}; "
        f"{machine.processor}{busy})"
    )
