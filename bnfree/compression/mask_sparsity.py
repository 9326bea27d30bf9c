"""MaskSparsity: rows are marked first, and only the gains of marked ones are pulled to 0, until they can be cut.

Source: Jiang et al., "Pruning-aware sparse regularization for network pruning" (MaskSparsity, arXiv 2201.06776;
github.com/CASIA-IVA-Lab/MaskSparsity): train; get a mask, from a global L1 penalty on the scales (5e-4, rows below
0.01) or as a uniform ratio; train with the penalty on the scales of marked channels alone; cut; fine-tune. Deviations:
the gain of a row stands for batch norm's scale, and what is cut are rows that add to a trunk, see
`bnfree.compression.rows`, where the source cuts channels inside of branches with what follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError

Phase = Literal["dense", "mask", "regularise", "finetune"]


class Phases(NamedTuple):
    """How many epochs the phases before fine-tuning last."""

    dense: int
    """Without any penalty."""
    mask: int
    """With the penalty on all gains."""
    regularise: int
    """With the penalty on the gains of marked rows."""

    @classmethod
    def of_run(
        cls, epochs: int | None, dense: int | None, mask: int | None, regularise: int | None, ratio: float | None
    ) -> Phases:
        """The lengths that are given, and for the others 40, 10 and 30 % of the run; no mask phase with a ratio.

        Args:
            epochs: of the run; None: without an end.
            dense: as given, None: not given.
            mask: likewise.
            regularise: likewise.
            ratio: share of rows that is marked; None: those that a global penalty brings to 0.

        Raises:
            InputError: phases that leave no epoch to fine-tune in, or have no length without an end of the run.
        """
        if epochs is None or epochs < 1:
            raise InputError(f"trainer.max_epochs={epochs} gives MaskSparsity no phases; set it to a positive number.")
        phases = cls(
            int(0.4 * epochs) if dense is None else dense,
            (0 if ratio is not None else max(1, int(0.1 * epochs))) if mask is None else mask,
            max(1, int(0.3 * epochs)) if regularise is None else regularise,
        )
        if (dense, mask, regularise) != (None, None, None) and phases.cut_at >= epochs:
            raise InputError(
                f"dense_epochs={phases.dense}, mask_epochs={phases.mask} and regularise_epochs={phases.regularise} "
                f"leave none of the {epochs} epochs of the run to fine-tune in; raise trainer.max_epochs."
            )
        return phases

    @property
    def mark_at(self) -> int:
        """The epoch, from 0, at whose start rows are marked."""
        return self.dense + self.mask

    @property
    def cut_at(self) -> int:
        """The epoch at whose start rows are cut."""
        return self.mark_at + self.regularise

    def of(self, epoch: int) -> Phase:
        """The phase of an epoch, from 0."""
        if epoch < self.dense:
            return "dense"
        if epoch < self.mark_at:
            return "mask"
        return "regularise" if epoch < self.cut_at else "finetune"


@torch.no_grad()
def mark_rows(layers: Mapping[str, BinaryConv2d], ratio: float | None, threshold: float) -> dict[str, Tensor]:
    """The rows that are to go: int64 output channels in ascending order, by layer, on the CPU.

    Args:
        layers: convolutions with gains.
        ratio: this share of each layer's rows (rounded down), those of the smallest |gain|; None: all rows of every
            layer with |gain| < threshold.
        threshold: see there.
    """
    marked = {}
    for name, layer in layers.items():
        sizes = _gains(layer)
        if ratio is None:
            places = (sizes < threshold).nonzero().flatten()
        else:
            places = sizes.argsort(stable=True)[: int(ratio * len(sizes))].sort().values
        marked[name] = (places if layer.kept_rows is None else layer.kept_rows[places]).cpu()
    return marked


@torch.no_grad()
def rows_to_cut(
    layers: Mapping[str, BinaryConv2d], marked: Mapping[str, Tensor], threshold: float
) -> dict[str, Tensor]:
    """Those of the marked rows, on the CPU, that have come below the threshold."""
    small = mark_rows(layers, None, threshold)
    return {name: rows[torch.isin(rows, small[name])] for name, rows in marked.items()}


@torch.no_grad()
def add_sparsity_gradient_(layer: BinaryConv2d, strength: float, rows: Tensor | None = None) -> None:
    """Adds the subgradient of strength * sum |gain| to the gradient of the gain, in place.

    Args:
        layer: a convolution with a gain, which has a gradient; without one nothing is done.
        strength: of the penalty.
        rows: output channels (M,) that it is about, all of which the layer has rows for; None: all.
    """
    gain = layer.gain
    if gain is None or gain.grad is None:
        return
    pull = strength * gain.sign()
    if rows is not None:
        chosen = torch.zeros(layer.out_channels, dtype=torch.bool, device=gain.device)
        chosen[rows] = True
        pull = pull * layer.of_rows(chosen).view(-1, 1, 1, 1)
    gain.grad.add_(pull)


def _gains(layer: BinaryConv2d) -> Tensor:
    if layer.gain is None:
        raise InputError("a layer without gains has no scales to mark rows by.")
    return layer.gain.detach().abs().flatten()
