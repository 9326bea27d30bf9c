"""An owner's mark in the masks of a ticket.

The carrier is the occupancy of kernels: whether any weight of the kH x kW weights between one input channel and one
filter survives. It outlives training, which does not touch masks, and most further pruning, since a kernel dies only
with its last weight. A secret key chooses kernels in several layers and what each of them has to be, so that without
the key the mark can be neither found nor read; see `verify` for how it is proved.

Sign before the last training, which then makes up for the change. A mark says that whoever has the key had a hand in
the masks. Who was first it does not say, since others can put a second mark on top: for this, publish `commitment` when
the ticket is made.

Source: Chen et al., "You are caught stealing my winning lottery ticket!" (NeurIPS 2021, arXiv 2111.00162), who write a
QR code into a window of one layer. Deviations: keyed kernels all over the network in place of a window, a keyed payload
and a p-value in place of a picture to be decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.tickets.generators import layer_generator
from bnfree.tickets.keyed import check_key, key_digest, mark_of
from bnfree.tickets.masks import Masks, checksum

# A layer gives at most this share of its kernels to the mark, so that the others can keep its density.
LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class Signature:
    """What is needed besides the key to verify a mark; none of it is secret. Keep it in a ticket's `details`."""

    message: str
    """What was signed: an owner's name, the checksum of a model card."""
    layers: dict[str, list[int]]
    """For each marked layer its filters, input channels of each filter, and number of marked kernels."""
    key_id: str
    """Recognises the key, and says nothing about it."""
    created: str
    """When, as the owner stated it."""
    commitment: str
    """The commitment to the signed masks, see `commitment`."""

    def plain(self) -> dict[str, Any]:
        """As a dict of plain values, for `details["ownership"]`; `Signature(**details["ownership"])` reads it."""
        return asdict(self)


def sign(
    masks: Mapping[str, Tensor],
    key: str,
    message: str = "",
    *,
    bits: int = 256,
    magnitudes: Mapping[str, Tensor] | None = None,
    layers: Sequence[str] | None = None,
    created: str = "",
) -> tuple[Masks, Signature]:
    """Puts a mark into masks. Every layer keeps its number of survivors, and no filter becomes empty.

    About half of the marked kernels are what they have to be already. In the others the best pruned weight comes alive,
    or all weights are pruned; in return the layer's weakest other weights are pruned, or its best others come alive.

    Args:
        masks: the ticket's masks.
        key: the owner's secret, at least 16 characters, see `new_key`.
        message: what is signed; verification needs the same text.
        bits: number of kernels to mark, spread over the layers as equally as their sizes allow. 256 leave a p-value
            below 1e-10 when every fourth bit has been destroyed, at occupancies around one half.
        magnitudes: for each layer how good its weights are, the pruned ones included, in the shape of the weight and
            comparable within the layer: the latent weights of a ticket's `rewind`, for instance, whose signs are
            ignored. None: random ones that depend on the key.
        layers: names of the layers to mark; None: all.
        created: when, in any notation, such as `2026-05-04`: part of the commitment.

    Returns:
        The marked masks, and the signature.

    Raises:
        InputError: a short key, a layer that does not exist, magnitudes that do not fit, or more bits than the layers
            can hold: nearly empty and nearly dense ones hold few.
    """
    check_key(key)
    counts = _spread(masks, bits, list(masks) if layers is None else list(layers))
    signed = {name: mask.detach().cpu().bool().clone() for name, mask in masks.items()}
    marked = {}
    for name, count in counts.items():
        mask = signed[name]
        filters, channels = mask.shape[:2]
        kernels, wanted = mark_of(key, message, name, filters, channels, count)
        signed[name] = _marked(mask, kernels, wanted, _magnitudes(magnitudes, name, mask, key), name, bits)
        marked[name] = [filters, channels, count]
    proof = commitment(signed, key, message, created)
    return signed, Signature(message, marked, key_digest(key, "bnfree key id")[:16], created, proof)


def commitment(masks: Mapping[str, Tensor], key: str, message: str = "", created: str = "") -> str:
    """SHA-256 over masks, key, message and time, in hexadecimal: to be published when the ticket is made.

    It gives nothing away, neither masks nor key, and only who knows both can open it later by computing it again.

    Args:
        masks: the signed masks.
        key: the owner's secret.
        message: what was signed.
        created: when, as it was given to `sign`.

    Raises:
        InputError: a short key.
    """
    check_key(key)
    parts = ["bnfree ownership 1", checksum(masks), key_digest(key, "bnfree commitment"), message, created]
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


