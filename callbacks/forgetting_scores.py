"""How often training images are forgotten; what is counted is `bnfree.data_scores.ForgettingCounts`."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnfree.callbacks.run_files import run_directory, write_csv
from bnfree.data_scores import ForgettingCounts
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


class ForgettingScores(Callback):
    """Only observes: counts how often each training image, once answered rightly, is answered wrongly again.

    At the end of training the first process writes `filename` into the run directory, which `data.scores` takes: images
    that were never learned rank above all others. The answers are those of training, on augmented images. Resuming goes
    on with the counts.

    Args:
        filename: of the CSV file.

    Raises:
        InputError: at the start of a run data that are none of `bnfree.datamodules`, or images that are mixed.
    """

    def __init__(self, filename: str = "forgetting.csv") -> None:
        self.filename = filename
        self._counts: ForgettingCounts | None = None
        self._logits: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count, or goes on."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "training_places"):
            raise InputError(f"data={type(data).__name__} is none of bnfree.datamodules, which ForgettingScores needs.")
        if data.extra.mixes:
            raise InputError("mixup and cutmix show no image alone, whose answers ForgettingScores counts.")
        if self._counts is None:
            self._counts = ForgettingCounts(len(data.training_places()))
        self._hook = backbone_of(pl_module).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self._logits = output.detach() if isinstance(output, Tensor) and output.ndim == 2 else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a batch, those of all processes together."""
        logits, self._logits = self._logits, None
        data: Any = getattr(trainer, "datamodule", None)
        if logits is None or self._counts is None:
            return
        positions = torch.from_numpy(data.positions).to(logits.device, non_blocking=True)
        right = logits.argmax(1) == batch[1]
        answers = cast(Tensor, pl_module.all_gather(torch.stack([positions, right.long()]))).cpu()
        for one in answers.view(-1, 2, answers.shape[-1]):
            self._counts.update(one[0], one[1].bool())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        self._release()
        data: Any = getattr(trainer, "datamodule", None)
        directory = run_directory(trainer)
        if self._counts is None or not trainer.is_global_zero:
            return
        places = data.training_places()
        names, scores = data.training_image_names(places), self._counts.scores().tolist()
        rows = zip(places.tolist(), names, scores, strict=True)
        write_csv(directory / self.filename, ("image", "name", "score"), list(rows))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of the network."""
        self._release()

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {} if self._counts is None else dict(self._counts.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with them."""
        if state_dict:
            self._counts = ForgettingCounts(len(state_dict["counts"]))
            self._counts.load_state_dict(state_dict)
