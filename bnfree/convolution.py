"""The one convolution: latent weight -> standardise -> binarise -> mask -> gain.

Sources: scaled weight standardisation (Brock et al., ICLR 2021, arXiv 2101.08692), its binary form from "BNN - BN = ?"
(Chen et al., arXiv 2104.08215) and its public code, XNOR-style scale without standardisation from ReActNet.

Deviations from the public code: the binary values are exactly +-scale (there, rounding of the detach trick leaves
several magnitudes in one filter), sign(0) = +1, and a pruning mask is part of the layer. Masking the latent weight
would prune nothing: the standardisation subtracts the row mean from the zeros again.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.errors import InputError


class WeightSign(torch.autograd.Function):
    """sign(w), sign(0) = +1, for weights that are multiplied by `scale` afterwards.

    With the product `scale * sign(w)` in mind its backward is the identity through clamp(w, -1, 1), without the scale:
    the gradient that arrives here, which the product has multiplied by the scale, is divided by it again.
    """

    @staticmethod
    def forward(weight: Tensor, scale: Tensor) -> Tensor:
        """`weight` (O, I, kH, kW), `scale` (O, 1, 1, 1), at least 0."""
        return (weight >= 0).to(weight.dtype).mul_(2).sub_(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """The gradient needs to know where |w| <= 1."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The scale is a constant of the method (detached), so it has no gradient."""
        weight, scale = ctx.saved_tensors
        # A filter of scale 0 gives nothing and gets nothing.
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        return gradient * inverse * (weight.abs() <= 1), None