def occupancy(mask: Tensor) -> Tensor:
    """Which kernels have a survivor: bool (O, I, kH, kW) to bool (O, I)."""
    return mask.bool().flatten(2).any(2)


def _spread(masks: Mapping[str, Tensor], bits: int, layers: list[str]) -> dict[str, int]:
    """How many bits each layer gets: equal numbers, except where a layer is too small for its part."""
    for name in layers:
        if name not in masks:
            raise InputError(f"layers holds {name!r}, which has no mask; choose among {', '.join(masks)}.")
    room = {name: _room(masks[name]) for name in dict.fromkeys(layers)}
    if not 1 <= bits <= sum(room.values()):
        raise InputError(
            f"bits={bits} must be between 1 and {sum(room.values())}, which is what these layers can hold: a quarter "
            "of their kernels, and half of the survivors that their filters can spare."
        )
    counts, left = {}, bits
    for index, (name, size) in enumerate(sorted(room.items(), key=lambda item: (item[1], item[0]))):
        # What a small layer cannot take goes to the larger ones.
        counts[name] = min(size, left // (len(room) - index))
        left -= counts[name]
    return {name: counts[name] for name in room if counts[name]}


def _room(mask: Tensor) -> int:
    """How many kernels of a layer the mark may take: so few that the survivors which it needs are there."""
    spare = int(mask.sum()) - int(mask.bool().flatten(1).any(1).sum())
    return min(int(LARGEST_SHARE * mask.shape[0] * mask.shape[1]), spare // 2)


def _magnitudes(magnitudes: Mapping[str, Tensor] | None, name: str, mask: Tensor, key: str) -> Tensor:
    if magnitudes is None:
        return torch.rand(mask.shape, generator=layer_generator(0, key_digest(key, f"bnfree order:{name}")))
    if name not in magnitudes or magnitudes[name].shape != mask.shape:
        raise InputError(f"magnitudes holds nothing of the shape {tuple(mask.shape)} for {name!r}.")
    values = magnitudes[name].detach().cpu().double().abs()
    if not values.isfinite().all():
        raise InputError(f"magnitudes[{name!r}] holds values that are not finite; pruned weights need magnitudes too.")
    return values


def _marked(mask: Tensor, kernels: list[int], wanted: list[bool], size: Tensor, name: str, bits: int) -> Tensor:
    """One layer's mask with its mark and as many survivors as before."""
    before, size = mask.flatten(2), size.flatten(2)
    flat = before.clone().flatten(0, 1)
    chosen = torch.tensor(kernels)
    full, empty = chosen[torch.tensor(wanted)], chosen[~torch.tensor(wanted)]
    sizes = size.flatten(0, 1)
    needed = full[~flat[full].any(1)]
    flat[needed, sizes[needed].argmax(1)] = True
    flat[empty] = False
    closed = torch.zeros_like(flat)
    closed[empty] = True
    marked, closed = flat.view_as(before).flatten(1), closed.view_as(before).flatten(1)
    by_filter = size.flatten(1)
    # A filter that lost all its weights gets its best one outside the emptied kernels.
    lost = before.flatten(1).any(1) & ~marked.any(1) & ~closed.all(1)
    rows = lost.nonzero().flatten()
    marked[rows, by_filter.masked_fill(closed, -1)[rows].argmax(1)] = True
    surplus = int(marked.sum()) - int(mask.sum())
    # What must stay: the best survivor of each kernel that has to be occupied, and of each filter.
    fixed = torch.zeros_like(marked)
    survivors = by_filter.where(marked, -1)
    alive = marked.any(1).nonzero().flatten()
    fixed[alive, survivors[alive].argmax(1)] = True
    of_kernels = fixed.view(-1, flat.shape[1])
    of_kernels[full, survivors.view(-1, flat.shape[1])[full].argmax(1)] = True
    candidates = marked & ~fixed if surplus > 0 else ~marked & ~closed
    places = candidates.flatten().nonzero().flatten()
    if len(places) < abs(surplus) or bool((before.flatten(1).any(1) & ~marked.any(1)).any()):
        raise InputError(
            f"bits={bits} are more than {name!r} can hold at a density of {mask.float().mean().item():.3g}; give fewer "
            "bits, or leave the layer out."
        )
    order = by_filter.flatten()[places].argsort(descending=surplus < 0, stable=True)
    marked.view(-1)[places[order[: abs(surplus)]]] = surplus < 0
    return marked.view(mask.shape)
