"""Beta, shifts and gains measured once on real images, in one forward pass at initialisation.

The analytic beta (`bnfree.backbones.variance`) assumes that the trunk keeps variance 1. In a ReActNet its standard
deviation falls to 0.03-0.4, so the whole signal sits in the middle of the gradient window |x| < 1, and the channel
means drift until most inputs of a binary convolution share one sign. Calibration gives the window its width and the
sign its balance, block by block: beta = 1 / (mean over channels of the input's standard deviation), then shift =
-channel mean of beta * input. Full calibration also divides each filter's gain by the standard deviation of its
output, as weight normalisation is initialised (Salimans and Kingma, 2016, arXiv 1602.07868), since the standardised
filters of the stem answer natural images with very different strength, which batch norm would level out; and it centres
the trunk before and after each RPReLU, whose bend then lies where the signal is.

Trained weights that get another meaning need less: where binary weights take the place of real ones, the outputs of
the convolutions shrink, to sqrt(2/pi) = 0.80 of what they were for Gaussian weights and independent inputs, and
`calibrate_gains` gives them back their standard deviation, so that every threshold behind them keeps its place.

Beta is a constant afterwards, shifts and gains are trained on; all are part of the checkpoint and cost nothing at
inference. They are also what tells a calibrated network (`is_calibrated`), so that whatever carries the weights (a
checkpoint, a snapshot, a ticket, an average, another process) carries the answer, and none can contradict the other.

This is our own deviation from arXiv 2104.08215; the README has the measurement behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bnfree.activations import RPReLU
from bnfree.backbones.residual import ResidualUnit
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


@dataclass(frozen=True)
class UnitCalibration:
    """What calibration found and set in one residual unit."""

    name: str
    """Name of the unit in the network."""
    input_std: float
    """Mean over channels of the input's standard deviation."""
    beta_before: float
    """Beta before calibration (the analytic one in a fresh network)."""
    beta: float
    """Beta set."""
    mean_drift: float
    """Mean over channels of |mean| / standard deviation of the input: what the shift takes away."""


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor, full: bool = False) -> list[UnitCalibration]:
    """Sets beta and the RSign shifts of every residual unit from one forward pass over `images`.

    Deterministic: the result depends on the weights and the images alone. The network stays in its mode and keeps its
    latent weights. A network that is calibrated already is calibrated again.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network = ReActNet18(num_classes=10, width=8)
        >>> report = calibrate(network, torch.randn(64, 3, 32, 32), full=True)  # training images in practice
        >>> len(report), report[0].name, is_calibrated(network)
        (16, 'body.0.0', True)

    Args:
        network: a BN-free network with `ResidualUnit`s, such as `ReActNet18(norm="bn_free")`.
        images: (N, C, H, W), floating point, normalised as in training; a few hundred suffice.
        full: also scale the gain of every convolution, so that each channel of its output has standard deviation 1 (a
            channel that is constant keeps its gain), and set the shifts of every RPReLU, so that each channel has mean
            0 before the bend and after it.

    Returns:
        One record per residual unit, in the order of the forward pass.

    Raises:
        InputError: no unit to calibrate, or images that are empty or not finite.
    """
    units = _units(network)
    if not units:
        raise InputError("network has no residual unit with a beta; calibration is for norm='bn_free' networks.")
    _check_images(images)
    report: list[UnitCalibration] = []

    def calibrate_unit(name: str, unit: ResidualUnit, inputs: tuple[Any, ...]) -> None:
        std, mean = torch.std_mean(_wide(inputs[0]), dim=(0, 2, 3), correction=0)
        # A dead trunk has no scale to restore; the floor keeps beta finite.
        typical = std.mean().clamp(min=1e-3)
        beta = cast(Tensor, unit.beta)
        before = beta.item()
        # In place: DistributedDataParallel holds on to the tensors that it was given.
        beta.copy_(1 / typical)
        unit.rsign.shift.copy_(-mean / typical)
        drift = (mean.abs() / std.clamp(min=1e-12)).mean()
        report.append(UnitCalibration(name, typical.item(), before, beta.item(), drift.item()))

    def calibrate_gain(layer: BinaryConv2d, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        std = _stds(output)
        factor = torch.where(std > 1e-6, 1 / std, 1.0)
        cast(Tensor, layer.gain).mul_(layer.of_rows(factor).view(-1, 1, 1, 1))
        return output * factor.view(1, -1, 1, 1).to(output.dtype)

    def calibrate_shift_in(rprelu: RPReLU, inputs: tuple[Any, ...]) -> None:
        rprelu.shift_in.copy_(-_wide(inputs[0]).mean((0, 2, 3)))

    def calibrate_shift_out(rprelu: RPReLU, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        mean = _wide(output).mean((0, 2, 3))
        rprelu.shift_out.sub_(mean)
        return output - mean.view(1, -1, 1, 1).to(output.dtype)

    hooks = [
        unit.register_forward_pre_hook(lambda unit, inputs, name=name: calibrate_unit(name, unit, inputs))
        for name, unit in units.items()
    ]
    if full:
        convolutions = (m for m in network.modules() if isinstance(m, BinaryConv2d) and m.gain is not None)
        hooks += [convolution.register_forward_hook(calibrate_gain) for convolution in convolutions]
        hooks += [unit.rprelu.register_forward_pre_hook(calibrate_shift_in) for unit in units.values()]
        hooks += [unit.rprelu.register_forward_hook(calibrate_shift_out) for unit in units.values()]
    _run(network, images, hooks)
    return report


@torch.no_grad()
def calibrate_gains(network: nn.Module, images: Tensor, original: nn.Module | None = None) -> dict[str, Tensor]:
    """Sets the gains of the binary convolutions so that their outputs are as strong as in another network.

    For the hand-over from real to binary weights: gain_c is multiplied by std_c of the original's output / std_c of
    this network's, channel by channel and in the order of the forward pass, with the layers before it set already. Two
    forward passes. Latent weights, shifts, slopes and beta stay, and so does the gain of a channel that is constant in
    either network. Once done, it changes nothing any more with the same `original`.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> step1 = ReActNet18(num_classes=10, width=8, binary_weights=False)  # trained in practice
        >>> step2 = ReActNet18(num_classes=10, width=8, binary_weights=True)
        >>> _ = step2.load_state_dict(step1.state_dict())
        >>> factors = calibrate_gains(step2, torch.randn(64, 3, 32, 32))
        >>> len(factors), 1.1 < factors["body.0.0.convolution"].mean() < 1.5
        (16, tensor(True))

    Args:
        network: the network whose gains are set; it stays in its mode.
        images: (N, C, H, W), floating point, normalised as in training; a few hundred suffice.
        original: network with convolutions of the same names and numbers of filters, which the shifts were learned
            with; None: this one with real weights in the place of binary ones, while its gains still are those of
            training step 1.

    Returns:
        The factors (O,) by name of the convolution, in the order of the forward pass.

    Raises:
        InputError: no binary convolution with a gain, an original that lacks one of them or has another number of
            channels there, or images that are empty or not finite.
    """
    layers = {
        name: m for name, m in network.named_modules()
        if isinstance(m, BinaryConv2d) and m.binary_weights and m.gain is not None
    }  # fmt: skip
    if not layers:
        raise InputError("network has no binary convolution with a gain, so there is none to set.")
    _check_images(images)
    if original is None:
        with _real_weights(layers):
            wanted = _output_stds(network, layers, images)
    else:
        theirs = {name: m for name, m in original.named_modules() if isinstance(m, BinaryConv2d)}
        for name, layer in layers.items():
            if name not in theirs or theirs[name].out_channels != layer.out_channels:
                raise InputError(f"original has no convolution {name!r} of {layer.out_channels} filters.")
        wanted = _output_stds(original, {name: theirs[name] for name in layers}, images)
    factors: dict[str, Tensor] = {}

    def set_gain(name: str, layer: BinaryConv2d, output: Tensor) -> Tensor:
        std = _stds(output)
        alive = (std > 1e-6) & (wanted[name] > 1e-6)
        factor = torch.where(alive, wanted[name] / std, 1.0)
        factors[name] = factor
        cast(Tensor, layer.gain).mul_(layer.of_rows(factor).view(-1, 1, 1, 1))
        return output * factor.view(1, -1, 1, 1).to(output.dtype)

    _run(network, images, _output_hooks(layers, set_gain))
    return factors


@contextmanager
def _real_weights(layers: dict[str, BinaryConv2d]) -> Iterator[None]:
    """Convolutions with real weights for a while."""
    for layer in layers.values():
        layer.binary_weights = False
    try:
        yield
    finally:
        for layer in layers.values():
            layer.binary_weights = True


def _output_stds(network: nn.Module, layers: dict[str, BinaryConv2d], images: Tensor) -> dict[str, Tensor]:
    stds: dict[str, Tensor] = {}

    def measure(name: str, layer: BinaryConv2d, output: Tensor) -> None:
        stds[name] = _stds(output)

    _run(network, images, _output_hooks(layers, measure))
    return stds


def _output_hooks(layers: dict[str, BinaryConv2d], action: Callable[[str, BinaryConv2d, Tensor], Any]) -> list[Any]:
    return [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: action(name, layer, output))
        for name, layer in layers.items()
    ]


def _run(network: nn.Module, images: Tensor, hooks: list[Any]) -> None:
    """One forward pass, after which the hooks are gone."""
    try:
        # A compiled network may have been traced without the hooks.
        with torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.shape[0] == 0:
        raise InputError(f"images has shape {tuple(images.shape)}; calibration needs (N, C, H, W) with N > 0.")
    if not torch.isfinite(images).all():
        raise InputError("images holds values that are not finite; calibration would spread them to every beta.")


@torch.no_grad()
def calibrate_stem(network: nn.Module, strength: float) -> bool:
    """Divides the gain of the stem by how much stronger the images are than those that the network was trained on.

    The network then does to images that are multiplied by `strength` what it did to them before, up to rounding: its
    stem is linear and has no bias, and no constant behind it has to change.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network, images = ReActNet18(num_classes=10, width=8), torch.randn(2, 3, 32, 32)
        >>> before = network(images)
        >>> calibrate_stem(network, 8.0), torch.allclose(network(8 * images), before)
        (True, True)

    Args:
        network: with a stem as `bnfree.backbones.residual.Stem`.
        strength: standard deviation of the new images / that of the old ones, greater than 0.

    Returns:
        Whether there is a stem with a gain; without one nothing is done.
    """
    gain = getattr(getattr(getattr(network, "stem", None), "convolution", None), "gain", None)
    if not isinstance(gain, Tensor):
        return False
    gain.div_(strength)
    return True


def first_images(batches: Iterable[Any], count: int) -> Tensor:
    """The first images of a loader, to calibrate on; the global random state of the CPU comes back.

    Args:
        batches: (images, ...) with images (N, C, H, W), or images alone.
        count: how many; fewer where the loader has no more.

    Raises:
        InputError: the first batch is something else, or there is none.
    """
    images: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        for batch in batches:
            first = batch[0] if isinstance(batch, list | tuple) and len(batch) else batch
            if not isinstance(first, Tensor):
                raise InputError(
                    f"batch={type(batch).__name__} holds no images to calibrate on; let the loader give (images, "
                    "labels)."
                )
            images.append(first)
            if sum(map(len, images)) >= count:
                break
    if not images:
        raise InputError("the training loader has no batch to calibrate on.")
    return torch.cat(images)[:count]


def needs_calibration(network: nn.Module) -> bool:
    """Whether a network holds BN-free units of which none is calibrated or trained.

    Args:
        network: a network or a module that holds some.
    """
    reference = any(not getattr(module, "wants_calibration", True) for module in network.modules())
    return bool(_units(network)) and not reference and not is_calibrated(network)


def is_calibrated(network: nn.Module) -> bool:
    """Whether the constants of the residual units are no longer those of a fresh network.

    Read off the weights: a fresh network's RSign shifts are all 0, and calibrating sets them, in either form. So does
    the first step of training, and weights of a training that went without calibration count as calibrated too: they
    have grown around the constants that they were trained with, which must stay. A network that is put back to weights
    from before its calibration is not calibrated any more. False where there is nothing to calibrate.

    Example:
        >>> from bnfree.backbones import ReActNet18
        >>> network = ReActNet18(num_classes=10, width=8)
        >>> is_calibrated(network)
        False
        >>> _ = calibrate(network, torch.randn(64, 3, 32, 32))
        >>> other = ReActNet18(num_classes=10, width=8)
        >>> _ = other.load_state_dict(network.state_dict())
        >>> is_calibrated(other)
        True
    """
    return any(bool(unit.rsign.shift.detach().any()) for unit in _units(network).values())


def _units(network: nn.Module) -> dict[str, ResidualUnit]:
    return {name: m for name, m in network.named_modules() if isinstance(m, ResidualUnit) and m.beta is not None}


def _stds(x: Tensor) -> Tensor:
    """Standard deviation of each channel (C,) of `x` (N, C, H, W)."""
    return _wide(x).std(dim=(0, 2, 3), correction=0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
