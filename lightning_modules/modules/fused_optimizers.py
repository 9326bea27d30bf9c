"""One kernel for a whole optimizer step, wherever that is safe."""

from __future__ import annotations

from torch.optim import SGD, Adam, AdamW, Optimizer

DEVICES = ("cpu", "cuda")


def prefer_fused(optimizer: Optimizer) -> None:
    """Lets a new Adam, AdamW or SGD step with its fused kernel if its user has said nothing about it.

    A user's `fused` or `foreach` stays, also where it is false. The kernel is chosen in the parameter groups and not in
    the constructor: a fused optimizer that is built as one takes the unscaling of gradients in 16-mixed precision upon
    itself, after everything that clips gradients has seen them scaled. The choice travels in checkpoints with the
    groups, so that a run goes on with the kernel it began with.

    Args:
        optimizer: to change; left alone if it is of another class, or holds a parameter on a device other than a CPU
            or a CUDA GPU.
    """
    # Not their subclasses, whose step may be another one.
    if type(optimizer) not in (Adam, AdamW, SGD):
        return
    if any(group[name] is not None for group in optimizer.param_groups for name in ("fused", "foreach")):
        return
    if any(group["differentiable"] for group in optimizer.param_groups):
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(p.device.type in DEVICES and p.is_floating_point() for p in parameters):
        for group in optimizer.param_groups:
            group["fused"] = True
