"""Federated averaging without normalisation: clients train apart, and their weights are averaged.

Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (AISTATS 2017, arXiv
1602.05629), and Zhuang and Lyu, "FedWon: triumphing multi-domain federated learning without normalization" (ICLR 2024,
arXiv 2306.05879): without batch statistics there is nothing of a client that must not be averaged, and batches of one
image will do. Deviation: binary networks average their latent weights, and every client binarises them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from bnfree.binarize import sign
from bnfree.clipping import adaptive_clip_grad_
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError

State = Mapping[str, Tensor]


def dirichlet_partition(labels: Tensor, clients: int, concentration: float, seed: int = 0) -> list[Tensor]:
    """Images of each client, whose shares of every class are drawn from a Dirichlet law.

    Args:
        labels: int64 (N,).
        clients: number of clients.
        concentration: of the law: 0.1 gives clients of few classes, 0.5 is usual, 100 nearly equal ones.
        seed: of the draws; the global random state is left alone.

    Returns:
        Indices int64 of each client, sorted; each of 0..N - 1 is in one of them. A client may have none.

    Raises:
        InputError: a value out of range.
    """
    if clients < 1:
        raise InputError(f"clients={clients} must be at least 1.")
    if not 0 < concentration < float("inf"):
        raise InputError(f"concentration={concentration} must be a finite number greater than 0.")
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for label in labels.unique(sorted=True):
        own = (labels == label).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        gammas = torch._standard_gamma(torch.full((clients,), concentration, dtype=torch.float64), generator=generator)
        shares = gammas / gammas.sum().clamp(min=1e-300)
        bounds = (shares.cumsum(0) * len(own)).round().long().clamp(max=len(own))
        bounds[-1] = len(own)
        start = 0
        for client, bound in enumerate(bounds.tolist()):
            parts[client].append(own[start : max(start, bound)])
            start = max(start, bound)
    return [torch.cat(part).sort().values for part in parts]


def average_states(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of states, each with its weight.

    Args:
        states: state dicts of the same network.
        weights: such as numbers of images; not negative, and not all 0.

    Returns:
        Tensors in the dtype of the first state; what is no floating-point number is the first state's.

    Raises:
        InputError: no states, states of other networks, or weights that do not fit.
    """
    if not states or len(states) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
        raise InputError(f"weights={list(weights)} must be as many as the states, at least 0, and not all of them 0.")
    if any(state.keys() != states[0].keys() for state in states):
        raise InputError("states are of different networks; average those of one network.")
    for name, first in states[0].items():
        different = name.endswith("kept_rows") and any(not torch.equal(state[name], first) for state in states)
        if different or any(state[name].shape != first.shape for state in states):
            raise InputError(f"states hold different {name!r}; average those of one network, with the same rows left.")
    total = sum(weights)
    averaged = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            mean = sum(s[name].double() * (w / total) for s, w in zip(states, weights, strict=True))
            averaged[name] = torch.as_tensor(mean).to(first.dtype)
        else:
            averaged[name] = first.clone()
    return averaged


def sign_disagreement(states: Sequence[State], names: Sequence[str]) -> float:
    """Share of the weights whose signs, 0 counting as +1, are not the same in all states.

    Args:
        states: state dicts of the same network.
        names: of the weights to look at, such as those of `binary_weights_of`.
    """
    differing = total = 0
    for name in names:
        signs = torch.stack([sign(state[name].detach().float()) for state in states])
        differing += int((signs != signs[0]).any(0).sum())
        total += signs[0].numel()
    return differing / total if total else 0.0


def binary_weights_of(network: nn.Module) -> list[str]:
    """Names of the latent weights of binary convolutions in the state dict."""
    return [f"{n}.weight" for n, m in network.named_modules() if isinstance(m, BinaryConv2d) and m.binary_weights]


def federated_round(
    network: nn.Module,
    clients: Sequence[Sequence[tuple[Tensor, Tensor]]],
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    clip_factor: float = 0.0,
) -> float:
    """One round in one process: every client trains on its batches from the same weights, which are then averaged.

    Args:
        network: changed in place; in the mode in which it is to be trained.
        clients: batches (images, labels) of each client in their order; a client without any takes no part. Weights of
            the average are numbers of images.
        optimizer: from parameters to a new optimizer; clients keep nothing from round to round.
        clip_factor: of adaptive gradient clipping, which takes the part of normalisation; 0 for none. The classifier is
            left out.

    Returns:
        The share of binary weights about whose sign the clients did not agree.

    Raises:
        InputError: no client has a batch.
    """
    start = {name: value.detach().clone() for name, value in network.state_dict().items()}
    states, weights = [], []
    head = {id(p) for p in (getattr(network, "classifier", None) or nn.Module()).parameters()}
    for batches in clients:
        if not batches:
            continue
        network.load_state_dict(start)
        own = optimizer([p for p in network.parameters() if p.requires_grad])
        for images, labels in batches:
            own.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            if clip_factor:
                adaptive_clip_grad_([p for p in network.parameters() if id(p) not in head], clip_factor)
            own.step()
        own.zero_grad()
        states.append({name: value.detach().clone() for name, value in network.state_dict().items()})
        weights.append(sum(len(labels) for _, labels in batches))
    if not states:
        raise InputError("clients have no batch to train on.")
    network.load_state_dict(average_states(states, weights))
    return sign_disagreement(states, binary_weights_of(network))
