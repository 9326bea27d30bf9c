"""The one convolution: latent weight -> standardise -> binarise -> mask -> gain.

Sources: scaled weight standardisation (Brock et al., ICLR 2021, arXiv 2101.08692), its binary form from "BNN - BN = ?"
(Chen et al., arXiv 2104.08215) and its public code, XNOR-style scale without standardisation from ReActNet.

Deviations from the public code: the binary values are exactly +-scale (there, rounding of the detach trick leaves
several magnitudes in one filter), sign(0) = +1, and a pruning mask is part of the layer. Masking the latent weight
would prune nothing: the standardisation subtracts the row mean from the zeros again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.binarize import Estimator, get_estimator, new_progress
from bnfree.errors import InputError
from bnfree.lean.cache import KeptWeight, prepare_or_reuse
from bnfree.lean.convolution import LeanConvolution, LeanEffectiveWeight, compute_dtype, convolve_prepared, is_narrow
from bnfree.lean.geometry import Geometry
from bnfree.lean.rows import spread_rows
from bnfree.lean.weights import PreparedWeight, WeightRule, prepare
from bnfree.standardization import WeightSign, standardize_weight
from bnfree.weight_transforms import WeightTransform, build_transform

__all__ = ["BinaryConv2d", "standardize_weight"]


FOREIGN_PRUNING = (
    "torch.nn.utils.prune (Lightning's ModelPruning) zeroes latent weights, which standardisation and the sign of 0 "
    "make others than 0: nothing is pruned; prune with bnfree.callbacks.LotteryTicket or bnfree.tickets.prune."
)


class BinaryConv2d(nn.Module):
    """Convolution with real or binary, standardised or plain weights, a gain per filter and a pruning mask.

    The effective weight is, per output filter over its k surviving weights (k is the fan-in when dense):

        standardised, real    gain * (w - mean) / ((std + eps) * sqrt(k))
        standardised, binary  gain * mean|w_hat| * sign(w_hat),  w_hat the line above without gain; the scale detached
        plain, binary         gain * mean|w| * sign(w)
        plain, real           gain * w

    times the mask. Real and binary layers have the same parameters, so that training step 2 loads step 1 strictly. With
    a `weight_transform` w is that function of the latent weight.

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
        weight_estimator: what stands for the derivative of the sign of binary weights, see `bnfree.binarize.sign`; its
            argument is the weight in units of its standard deviation, sqrt(k) * w_hat. None: the identity through
            clamp(w_hat, -1, 1), which a standardised weight never leaves.
        weight_transform: from the latent weight to the weight, see `bnfree.weight_transforms`; None: they are the same.

    Shape: input (N, I, H, W), output (N, O, H', W'). `weight` (O, I/groups, k, k) is the latent weight, `gain`
    (O, 1, 1, 1) or None, `mask` a bool buffer of the weight's shape or None. A dense layer's state dict has no mask;
    a state dict with a mask loads strictly into a dense layer and sets it.

    A layer can lose filters for good (`keep_rows`). `weight`, `gain` and `mask` then hold the K <= O rows that are
    left, `kept_rows` (int64 buffer (K,), None when whole) says which channels of the output they make, and the other
    channels are 0. The output keeps its shape. A state dict says which rows there are: one with `kept_rows` loads into
    a whole layer, one without into a shrunk layer, and either way the layer then has the rows of the file.

    With `lean` (an attribute, True) the whole weight path is one step whose backward pass needs the parameters alone;
    without, it is the composition of operators below, the definition of the layer. In evaluation mode without gradients
    a lean layer on a CPU keeps its prepared weight until the parameters change.

    Raises:
        InputError: sizes that do not fit together, or an unknown `init`.

    Example:
        >>> layer = BinaryConv2d(16, 32, 3, padding=1)
        >>> layer(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
        >>> layer.set_mask(torch.rand(32, 16, 3, 3) < 0.2)
        >>> layer.effective_weight()[0].unique().numel()  # minus the scale, 0, the scale
        3
    """

    weight: Tensor
    gain: Tensor | None
    mask: Tensor | None
    kept_rows: Tensor | None
    rows_off: Tensor | None = None
    """Bool (K,): rows whose gain is 0 for a while and on purpose, which checks of dead filters leave out; not saved."""
    lean: bool
    estimator_progress: Tensor | None

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
        weight_estimator: Estimator | None = None,
        weight_transform: WeightTransform | None = None,
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
        self.lean = True
        self._kept: KeptWeight | None = None
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        with_gain = standardize if gain is None else gain
        self.register_parameter("gain", nn.Parameter(torch.ones(out_channels, 1, 1, 1)) if with_gain else None)
        self.register_buffer("mask", None)
        self.register_buffer("kept_rows", None)
        self.weight_estimator = None if weight_estimator is None else get_estimator(weight_estimator)
        self.register_buffer("estimator_progress", new_progress(weight_estimator), persistent=False)
        self.weight_transform = None if weight_transform is None else build_transform(weight_transform)
        self.reset_parameters(init)

    def reset_parameters(self, init: Literal["kaiming", "public_code"] = "kaiming") -> None:
        """Draws new latent weights from the global random generator and sets the gain to 1."""
        if init == "kaiming":
            nn.init.normal_(self.weight, std=self.weight.shape[1:].numel() ** -0.5)
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

    @torch.no_grad()
    def keep_rows(self, channels: Tensor) -> None:
        """Drops all filters but those of some output channels, whose parameters and gradients become smaller in place.

        What an optimizer holds for them keeps its old size, see `bnfree.compression.remove_rows`.

        Args:
            channels: int64 (K,), output channels in ascending order, each with a filter now.

        Raises:
            InputError: a grouped convolution, or channels that are not so.
        """
        if self.groups > 1:
            raise InputError(f"groups={self.groups}: only convolutions of one group can lose rows.")
        channels = channels.to(self.weight.device)
        there = torch.arange(self.out_channels) if self.kept_rows is None else self.kept_rows.cpu()
        if not self._are_rows(channels) or not bool(torch.isin(channels.cpu(), there).all()):
            raise InputError(
                f"channels={channels.tolist()} must be output channels in ascending order that the layer has filters "
                f"for, of {self.out_channels}."
            )
        self._take_rows(torch.searchsorted(there.to(channels.device), channels))
        self.rows_off = None
        self.kept_rows = None if len(channels) == self.out_channels else channels.clone()

    def of_rows(self, per_channel: Tensor) -> Tensor:
        """Of one entry for each output channel, (O, ...), those of the rows that are there: (K, ...)."""
        return per_channel if self.kept_rows is None else per_channel[self.kept_rows]

    def _are_rows(self, channels: Tensor) -> bool:
        """Whether a tensor holds output channels in ascending order."""
        if channels.dim() != 1 or channels.dtype != torch.int64:
            return False
        inside = (channels >= 0) & (channels < self.out_channels)
        return bool(inside.all()) and bool((channels.diff() > 0).all())

    def _take_rows(self, places: Tensor) -> None:
        for parameter in (self.weight, self.gain):
            if parameter is not None:
                gradient, parameter.grad = parameter.grad, None
                parameter.data = parameter.data[places].clone()
                parameter.grad = None if gradient is None else gradient[places].clone()
        self.mask = None if self.mask is None else self.mask[places].clone()
        self._kept = None

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, (O, I/groups, k, k); `weight` and `gain` get gradients through it.

        (K, I/groups, k, k) in a layer that has lost rows.
        """
        if self.lean:
            return LeanEffectiveWeight.apply(self.latent_weight(), self.gain, self.mask, self.rule)[0]
        if self.binary_weights:
            signs, scale = self._signs_and_scale()
            return signs * scale
        weight = self._prepared_weight()
        return weight if self.gain is None else self.gain * weight

    def latent_weight(self) -> Tensor:
        """What is standardised and binarised: `weight`, or what the transform makes of it."""
        return self.weight if self.weight_transform is None else self.weight_transform(self.weight)

    @property
    def rule(self) -> WeightRule:
        """The switches of the weight path."""
        return WeightRule(self.binary_weights, self.standardize, self.eps, self.slope)

    @property
    def slope(self) -> Callable[[Tensor], Tensor] | None:
        """Derivative for the sign of binary weights, where an estimator says which."""
        estimator = self.weight_estimator
        return None if estimator is None else estimator.derivative(self.estimator_progress).slope

    def prepared_weight(self) -> PreparedWeight:
        """What a lean forward without gradients convolves with; in evaluation mode kept until the parameters change."""
        arguments = (self.latent_weight(), self.gain, self.mask, self.rule)
        # A compiled forward is traced without the bookkeeping, which would be part of its guards.
        if self.training or torch.compiler.is_compiling() or self.weight_transform is not None:
            return prepare(*arguments)
        prepared, self._kept = prepare_or_reuse(self._kept, *arguments)
        return prepared

    def train(self, mode: bool = True) -> BinaryConv2d:
        """As of every module; drops what evaluation keeps."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _prepared_weight(self) -> Tensor:
        weight = self.latent_weight()
        if self.standardize:
            return standardize_weight(weight, self.mask, self.eps)
        return weight if self.mask is None else weight * self.mask

    def _signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """The factors of a binary effective weight: -1, 0 where masked, +1; and one number (O, 1, 1, 1) per filter."""
        weight = self._prepared_weight()
        dims = tuple(range(1, weight.dim()))
        magnitude = weight.detach().abs()
        if self.mask is None:
            scale = magnitude.mean(dims, keepdim=True)
            signs = WeightSign.apply(weight, scale, self.slope, weight.shape[1:].numel() ** 0.5)
        else:
            count = self.mask.sum(dims, keepdim=True).clamp(min=1)
            scale = magnitude.sum(dims, keepdim=True) / count
            signs = WeightSign.apply(weight, scale, self.slope, count**0.5) * self.mask
        return signs, scale if self.gain is None else scale * self.gain

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (N, I, H, W) with the effective weight."""
        if self.loses_foreign_pruning:
            warnings.warn(FOREIGN_PRUNING, stacklevel=2)
        if self.kept_rows is None:
            return self._convolve(x)
        output = self._convolve(x) if len(self.weight) else self._nothing(x)
        return spread_rows(output, self.kept_rows, self.out_channels)

    def _convolve(self, x: Tensor) -> Tensor:
        """One channel for each row that there is."""
        if self.lean and x.dim() == 4 and not self._has_other_weights():
            moves = Geometry(self.stride, self.padding, self.groups)
            if torch.is_grad_enabled():
                return LeanConvolution.apply(x, self.latent_weight(), self.gain, self.mask, self.rule, moves)[0]
            return convolve_prepared(x, self.prepared_weight(), moves, compute_dtype(x))
        geometry = (None, self.stride, self.padding, 1, self.groups)
        dtype = compute_dtype(x)
        if x.dim() == 4 and is_narrow(x, self.stride, dtype):
            with torch.autocast("cpu", enabled=False):
                return F.conv2d(x.float(), self.effective_weight().float(), *geometry).to(dtype)
        if not self.binary_weights:
            return F.conv2d(x, self.effective_weight().to(x.dtype), *geometry)
        # Scaled afterwards, because sums of -1, 0 and +1 are exact: they do not depend on the order of summation, which
        # changes with the batch size and the machine and would now and then move an activation across its threshold.
        signs, scale = self._signs_and_scale()
        return F.conv2d(x, signs.to(x.dtype), *geometry) * scale.view(1, -1, 1, 1).to(x.dtype)

    def _nothing(self, x: Tensor) -> Tensor:
        """No channels, which are a function of all that the convolution would be one of: each gets a gradient, of 0."""
        sizes = [(size + 2 * self.padding - self.kernel_size) // self.stride + 1 for size in x.shape[-2:]]
        constant = sum((tensor.sum() for tensor in (self.weight, self.gain) if tensor is not None), x[..., :0].sum())
        return constant.to(compute_dtype(x)).expand(*x.shape[:-3], 0, *sizes)

    @property
    def loses_foreign_pruning(self) -> bool:
        """Whether `torch.nn.utils.prune` zeroes latent weights that are other than 0 once standardised or binarised."""
        return "weight_orig" in self._parameters and (self.binary_weights or self.standardize)

    def _has_other_weights(self) -> bool:
        """Whether a subclass, or somebody on the instance, has replaced the effective weight."""
        return "effective_weight" in self.__dict__ or type(self).effective_weight is not BinaryConv2d.effective_weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        kept_rows, weight = state_dict.get(prefix + "kept_rows"), state_dict.get(prefix + "weight")
        if kept_rows is not None and not self._has_rows(kept_rows, weight):
            messages: list[str] = args[-1]
            messages.append(
                f"{prefix}kept_rows must be int64 output channels from 0 to {self.out_channels - 1} in ascending "
                f"order, one for each filter of {prefix}weight."
            )
            return
        if weight is not None and not (kept_rows is None and self.kept_rows is None):
            self._fit_rows(kept_rows, weight)
        mask = state_dict.get(prefix + "mask")
        if mask is not None and self.mask is None and mask.shape == self.weight.shape:
            self.set_mask(mask)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _has_rows(self, kept_rows: Any, weight: Any) -> bool:
        """Whether a state dict's rows are output channels, and as many as its filters."""
        found = isinstance(kept_rows, Tensor) and isinstance(weight, Tensor) and weight.dim() > 0
        return found and self.groups == 1 and self._are_rows(kept_rows) and len(kept_rows) == len(weight)

    @torch.no_grad()
    def _fit_rows(self, kept_rows: Tensor | None, weight: Tensor) -> None:
        """Gives the layer room for the rows of a state dict, which are loaded next."""
        count = self.out_channels if kept_rows is None else len(kept_rows)
        # Of a file with too few filters and no rows PyTorch says so, in its own words.
        if weight.dim() == 0 or len(weight) != count:
            return
        for parameter in (self.weight, self.gain):
            if parameter is not None and len(parameter) != count:
                parameter.grad = None
                parameter.data = parameter.new_zeros(count, *parameter.shape[1:])
        if self.mask is not None and len(self.mask) != count:
            self.mask = self.mask.new_ones(count, *self.mask.shape[1:])
        self.kept_rows = None if kept_rows is None else kept_rows.detach().clone().to(self.weight.device)
        self._kept = None

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        kind = ("binary" if self.binary_weights else "real") + (", standardised" if self.standardize else "")
        density = "" if self.mask is None else f", density={self.mask.float().mean().item():.3g}"
        density += "" if self.kept_rows is None else f", rows={len(self.kept_rows)}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, {kind}{density}"
        )
