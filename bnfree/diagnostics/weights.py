"""Whether a standardised convolution still uses the weight that the method prescribes.

Two things are compared with each other and with the formula, recomputed here in float64 from latent weight, mask and
gain: what `effective_weight()` gives, and what the forward pass does to a random probe. The latent parameter itself
says nothing: pruning it, for instance, prunes nothing, because standardisation subtracts the row mean from the zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.autocast import without_autocast
from bnfree.convolution import BinaryConv2d

# More exact zeros than this among the surviving latent weights are no accident.
LATENT_ZEROS = 0.01

# With fewer survivors than this, a small standard deviation is within chance.
FEW_SURVIVORS = 8


@dataclass(frozen=True)
class WeightStatistics:
    """Figures of one standardised convolution; errors are relative and 0 in a sound layer.

    Rows are output filters. Row figures leave out rows that are dead or not finite, which are counted on their own.
    """

    name: str
    """Name of the layer in the network."""
    filters: int
    """Number of output filters."""
    row_mean: float
    """Worst |row mean| of the standardised weight before binarisation and gain, in row standard deviations; taken there
    because the signs of a sound binary filter need not balance."""
    row_energy_error: float
    """Worst deviation of a row's sum of squares (before binarisation) from gain^2 * (std / (std + eps))^2. The sum runs
    over the survivors and does not depend on the density."""
    formula_error: float
    """Worst difference between `effective_weight()` and the formula, in units of the row's root mean square."""
    forward_error: float
    """Worst difference between the forward pass and a convolution with `effective_weight()`, relative to its largest
    output; infinite where the forward pass gives another shape or values that are not finite."""
    non_finite: int
    """Effective weights that are NaN or infinite."""
    dead_filters: int
    """Rows without a surviving weight, with all weights 0, or whose latent standard deviation is below 10 * eps (below
    eps / 1000 in rows of fewer than 8 survivors, where it says little)."""
    pruned_filters: int
    """Those among the dead that the mask removes as a whole."""
    density: float
    """Share of effective weights that are not 0, in the rows that are not dead."""
    mask_density: float
    """Share of weights that survive in the layer's mask, in the same rows; 1 when dense."""
    latent_zeros: float
    """Share of surviving latent weights that are exactly 0, in the same rows."""
    owns_weight: bool
    """Whether `weight` is the layer's own parameter, not set by torch.nn.utils.prune or a parametrisation."""
    resolution: float
    """Spacing of the latent dtype at 1; errors of a few times this size are rounding."""

    def problems(self, tolerance: float) -> dict[str, str]:
        """What is wrong, most telling first: from a short key to a sentence that names the layer.

        Args:
            tolerance: greatest error, mean or density difference that is accepted; raised to 64 spacings of the dtype.
        """
        limit = max(tolerance, 64 * self.resolution)
        unexplained = self.dead_filters - self.pruned_filters
        found = {
            "non_finite": (self.non_finite, f"has {self.non_finite} effective weights that are NaN or infinite"),
            "owner": (
                not self.owns_weight,
                "does not own its latent weight: torch.nn.utils.prune or a parametrisation sets it, which "
                "standardisation undoes; mask with set_mask()",
            ),
            "latent_zeros": (
                self.latent_zeros > LATENT_ZEROS,
                f"has {self.latent_zeros:.0%} zeros among its surviving latent weights, which standardisation makes "
                "non-zero again; mask with set_mask()",
            ),
            "forward": (
                self.forward_error > limit,
                f"does not convolve with its effective_weight(): the outputs differ by {self.forward_error:.2g}",
            ),
            "formula": (
                self.formula_error > limit,
                f"has an effective_weight() that is not the standardised weight: they differ by "
                f"{self.formula_error:.2g} of a row's root mean square",
            ),
            "row_mean": (
                self.row_mean > limit,
                f"has a standardised row whose mean is {self.row_mean:.2g} standard deviations instead of 0",
            ),
            "row_energy": (
                self.row_energy_error > limit,
                f"has a row whose sum of squares is off gain^2 by {self.row_energy_error:.2g}",
            ),
            "dead": (
                unexplained > 0,
                f"has {unexplained} dead filters of {self.filters}: constant latent weights, or a gain of 0",
            ),
            "density": (
                abs(self.density - self.mask_density) > limit,
                f"has effective density {self.density:.4g}, but its mask says {self.mask_density:.4g}",
            ),
        }
        return {key: f"{self.name} {sentence}." for key, (wrong, sentence) in found.items() if wrong}


def standardized_layers(network: nn.Module) -> dict[str, BinaryConv2d]:
    """The standardised convolutions of a network by name; empty in the batch-norm twin and without normalisation."""
    return {n: m for n, m in network.named_modules() if isinstance(m, BinaryConv2d) and m.standardize}


