"""LAPP: one learned threshold in each layer, below which rows are switched off, under a constraint on the operations.

Source: "LAPP: layer adaptive progressive pruning for compressing CNNs from scratch" (Zhai et al., arXiv 2309.14157):
one learnable threshold per layer, a constraint on the FLOPs, pruning in the first epochs of a training from scratch. No
code of it is public; what goes beyond that abstract is our own reconstruction. Its light bypass around every pruned
layer is the shortcut that a ReActNet has anyway.

With the gains g of a layer, its threshold t and a temperature T the gain that the convolution uses is g * m,

    forward   m = 1 where |g| >= t, else 0
    backward  m = sigmoid((|g| - t) / T)

and the loss has the term strength * max(0, operations(m) / target - 1), whose operations are those of the rows that are
on. Until the target is met thresholds only rise, and the step that meets it is shortened to where it is just met. Then
each step is followed by a move of all thresholds together that keeps the operations at the target: what the layers
still settle among them is which rows these are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


class LayerThresholds:
    """The thresholds of a network's layers, and the gains of rows that are switched off meanwhile.

    Between two optimizer steps the network computes what the hard thresholds say: gains of rows that are off are 0 in
    the layer (`hide`), and kept here. For the optimizer's step they are put back (`show`), with the gradient that they
    have through the soft thresholds (`backward`).

    Args:
        layers: convolutions with gains, by name.
        row_operations: multiply-accumulates of one row of each.
        target: share of their operations that is to be left, greater than 0 and less than 1.
        rate: of the thresholds' own Adam.

    Raises:
        InputError: a layer without gains.
    """

    def __init__(
        self, layers: Mapping[str, BinaryConv2d], row_operations: Mapping[str, float], target: float, rate: float
    ) -> None:
        if any(layer.gain is None for layer in layers.values()):
            raise InputError("layers without gains have no importances to compare with a threshold.")
        self.layers = dict(layers)
        gains = {name: self._gain(name) for name in self.layers}
        self.counts = [gain.numel() for gain in gains.values()]
        first = next(iter(gains.values()))
        costs = torch.tensor([float(row_operations[name]) for name in gains], dtype=torch.float64, device=first.device)
        repeats = torch.tensor(self.counts, device=first.device)
        self.layer_of_row = torch.arange(len(gains), device=first.device).repeat_interleave(repeats)
        self.row_costs = costs[self.layer_of_row] / costs[self.layer_of_row].sum()
        self.target = target
        self.met = False
        self.thresholds = torch.zeros(len(gains), dtype=first.dtype, device=first.device)
        self.optimizer = torch.optim.Adam([self.thresholds], lr=rate, betas=(0.9, 0.99))
        self.hidden: dict[str, Tensor] = {}

    def _gain(self, name: str) -> Tensor:
        gain = self.layers[name].gain
        assert gain is not None
        return gain.detach()

    def importances(self) -> Tensor:
        """|gain| of every row of all layers, (R,), of those that are off as well."""
        return torch.cat([self.hidden.get(name, self._gain(name)).abs().flatten() for name in self.layers])

    def is_on(self, thresholds: Tensor | None = None) -> Tensor:
        """Which rows the thresholds (L,) leave on: bool (R,)."""
        limits = self.thresholds if thresholds is None else thresholds
        return self.importances() >= limits[self.layer_of_row]

    def operations(self, thresholds: Tensor | None = None) -> float:
        """Share of the layers' operations that the rows that are on make up."""
        return float(self.row_costs[self.is_on(thresholds)].sum())

    def _by_layer(self, rows: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.layers, rows.split(self.counts), strict=True))

    @torch.no_grad()
    def hide(self) -> None:
        """Sets the gains of rows that are off to 0."""
        if self.hidden:
            return
        on = self._by_layer(self.is_on())
        self.hidden = {name: self._gain(name).clone() for name in self.layers}
        for name in self.layers:
            gain = self._gain(name)
            gain.mul_(on[name].view_as(gain))
            self.layers[name].rows_off = ~on[name]

    @torch.no_grad()
    def show(self) -> None:
        """Puts the gains back."""
        for name, values in self.hidden.items():
            self._gain(name).copy_(values)
            self.layers[name].rows_off = None
        self.hidden = {}

    @torch.no_grad()
    def backward(self, temperature: float, strength: float) -> None:
        """From the gradients of g * m, which the gains hold, those of gains and thresholds, the term included.

        Args:
            temperature: T.
            strength: of the term on operations.
        """
        excess, on = self.operations() > self.target, self._by_layer(self.is_on())
        costs, of_thresholds = self._by_layer(self.row_costs), []
        for index, name in enumerate(self.layers):
            parameter, gain = self.layers[name].gain, self._gain(name)
            assert parameter is not None
            incoming = torch.zeros_like(gain) if parameter.grad is None else parameter.grad
            soft = torch.sigmoid((gain.abs() - self.thresholds[index]) / temperature)
            slope = soft * (1 - soft) / temperature
            of_mask = incoming * gain
            if excess:
                of_mask = of_mask + (strength / self.target * costs[name]).to(gain.dtype).view_as(gain)
            of_thresholds.append(-(of_mask * slope).sum())
            parameter.grad = incoming * on[name].view_as(gain) + of_mask * slope * gain.sign()
        self.thresholds.grad = torch.stack(of_thresholds)

    @torch.no_grad()
    def step(self) -> None:
        """Moves the thresholds: until the target is met upwards alone and not beyond it, then along it."""
        before = self.thresholds.clone()
        self.optimizer.step()
        if self.met:
            self.meet()
            return
        self.thresholds.copy_(torch.maximum(before, self.thresholds))
        if self.operations() <= self.target:
            move = self.thresholds - before
            least, most = 0.0, 1.0
            for _ in range(40):
                middle = (least + most) / 2
                enough = self.operations(before + middle * move) <= self.target
                least, most = (least, middle) if enough else (middle, most)
            self.thresholds.copy_(before + most * move)
            self.met = True

    @torch.no_grad()
    def meet(self) -> int:
        """Moves all thresholds by the same amount, so that as many rows are on as the target allows.

        Returns:
            How many rows that has switched off.
        """
        on = int(self.is_on().sum())
        margins = (self.importances() - self.thresholds[self.layer_of_row]).double()
        ordered, order = margins.sort(descending=True, stable=True)
        # Between two rows of the same margin there is no place for a threshold.
        apart = torch.cat([ordered[:-1] > ordered[1:], torch.ones_like(ordered[:1], dtype=torch.bool)])
        fits = (self.row_costs[order].cumsum(0) <= self.target) & apart
        count = int(fits.nonzero().max()) + 1 if bool(fits.any()) else 0
        above = ordered[count - 1] if count else ordered[0] + 1
        self.thresholds += ((above + ordered[count]) / 2).to(self.thresholds.dtype)
        self.met = True
        return on - int(self.is_on().sum())

    def rows_off(self) -> dict[str, Tensor]:
        """Rows that are off: int64 output channels by layer, on the CPU."""
        found = {}
        for name, on in self._by_layer(self.is_on()).items():
            places, kept = (~on).nonzero().flatten(), self.layers[name].kept_rows
            found[name] = (places if kept is None else kept[places]).cpu()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Thresholds, their optimizer, and the gains of rows that are off."""
        return {
            "thresholds": self.thresholds.clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "hidden": {name: values.clone() for name, values in self.hidden.items()},
            "met": self.met,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up where a state stood; the layers hold the gains of that time."""
        self.thresholds.copy_(state["thresholds"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hidden = {name: values.to(self.thresholds.device) for name, values in state["hidden"].items()}
        self.met = bool(state["met"])


def annealed(start: float, end: float, progress: float) -> float:
    """The temperature at a progress from 0 to 1: from start to end by equal factors."""
    return start * (end / start) ** min(max(progress, 0.0), 1.0)
