"""A record of sign flips and gains as a callback; what is measured is `bnfree.diagnostics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnfree.callbacks.run_files import read_csv, run_directory, write_csv
from bnfree.callbacks.strategies import refuse_sharded_parameters
from bnfree.convolution import BinaryConv2d
from bnfree.diagnostics.signs import (
    binary_layers,
    convolutions,
    count_flips,
    pack_signs,
    unpack_signs,
    weight_signs,
)
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of

HEADER = ("epoch", "layer", "weights", "flipped", "gain")


class WeightDynamics(Callback):
    """Only observes: records how many binary weights change their sign in an epoch, and how large the gains are.

    Logs `signs/flipped` at the end of each training epoch: the share (0 to 1) of binary weights whose sign is another
    one than before the epoch's first step. The signs are those of the weights that the convolutions use, so that a
    weight which is masked at either moment does not count. In a network without binary weights (step 1 of two) they are
    the signs of the standardised real weights that step 2 makes binary.

    The layers are written to `weight_dynamics.csv` in the run directory, one row for each epoch and convolution:
    `weights` (how many signs were compared) and `flipped` (the share of them that changed), both empty in layers that
    stay real, and `gain` (mean |gain|, empty without gains). A resumed run replaces the rows of the epochs that it runs
    again, and one that goes on in the middle of an epoch still compares with the epoch's start: a checkpoint from
    there holds the signs, a quarter of a byte for each.

    Args:
        filename: name of the CSV file.

    Raises:
        InputError: an empty file name; at the start of a run also parameters split among processes (FSDP, model
            parallelism, DeepSpeed), or a network without a `BinaryConv2d`.
    """

    def __init__(self, filename: str = "weight_dynamics.csv") -> None:
        if not Path(filename).name:
            raise InputError(f"filename={filename!r} must name a file, such as 'weight_dynamics.csv'.")
        self.filename = filename
        self._layers: dict[str, BinaryConv2d] = {}
        self._followed: dict[str, BinaryConv2d] = {}
        self._before: dict[str, Tensor] = {}
        self._directory: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses strategies that leave no process with a whole weight, and networks without anything to follow."""
        if stage != "fit":
            return
        refuse_sharded_parameters(trainer, "WeightDynamics")
        self._before = {}
        network = backbone_of(pl_module)
        self._layers, self._followed = convolutions(network), binary_layers(network)
        if not self._layers:
            raise InputError(
                f"backbone={type(network).__name__} has no BinaryConv2d, so WeightDynamics has nothing to record; "
                "remove the callback."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the run directory, which all processes must do together."""
        self._directory = run_directory(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers the signs before the first step, when calibration, pruning and rewinding are over."""
        if batch_idx == 0:
            self._before = {name: weight_signs(layer) for name, layer in self._followed.items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs and writes what the epoch has changed."""
        flips = {
            name: count_flips(self._before[name].to(layer.weight.device), weight_signs(layer))
            for name, layer in self._followed.items()
            if name in self._before
        }
        # A checkpoint that is written between two epochs needs no signs: the next epoch starts from its weights.
        self._before = {}
        total = sum(compared for _, compared in flips.values())
        if total:
            share = sum(flipped for flipped, _ in flips.values()) / total
            # The same in every process, and known in every one, for callbacks that monitor it.
            pl_module.log("signs/flipped", share, on_step=False, on_epoch=True, sync_dist=True)
        if trainer.is_global_zero:
            path = (self._directory or Path(trainer.default_root_dir)) / self.filename
            rows = [_row(trainer.current_epoch, name, layer, flips.get(name)) for name, layer in self._layers.items()]
            earlier = [
                row for row in read_csv(path, HEADER) if row[0].isdigit() and int(row[0]) < trainer.current_epoch
            ]
            write_csv(path, HEADER, earlier + rows)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the network."""
        self._layers, self._followed, self._before = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The signs at the epoch's start, while an epoch runs."""
        return {"signs": {name: pack_signs(signs).cpu() for name, signs in self._before.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the signs of an epoch that has been interrupted."""
        packed: dict[str, Tensor] = state_dict["signs"]
        # Layers of another network say nothing about this one.
        self._before = {
            name: unpack_signs(packed[name], layer.weight.shape)
            for name, layer in self._followed.items()
            if name in packed and len(packed[name]) == -(-layer.weight.numel() // 4)
        }


def _row(epoch: int, name: str, layer: BinaryConv2d, flips: tuple[int, int] | None) -> list[str]:
    gain = "" if layer.gain is None else f"{layer.gain.detach().abs().mean().item():.6g}"
    if flips is None:
        return [str(epoch), name, "", "", gain]
    flipped, compared = flips
    return [str(epoch), name, str(compared), f"{flipped / compared:.6g}" if compared else "", gain]
