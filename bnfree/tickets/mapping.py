"""Which block of a ticket each block of a deeper or shallower network comes from.

A mapping is written as in the public code of "The elastic lottery ticket hypothesis" (Chen et al., NeurIPS 2021, arXiv
2103.16547): `0:0;1:1,3;2:2,4` says that block 1 of a stage goes to the places 1 and 3. One such text serves all stages,
or one for each stage, joined by `|`. The first block of a stage, which changes the shape, is 0:0 in every mapping:
never replicated, never dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bnfree.errors import InputError

Order = Literal["append", "interpolate"]


def default_sources(count: int, target_count: int, order: Order = "append") -> list[int]:
    """Which block of a stage each place of the new stage is filled from.

    Stretching uses every block but the first as equally often as possible, the earlier ones once more where it does not
    come out even: B1 B2 becomes B1 B2 B1 B2 (`append`) or B1 B1 B2 B2 (`interpolate`). Squeezing keeps the first of
    what stretching back to the old depth in the same order would make copies of, so block 1 stays and squeezing undoes
    stretching: the blocks that come first (`append`), or blocks at regular distances (`interpolate`).

    Args:
        count: blocks of the stage in the ticket, the first included.
        target_count: blocks of the stage in the new network.
        order: `append` or `interpolate`.

    Returns:
        One number of a block for each place, the first 0.

    Raises:
        InputError: an unknown order, or a stage of one block that is to grow.
    """
    if order not in ("append", "interpolate"):
        raise InputError(f"order={order!r} is not known; choose 'append' or 'interpolate'.")
    if target_count < count:
        stretched = default_sources(target_count, count, order) if target_count > 1 else [0]
        return [stretched.index(block) for block in range(target_count)]
    if count == 1:
        if target_count > 1:
            raise InputError(
                f"a stage of 1 block cannot become one of {target_count}: the first block of a stage is never copied."
            )
        return [0]
    places = [1 + place % (count - 1) for place in range(target_count - 1)]
    return [0, *(places if order == "append" else sorted(places))]


def parse_mapping(mapping: str, counts: Sequence[int], targets: Sequence[Sequence[str]]) -> list[list[int]]:
    """Reads a mapping and checks that it fills every place of the new network exactly once.

    Args:
        mapping: the text, see above.
        counts: blocks of each stage in the ticket.
        targets: names of the blocks of each stage in the new network.

    Returns:
        For each stage the block that each place is filled from, see `default_sources`.

    Raises:
        InputError: a text that cannot be read, another number of stages, a block that does not exist, a place that is
            left uncovered or filled twice, or a first block that is not 0:0.
    """
    texts = mapping.split("|")
    if len(texts) not in (1, len(targets)):
        raise InputError(
            f"mapping={mapping!r} has {len(texts)} stages, the network {len(targets)}; give one part for all stages or "
            f"{len(targets)} of them joined by '|'."
        )
    texts = texts * len(targets) if len(texts) == 1 else texts
    return [_stage(*stage, mapping) for stage in zip(texts, counts, targets, strict=True)]


def format_mapping(sources: Sequence[Sequence[int]]) -> str:
    """The text of a mapping, one part for each stage: what `parse_mapping` reads."""
    return "|".join(
        ";".join(
            f"{block}:{','.join(str(place) for place, from_ in enumerate(stage) if from_ == block)}"
            for block in sorted(set(stage))
        )
        for stage in sources
    )


def _stage(text: str, count: int, names: Sequence[str], mapping: str) -> list[int]:
    given = f"mapping={mapping!r}"
    sources: dict[int, int] = {}
    for entry in text.split(";"):
        block, colon, places = entry.partition(":")
        numbers = [block, *places.split(",")]
        if not colon or not all(number.strip().isdecimal() for number in numbers):
            raise InputError(f"{given} cannot be read at {entry!r}; write it as '0:0;1:1,3;2:2,4'.")
        source = int(block)
        if source >= count:
            raise InputError(f"{given} names block {source}; this stage of the ticket has the blocks 0-{count - 1}.")
        for place in map(int, numbers[1:]):
            if place >= len(names):
                raise InputError(f"{given} fills place {place} of a stage that ends with {names[-1]!r}.")
            if place in sources:
                raise InputError(f"{given} fills {names[place]!r} twice; fill each block of the network once.")
            sources[place] = source
    for place, name in enumerate(names):
        if place not in sources:
            raise InputError(f"{given} leaves {name!r} uncovered; fill each block of the network once.")
        if (place == 0) != (sources[place] == 0):
            raise InputError(
                f"{given} fills {name!r} from block {sources[place]}; the first block of a stage goes to the first "
                "place, 0:0, and to no other."
            )
    return [sources[place] for place in range(len(names))]
