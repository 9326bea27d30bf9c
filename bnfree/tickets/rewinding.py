"""Rewinding as data: the weights of an early moment of training, and a network that is put back to them.

Sources: Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis" (ICML 2020, arXiv 1912.05671) for
rewinding to an early step; "A winning sign" (arXiv 2504.05357) for signs alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bnfree.checksums import value_bytes
from bnfree.convolution import BinaryConv2d, standardize_weight
from bnfree.diagnostics.signs import convolutions
from bnfree.errors import InputError
from bnfree.state_dicts import plain_names
from bnfree.tickets.masks import apply, check_masks

Snapshot = dict[str, Tensor]
"""Parameters and buffers of a network by name, without masks; copies on the CPU."""

Rewound = Literal["all", "latents"]


@torch.no_grad()
def take_snapshot(network: nn.Module) -> Snapshot:
    """Copies every parameter and every buffer that is part of the state dict, masks left out.

    Gains, shifts, beta, the classifier and batch norm's statistics are among them: a ticket starts where its network
    was, in everything but the pruned weights. Pruned latent weights are copied as they are, so take the snapshot before
    the first pruning if controls are to use it with other masks; and after the calibration, which is part of the start:
    what is put back to weights from before it will be calibrated by the next fit.
    """
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in _state(network).items()}


@torch.no_grad()
def rewind(
    network: nn.Module,
    snapshot: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    parameters: Rewound = "all",
) -> None:
    """Puts a network back to a snapshot, bit for bit, and masks it; in place, so that no optimizer loses a parameter.

    The snapshot is copied, never shared with the network. Pruned latent weights become 0. The optimizer's state is the
    caller's to reset. Nothing has changed when an error is raised.

    Args:
        network: the network.
        snapshot: what `take_snapshot` has copied from a network of the same architecture.
        masks: masks to apply; None: the network keeps those that it has.
        parameters: `all`; or `latents`: only the latent weights of the layers in `masks` (without masks: of the layers
            that have one), while gains, shifts and everything else stay trained.

    Raises:
        InputError: a snapshot of another architecture, masks that do not fit, or an unknown choice.
    """
    if parameters not in ("all", "latents"):
        raise InputError(f"parameters={parameters!r} is not known; choose 'all' or 'latents'.")
    layers, own = convolutions(network), _state(network)
    check_masks(layers, masks or {}, type(network).__name__)
    if parameters == "latents":
        names = masks if masks is not None else [name for name, layer in layers.items() if layer.mask is not None]
        own = {f"{name}.weight": own[f"{name}.weight"] for name in names}
        snapshot = {name: snapshot[name] for name in own if name in snapshot}
    problems = (
        ("lacks", sorted(own.keys() - snapshot.keys())),
        ("has in addition", sorted(snapshot.keys() - own.keys())),
        ("has in another shape", sorted(n for n in own.keys() & snapshot.keys() if own[n].shape != snapshot[n].shape)),
    )
    for problem, names_ in problems:
        if names_:
            raise InputError(
                f"the snapshot does not fit {type(network).__name__}: it {problem} {names_[0]!r}; rewind to one of a "
                "network of the same architecture."
            )
    for name, tensor in own.items():
        tensor.copy_(snapshot[name])
    apply(network, masks or {})


@torch.no_grad()
def signs_of(network: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Snapshot:
    """A snapshot that keeps of the masked layers' latent weights nothing but their signs (rewinding by `sign`).

    Each surviving latent weight becomes its sign times a constant of the layer: the mean magnitude of the survivors
    there. The sign is the one that the layer sees, which in a standardised layer is that of the weight minus the mean
    of the filter's survivors; it is what the layer sees afterwards too. Pruned weights become 0, all other parameters
    stay.

    Args:
        network: says which layers are standardised; its weights are not used.
        snapshot: the weights whose signs are meant.
        masks: the masks.

    Raises:
        InputError: masks that do not fit the network or the snapshot.
    """
    result = dict(snapshot)
    for name, layer, seen, mask in seen_weights(network, snapshot, masks):
        size = seen.abs().sum() / mask.sum().clamp(min=1)
        weight = snapshot[f"{name}.weight"]
        result[f"{name}.weight"] = (
            (torch.where(seen >= 0, size, -size) * mask).to(weight.dtype).view(layer.weight.shape)
        )
    return result


def seen_weights(
    network: nn.Module, snapshot: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[tuple[str, BinaryConv2d, Tensor, Tensor]]:
    """For each mask the name, the layer, what is binarised there of the snapshot's weight, and the mask, on the CPU.

    What is binarised: float64, 0 where masked; in a standardised layer the latent weight minus the mean of its filter's
    survivors.

    Raises:
        InputError: masks that do not fit the network or the snapshot.
    """
    layers = convolutions(network)
    check_masks(layers, masks, type(network).__name__)
    found = []
    for name, given in masks.items():
        weight, mask, layer = snapshot.get(f"{name}.weight"), given.bool().cpu(), layers[name]
        if weight is None or weight.shape != mask.shape:
            raise InputError(
                f"the snapshot holds no weight of {name!r} with the shape {tuple(mask.shape)} of its mask."
            )
        seen = weight.double() * mask
        if layer.standardize:
            # In the dtype of the layer, which decides where a filter has no variance; then stretched to its old size.
            unit = standardize_weight(weight, mask, layer.eps).double()
            size = (seen * unit).sum((1, 2, 3), keepdim=True) / unit.square().sum((1, 2, 3), keepdim=True).clamp(
                min=1e-300
            )
            seen = unit * size
        found.append((name, layer, seen, mask))
    return found


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in hexadecimal, whatever the order of the mapping."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{len(name)}:{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(value_bytes(tensor))
    return digest.hexdigest()


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the tensors themselves, without masks and the names that torch.compile adds."""
    masks = {f"{name}.mask" for name in convolutions(network)}
    state = plain_names({name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)})
    return {name: value for name, value in state.items() if name not in masks}