@torch.no_grad()
def weight_statistics(layer: BinaryConv2d, name: str = "layer") -> WeightStatistics:
    """Measures one convolution as if it were to be standardised, also when its `standardize` has been switched off.

    Runs the layer on a small random probe; leaves the layer and the global random state as they were. Waits for the
    device once.

    Args:
        layer: the convolution.
        name: name for the report.
    """
    forward, used = _probe(layer)
    latent = layer.weight.detach().double()
    rows = latent.shape[0]
    mask = torch.ones_like(latent) if layer.mask is None else layer.mask.double()
    survivors = mask.flatten(1).sum(1)
    gain = (torch.ones(rows, 1, 1, 1) if layer.gain is None else layer.gain.detach()).to(latent)
    standardized, std = _standardize(latent, mask, layer.eps)

    several = survivors > 1
    finite = used.isfinite().flatten(1).all(1)
    off = torch.zeros_like(finite) if layer.rows_off is None else layer.rows_off
    zero = (used == 0).flatten(1).all(1) & ~off
    dead = zero | (several & (std < layer.eps * torch.where(survivors < FEW_SURVIVORS, 1e-3, 10)))
    sound = finite & ~dead & ~off

    real = _without_binarization(layer).double().flatten(1)
    strength = gain.flatten().abs()
    row_mean = real.sum(1).abs() / survivors.sqrt() / strength
    energy = real.square().sum(1) / strength.square()
    expected_energy = (std / (std + layer.eps)).square()
    expected = (_binarize(standardized, mask) if layer.binary_weights else standardized) * gain
    # Rounding may turn the sign of a weight that is as good as equal to its row's mean; there both signs are right.
    centred = (standardized * (std + layer.eps).view(-1, 1, 1, 1) * survivors.sqrt().view(-1, 1, 1, 1)).abs()
    undecided = centred < 8 * torch.finfo(layer.weight.dtype).eps * latent.abs().amax((1, 2, 3), keepdim=True)
    difference = torch.where(undecided, used.abs() - expected.abs(), used - expected).flatten(1).abs().amax(1)
    scale = (expected.flatten(1).square().sum(1) / survivors).sqrt()

    numbers = torch.stack(
        [
            _worst(row_mean, sound & several),
            _worst((energy - expected_energy).abs(), sound & several),
            _worst(difference / scale, sound),
            _worst(forward, finite),
            (~used.isfinite()).sum().double(),
            dead.sum().double(),
            ((survivors == 0) | off).sum().double(),
            _share(used != 0, sound.view(-1, 1, 1, 1)),
            _share(mask != 0, sound.view(-1, 1, 1, 1)),
            1 - _share(latent != 0, sound.view(-1, 1, 1, 1) & (mask != 0)),
        ]
    ).tolist()
    return WeightStatistics(
        name=name,
        filters=rows,
        row_mean=numbers[0],
        row_energy_error=numbers[1],
        formula_error=numbers[2],
        forward_error=numbers[3],
        non_finite=int(numbers[4]),
        dead_filters=int(numbers[5]),
        pruned_filters=int(numbers[6]),
        density=numbers[7],
        mask_density=numbers[8],
        latent_zeros=numbers[9],
        owns_weight="weight" in layer._parameters,
        resolution=torch.finfo(layer.weight.dtype).eps,
    )


def _probe(layer: BinaryConv2d) -> tuple[Tensor, Tensor]:
    """Forward error per filter, and the effective weight in float64."""
    size = layer.kernel_size + layer.stride
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, layer.in_channels, size, size, generator=generator)
    device = layer.weight.device
    with without_autocast(device):
        probe = probe.to(device, layer.weight.dtype)
        # The forward pass comes first: torch.nn.utils.prune refreshes the weight in a hook before it.
        output = layer(probe)
        used = layer.effective_weight()
        if len(used) == 0:
            return used.new_zeros(0, dtype=torch.float64), used.double()
        expected = F.conv2d(probe, used.to(probe.dtype), None, layer.stride, layer.padding, 1, layer.groups).double()
    if layer.kept_rows is not None and output.shape[1] == layer.out_channels:
        output = output[:, layer.kept_rows]
    if output.shape != expected.shape:
        return torch.full((expected.shape[1],), torch.inf, dtype=torch.float64, device=device), used.double()
    largest = expected.nan_to_num(0, 0, 0).abs().amax().clamp(min=1e-30)
    error = (output.double() - expected).abs().amax((0, 2, 3)) / largest
    return error.nan_to_num(torch.inf), used.double()


def _standardize(latent: Tensor, mask: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The formula of the paper over the survivors, and the latent standard deviation per row."""
    count = mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
    # Masked weights take no part, whatever they hold.
    kept = latent.where(mask != 0, 0)
    mean = kept.sum((1, 2, 3), keepdim=True) / count * (count > 1)
    std = ((kept - mean) * mask).square().sum((1, 2, 3), keepdim=True).div(count).sqrt()
    std = torch.where(count > 1, std, 1)
    return (kept - mean) * mask / ((std + eps) * count.sqrt()), std.flatten()


def _binarize(weight: Tensor, mask: Tensor) -> Tensor:
    scale = weight.abs().sum((1, 2, 3), keepdim=True) / mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
    return torch.where(weight >= 0, scale, -scale) * mask


def _without_binarization(layer: BinaryConv2d) -> Tensor:
    binary = layer.binary_weights
    layer.binary_weights = False
    try:
        return layer.effective_weight()
    finally:
        layer.binary_weights = binary


def _worst(values: Tensor, rows: Tensor) -> Tensor:
    # Of a layer that has lost all rows: 0.
    return F.pad(values.double().where(rows, 0), (0, 1)).amax()


def _share(weights: Tensor, among: Tensor) -> Tensor:
    """Share of True among the chosen weights; 1 when none is chosen."""
    chosen = among.expand_as(weights)
    total = chosen.sum()
    return torch.where(total > 0, (weights & chosen).sum() / total.clamp(min=1), 1).double()
