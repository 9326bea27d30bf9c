"""Where numbers stop being finite: the first layer of a forward or backward pass with a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnfree.state_dicts import plain_name


@dataclass(frozen=True)
class NonFinite:
    """The first place that is not finite."""

    kind: str
    """`input`, `weight`, `output`, `loss` or `gradient`."""
    name: str
    """Name of the layer or parameter; empty for inputs and the loss."""

    def __str__(self) -> str:
        return {
            "input": "the batch itself holds values that are not finite",
            "weight": f"the weights of {self.name} are not finite before the step",
            "output": f"the first layer whose output is not finite is {self.name}",
            "loss": "every layer's output is finite, and the loss computed from them is not",
            "gradient": f"outputs and loss are finite, and the first layer that the backward pass reaches with a "
            f"gradient that is not is {self.name}",
        }[self.kind]


def any_non_finite(gradients: Iterable[Tensor]) -> Tensor:
    """Whether any of the gradients holds a NaN or an infinity: float32 of shape (), 1 or 0, on the first one's device.

    Exact: finite numbers of any size pass. One kernel for all gradients of a device and dtype, the one that
    `torch.amp.GradScaler` looks with, which multiplies them by 1 on the way; an accelerator is not waited for.

    Example:
        >>> any_non_finite([torch.tensor([3e38, 3e38]), torch.ones(2)])
        tensor(0.)
        >>> any_non_finite([torch.tensor([1.0, torch.nan])])
        tensor(1.)
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        values = gradient.detach()
        values = values.coalesce().values() if values.is_sparse else values
        groups.setdefault((values.device, values.dtype), []).append(values)
    flags = []
    for (device, dtype), group in groups.items():
        if dtype in (torch.float32, torch.bfloat16, torch.float16) and device.type in ("cpu", "cuda"):
            flag, one = torch.zeros((), device=device), torch.ones((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(group, flag, one)
            flags.append(flag)
        elif dtype.is_floating_point or dtype.is_complex:
            flags.append(torch.stack([values.isfinite().all() for values in group]).all().logical_not().float())
    if not flags:
        return torch.zeros(())
    return torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags]).amax()


def first_non_finite(network: nn.Module, run: Callable[[], Tensor], inputs: Any = ()) -> NonFinite | None:
    """The first place that is not finite in a forward and backward pass; None if all is finite.

    Waits for the device at each layer: made for one pass, once something is wrong. Gradients of the parameters are left
    as they were; what else a pass changes (random state, running statistics) is the caller's.

    Args:
        network: whose layers are watched, in the order in which they are called.
        run: computes the loss, of shape (), through the network.
        inputs: tensors, or lists, tuples and dicts of such, that the pass starts from.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = nn.init.constant_(network[0].weight, 1e38)
        >>> str(first_non_finite(network, lambda: network(torch.full((1, 2), 10.0)).sum()))
        'the first layer whose output is not finite is 0'
    """
    if _is_non_finite(inputs):
        return NonFinite("input", "")
    for name, parameter in network.named_parameters():
        if _is_non_finite(parameter):
            return NonFinite("weight", plain_name(name))
    outputs: list[str] = []
    gradients: list[str] = []

    def look(name: str, output: Any) -> None:
        if not outputs and _is_non_finite(output):
            outputs.append(name)
        for tensor in _tensors(output):
            if tensor.requires_grad and not outputs:
                tensor.register_hook(lambda gradient: look_back(name, gradient))

    def look_back(name: str, gradient: Tensor) -> None:
        if not gradients and _is_non_finite(gradient):
            gradients.append(name)

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: look(plain_name(name), output))
        for name, module in network.named_modules()
        if name
    ]
    kept = [(parameter, parameter.grad) for parameter in network.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        # A compiled network may have been traced without the hooks.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            loss = run()
            if outputs:
                return NonFinite("output", outputs[0])
            if _is_non_finite(loss):
                return NonFinite("loss", "")
            if loss.requires_grad:
                loss.backward()
        if gradients:
            return NonFinite("gradient", gradients[0])
        # What no output's gradient shows arises in the gradient of a parameter alone, last in the forward order first.
        for name, parameter in reversed(list(network.named_parameters())):
            if parameter.grad is not None and _is_non_finite(parameter.grad):
                return NonFinite("gradient", plain_name(name))
        return None
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in kept:
            parameter.grad = gradient


def _is_non_finite(value: Any) -> bool:
    return any(not bool(tensor.isfinite().all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