def standardize_weight(weight: Tensor, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Scaled weight standardisation: (w - mean) / ((std + eps) * sqrt(k)) per output filter.

    Mean, population std and k (the fan-in) are taken over the surviving weights. Where a mask leaves a filter without
    variance, it keeps mean 0 and std 1: a single survivor, or equal ones, as among latent weights that were clipped to
    +-1, would be erased by their own mean, and the layer would be sparser than its mask.

    Args:
        weight: latent weight (O, I, kH, kW), floating point.
        mask: same shape, bool, True where a weight survives; None when dense.
        eps: added to the std.

    Returns:
        Same shape and dtype; 0 where masked.
    """
    dims = tuple(range(1, weight.dim()))
    if mask is None:
        fan_in = weight[0].numel()
        centred = weight - weight.mean(dims, keepdim=True)
        variance = centred.square().mean(dims, keepdim=True)
        return centred / ((_root(variance) + eps) * fan_in**0.5) if fan_in > 1 else weight / (1 + eps)
    survivors = mask.sum(dims, keepdim=True).to(weight.dtype)
    count = survivors.clamp(min=1)
    kept = weight * mask
    mean = kept.sum(dims, keepdim=True) / count
    centred = (kept - mean) * mask
    variance = centred.square().sum(dims, keepdim=True) / count
    # Of equal weights, what the rounding of their mean leaves.
    flat = variance <= (8 * torch.finfo(weight.dtype).eps * mean).square()
    return torch.where(flat, kept, centred) / ((_root(variance.masked_fill(flat, 1)) + eps) * count.sqrt())


def _root(variance: Tensor) -> Tensor:
    # A filter of equal weights has variance 0, where the root's derivative is infinite and would give NaN gradients.
    return variance.clamp(min=1e-30).sqrt()


class BinaryConv2d(nn.Module):
    """Convolution with real or binary, standardised or plain weights, a gain per filter and a pruning mask.

    The effective weight is, per output filter over its k surviving weights (k is the fan-in when dense):

        standardised, real    gain * (w - mean) / ((std + eps) * sqrt(k))
        standardised, binary  gain * mean|w_hat| * sign(w_hat),  w_hat the line above without gain; the scale detached
        plain, binary         gain * mean|w| * sign(w)
        plain, real           gain * w

    times the mask. Real and binary layers have the same parameters, so that training step 2 loads step 1 strictly.

    Args:
        in_channels: input channels I.
        out_channels: output channels O.
        kernel_size: height and width of the kernel.
        stride: stride.
        padding: zero padding on each side; a padded position contributes 0, not -1.
        groups: groups of a grouped convolution; the fan-in is that of one group.
        binary_weights: binarise the weights.
        standardize: standardise the weights.
        gain: learn one gain per filter, initially 1; None: exactly when the weights are standardised.
        eps: added to the std of the standardisation; 1e-5 is the value of the public code.
        init: `kaiming` (symmetric normal, std 1/sqrt(fan-in)) or `public_code` (binary: uniform on [0, 1e-3), all
            positive; real: PyTorch's default for convolutions).

    Shape: input (N, I, H, W), output (N, O, H', W'). `weight` (O, I/groups, k, k) is the latent weight, `gain`
    (O, 1, 1, 1) or None, `mask` a bool buffer of the weight's shape or None. A dense layer's state dict has no mask;
    a state dict with a mask loads strictly into a dense layer and sets it.

    Raises:
        InputError: sizes that do not fit together, or an unknown `init`.
    """

    weight: Tensor
    gain: Tensor | None
    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        binary_weights: bool = True,
        standardize: bool = True,
        gain: bool | None = None,
        eps: float = 1e-5,
        init: Literal["kaiming", "public_code"] = "kaiming",
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        for name, size in {**sizes, "stride": stride, "groups": groups}.items():
            if size < 1:
                raise InputError(f"{name}={size} must be at least 1.")
        if in_channels % groups or out_channels % groups:
            raise InputError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}.")
        if init not in ("kaiming", "public_code"):
            raise InputError(f"init={init!r} is not known; choose 'kaiming' or 'public_code'.")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.groups = stride, padding, groups
        self.binary_weights, self.standardize, self.eps = binary_weights, standardize, eps
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        with_gain = standardize if gain is None else gain
        self.register_parameter("gain", nn.Parameter(torch.ones(out_channels, 1, 1, 1)) if with_gain else None)
        self.register_buffer("mask", None)
        self.reset_parameters(init)

    def reset_parameters(self, init: Literal["kaiming", "public_code"] = "kaiming") -> None:
        """Draws new latent weights from the global random generator and sets the gain to 1."""
        if init == "kaiming":
            nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        elif self.binary_weights:
            nn.init.uniform_(self.weight, 0, 1e-3)
        else:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.gain is not None:
            nn.init.ones_(self.gain)

    def set_mask(self, mask: Tensor | None) -> None:
        """Sets which weights survive; None makes the layer dense again.

        Args:
            mask: shape of `weight`, bool or 0/1 numbers, True or 1 where a weight survives.

        Raises:
            InputError: another shape, or values other than 0 and 1.
        """
        if mask is not None:
            if mask.shape != self.weight.shape:
                raise InputError(f"mask has shape {tuple(mask.shape)}, the weight {tuple(self.weight.shape)}.")
            if mask.dtype != torch.bool:
                if not ((mask == 0) | (mask == 1)).all():
                    raise InputError("mask holds values other than 0 and 1; give a bool tensor.")
                mask = mask.bool()
            mask = mask.detach().clone().to(self.weight.device)
        self.mask = mask

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, (O, I/groups, k, k); `weight` and `gain` get gradients through it."""
        if self.binary_weights:
            signs, scale = self._signs_and_scale()
            return signs * scale
        weight = self._prepared_weight()
        return weight if self.gain is None else self.gain * weight

    def _prepared_weight(self) -> Tensor:
        if self.standardize:
            return standardize_weight(self.weight, self.mask, self.eps)
        return self.weight if self.mask is None else self.weight * self.mask

    def _signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """The factors of a binary effective weight: -1, 0 where masked, +1; and one number (O, 1, 1, 1) per filter."""
        weight = self._prepared_weight()
        dims = tuple(range(1, weight.dim()))
        magnitude = weight.detach().abs()
        if self.mask is None:
            scale = magnitude.mean(dims, keepdim=True)
            signs = WeightSign.apply(weight, scale)
        else:
            scale = magnitude.sum(dims, keepdim=True) / self.mask.sum(dims, keepdim=True).clamp(min=1)
            signs = WeightSign.apply(weight, scale) * self.mask
        return signs, scale if self.gain is None else scale * self.gain

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (N, I, H, W) with the effective weight."""
        geometry = (None, self.stride, self.padding, 1, self.groups)
        if not self.binary_weights:
            return F.conv2d(x, self.effective_weight().to(x.dtype), *geometry)
        # Scaled afterwards, because sums of -1, 0 and +1 are exact: they do not depend on the order of summation, which
        # changes with the batch size and the machine and would now and then move an activation across its threshold.
        signs, scale = self._signs_and_scale()
        return F.conv2d(x, signs.to(x.dtype), *geometry) * scale.view(1, -1, 1, 1).to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mask = state_dict.get(prefix + "mask")
        if mask is not None and self.mask is None and mask.shape == self.weight.shape:
            self.set_mask(mask)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        kind = ("binary" if self.binary_weights else "real") + (", standardised" if self.standardize else "")
        density = "" if self.mask is None else f", density={self.mask.float().mean().item():.3g}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, {kind}{density}"
        )
