"""The LightningModule that trains a backbone to classify images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from bnfree.bar_items import is_read_in_every_step
from bnfree.calibration import calibrate, calibrate_gains, calibrate_stem, first_images, is_calibrated
from bnfree.classifiers import in_channels_of, num_classes_of
from bnfree.errors import InputError
from bnfree.lean.fast import check_available
from bnfree.lightning_modules.modules.frozen import Freeze, evaluate_frozen, freeze_parameters
from bnfree.lightning_modules.modules.fused_optimizers import prefer_fused
from bnfree.lightning_modules.modules.hand_over import (
    KEY,
    CalibrateInitFrom,
    Choice,
    Inputs,
    Origin,
    choose,
    meaning_of,
    remembered_inputs,
)
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.lightning_modules.modules.learning_rate_scaling import (
    LearningRateScaling,
    check_scaling,
    resume_learning_rates,
    scale_learning_rates,
)
from bnfree.lightning_modules.modules.learning_rate_schedules import (
    LINEAR_DECAY,
    LRSchedulerCallable,
    SchedulePosition,
    make_schedule,
    position_of,
    resolve_factory,
    resume_schedule,
    schedule_config,
)
from bnfree.lightning_modules.modules.parameter_groups import WeightDecayOn, parameter_groups
from bnfree.lightning_modules.modules.resumed_epoch import count_batches_of_resumed_epoch
from bnfree.lightning_modules.modules.unsuitable_callbacks import (
    check_averages,
    refuse_unsuitable_callbacks,
    start_averages,
)
from bnfree.losses import Loss, build_loss
from bnfree.state_dicts import uncompiled


class ImageClassifier(LightningModule):
    """Trains a backbone to classify; logs `train/loss`, `train/acc`, `val/loss`, `val/acc`, `test/acc`.

    With 100 classes or more, top-5 accuracy too (`val/acc5`, `test/acc5`). Before the first step of a fresh run a
    BN-free backbone is calibrated on training images (`bnfree.calibration`), unless it is calibrated or trained already
    (`is_calibrated`) or is a `reference` network; one that starts from `init_from` as `calibrate_init_from` says.

    Args:
        backbone: network from images (N, C, H, W) to logits (N, num_classes), such as `ReActNet18`, or any other
            module: without an attribute `num_classes` its output says how many there are.
        optimizer: class and settings of the optimizer; the parameters are given to it in two groups, see
            `weight_decay_on`. Adam, AdamW and SGD use their fused kernels unless `fused` or `foreach` is given.
        lr_scheduler: class and settings of the learning-rate schedule, of `torch.optim.lr_scheduler` or your own; null
            for a constant rate. An argument that is its length (`total`, `T_max`, `total_steps`, `total_iters`) is the
            number of steps of the whole run (epochs, if `interval` is `epoch`) unless you give it. A run that goes on
            with another length or other batches takes up its schedule at the same share of the run.
        interval: whether the schedule moves every `step` or every `epoch`.
        label_smoothing: share of the target probability that is spread over all classes, in training only; for losses
            that have such an argument.
        weight_decay_on: `convolutions`: latent weights of convolutions only; `public_code`: also gains and shifts, as
            in the public BNN_NoBN code; `all`: every parameter.
        init_from: checkpoint whose weights, and nothing else, a fresh run starts from: one of this project's, a plain
            state dict of the backbone, a ticket file (the masks, and the weights that its training starts from again),
            or one of the public BNN_NoBN or ReActNet code. Strict.
        replace_head: of `init_from` take all but the head (`backbone.classifier`), which stays as it was drawn: for
            other classes.
        freeze: what is not trained: `none`: everything is; `weights`: gains, shifts, slopes and the head are trained,
            the weights of all other layers stay; `body`: the head alone is trained, all before it stays and is
            evaluated as in a test (batch norm with its stored statistics).
        calibration: what is measured on training images before the first step: `full`: beta, the shifts of RSign and
            RPReLU, and the gains; `beta_and_shift`: beta and the shifts of RSign; `none`: nothing, the analytic beta.
        calibration_images: number of training images to calibrate on; all, where there are fewer.
        calibrate_init_from: what is measured anew before weights from `init_from` are trained on: `none`: nothing;
            `input`: the strength of the images, which the gain of the stem takes up (`calibrate_stem`); `gain`: the
            gains, where binary weights take the place of real ones (`calibrate_gains`); `full`: all that `calibration:
            full` measures; `auto`: `input` where the images have another strength than those that the checkpoint was
            trained on (a standard deviation by more than 1.5 times, or a mean by half of one), as far as it says, or
            `full` where the channels differ otherwise, and `calibration` is not `none`; else `none`. With a ticket
            `auto` is `none`.
        recalibrate: calibrate also what is calibrated already or starts from `init_from`: the constants of its file are
            replaced, its latent weights stay.
        learning_rate_scaling: the optimizer's learning rate is that for `base_batch_size`; `linear` (for SGD) and
            `square_root` (for Adam) multiply it by (batch / base_batch_size)^1 or ^0.5, where batch is the data's
            batch size x processes x accumulated batches; `none`: used as it is.
        base_batch_size: images of one optimizer step for which the learning rate is meant.
        rescale_on_resume: a run that goes on from a checkpoint keeps the factor of the checkpoint; true: takes that of
            its own batch size, if it runs on another number of processes, say.
        loss: what training minimises: `cross_entropy`, `comp_sum`, or the dotted path of your own function or class,
            from logits (N, num_classes) and labels (N,) to a number. `val/loss` and `test/loss` stay the cross-entropy.

    Raises:
        InputError: a value out of range; at the start of a run also a backbone that does not fit the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from bnfree.backbones import ReActNet18
        >>> from bnfree.datamodules import DigitsDataModule
        >>> network = ReActNet18(num_classes=10, in_channels=1, width=4)
        >>> module = ImageClassifier(network, optimizer=lambda parameters: Adam(parameters, lr=0.01))
        >>> options = {"logger": False, "enable_progress_bar": False}
        >>> trainer = Trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1, **options)
        >>> trainer.fit(module, datamodule=DigitsDataModule())
        >>> sorted(trainer.callback_metrics)
        ['loss', 'train/acc', 'train/loss', 'val/acc', 'val/loss']
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable = lambda parameters: Adam(parameters, lr=1e-3),
        lr_scheduler: LRSchedulerCallable = LINEAR_DECAY,
        interval: Literal["step", "epoch"] = "step",
        label_smoothing: float = 0.0,
        weight_decay_on: WeightDecayOn = "convolutions",
        init_from: str | None = None,
        replace_head: bool = False,
        freeze: Freeze = "none",
        calibration: Literal["full", "beta_and_shift", "none"] = "full",
        calibration_images: int = 256,
        calibrate_init_from: CalibrateInitFrom = "auto",
        recalibrate: bool = False,
        learning_rate_scaling: LearningRateScaling = "none",
        base_batch_size: int = 256,
        rescale_on_resume: bool = False,
        loss: Loss = "cross_entropy",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing={label_smoothing} must be at least 0 and less than 1.")
        if interval not in ("step", "epoch"):
            raise InputError(f"interval={interval!r} is not known; choose 'step' or 'epoch'.")
        if calibration not in ("full", "beta_and_shift", "none"):
            raise InputError(f"calibration={calibration!r} is not known; choose 'full', 'beta_and_shift' or 'none'.")
        if calibration_images < 1:
            raise InputError(
                f"calibration_images={calibration_images} must be at least 1; calibration none needs none."
            )
        if recalibrate and calibration == "none":
            raise InputError("recalibrate=True contradicts calibration='none'; leave one of them out.")
        if calibrate_init_from not in ("auto", "none", "input", "gain", "full"):
            raise InputError(
                f"calibrate_init_from={calibrate_init_from!r} is not known; choose 'auto', 'none', 'input', 'gain' or "
                "'full'."
            )
        if recalibrate and calibrate_init_from in ("none", "input", "gain"):
            raise InputError(
                f"recalibrate=True contradicts calibrate_init_from={calibrate_init_from!r}; leave one of them out."
            )
        if replace_head and init_from is None:
            raise InputError("replace_head=True has no weights to leave the head out of; give init_from too.")
        check_scaling(learning_rate_scaling, base_batch_size)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute '.*' is an instance of `nn.Module`")
            try:
                self.save_hyperparameters(logger=False)
            except RuntimeError:
                # Lightning copies all arguments, and torch refuses to copy a network that `torch.nn.utils.prune` has
                # pruned. Networks are no hyperparameters anyway, see below.
                networks = [name for name, value in self.hparams.items() if isinstance(value, nn.Module)]
                self.hparams.clear()
                self.save_hyperparameters(logger=False, ignore=networks)
        # Built from a config, these are class paths with their arguments, which a checkpoint can hold; built in Python,
        # they are objects, and a checkpoint that held them could not be loaded safely.
        for name, value in list(self.hparams.items()):
            if isinstance(value, nn.Module) or callable(value):
                del self.hparams[name]
        self.backbone = backbone
        self._classes: int | None = None
        self.optimizer, self.lr_scheduler, self.interval = optimizer, resolve_factory(lr_scheduler), interval
        self._schedule_total = 0
        self._position: SchedulePosition | None = None
        self.schedule_is_stale = False
        self.loss = build_loss(loss, label_smoothing)
        self.label_smoothing, self.weight_decay_on = label_smoothing, weight_decay_on
        self.init_from, self.replace_head = init_from, replace_head
        self.calibration, self.calibration_images, self.recalibrate = calibration, calibration_images, recalibrate
        self.calibrate_init_from = calibrate_init_from
        self._origin: Origin | None = None
        self.bar_items: dict[str, Tensor] = {}
        self._inputs: Inputs | None = None
        self.freeze_kind = freeze
        freeze_parameters(backbone, freeze)
        self.learning_rate_scaling, self.base_batch_size = learning_rate_scaling, base_batch_size
        self.rescale_on_resume = rescale_on_resume
        parameter_groups(backbone, weight_decay_on)
        num_classes = self._num_classes()
        # Means over images, also where processes have batches of different size.
        # A mean that left NaN out would hide that training has gone wrong.
        self.losses = nn.ModuleDict(
            {f"{stage}/loss": MeanMetric(nan_strategy="disable") for stage in ("train", "val", "test")}
        )
        self.accuracies = nn.ModuleDict(
            {f"{stage}/acc": MulticlassAccuracy(num_classes, average="micro") for stage in ("train", "val", "test")}
        )
        if num_classes >= 100:
            for stage in ("val", "test"):
                self.accuracies[f"{stage}/acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")

    def _num_classes(self) -> int:
        if self._classes is None:
            self._classes = num_classes_of(self.backbone)
        num_classes = self._classes
        if num_classes is None:
            raise InputError(
                f"backbone={type(self.backbone).__name__} has no integer attribute num_classes, and gives no logits "
                "(N, num_classes) for images of a usual size; add the attribute to the class."
            )
        if num_classes < 2:
            raise InputError(f"backbone.num_classes={num_classes} leaves nothing to tell apart; it must be at least 2.")
        if getattr(self.backbone, "features_only", False):
            raise InputError("backbone.features_only=True gives feature maps and no logits; leave it out.")
        return num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.backbone(images)

    def setup(self, stage: str) -> None:
        """Checks that backbone, data and machine fit together; loads `init_from` in a fresh fit."""
        data = getattr(self.trainer, "datamodule", None)
        for data_name, data_value, name in (
            ("num_classes", getattr(data, "num_classes", None), "num_classes"),
            ("image_shape[0]", (getattr(data, "image_shape", None) or (None,))[0], "in_channels"),
        ):
            value = self._num_classes() if name == "num_classes" else in_channels_of(self.backbone)
            if data_value is not None and value is not None and value != data_value:
                raise InputError(
                    f"backbone.{name}={value} does not fit {type(data).__name__}, whose {data_name} is {data_value}: "
                    f"set model.init_args.backbone.init_args.{name} to {data_value}"
                    f"{'' if hasattr(self.backbone, name) else ', or take a network with such an argument'}."
                )
        if stage == "fit":
            follows = self.lr_scheduler is not None or self.learning_rate_scaling != "none"
            refuse_unsuitable_callbacks(self.trainer, self.backbone, rate_follows_batches=follows)
        if stage == "fit" and getattr(self.backbone, "lean", False):
            check_available(getattr(self.backbone, "fast", ()))
        if stage == "fit" and self.trainer.ckpt_path is None:
            self._origin = self._inputs = None
            if self.init_from is not None:
                self._origin = load_initial_weights(self.backbone, self.init_from, replace_head=self.replace_head)
                start_averages(self.trainer, uncompiled(self.backbone))
            if self._origin is not None and self._origin.new_head is not None:
                rank_zero_info(f"The head is a new one, of {self._origin.new_head}.")

    def on_train_start(self) -> None:
        """Calibrates a BN-free backbone that is not calibrated; settles the learning rate of a resumed run."""
        check_averages(self.trainer, self.backbone)
        resume_learning_rates(self.trainer, self.learning_rate_scaling, self.base_batch_size, self.rescale_on_resume)
        if self.trainer.global_step > 0:
            count_batches_of_resumed_epoch(self.trainer)
            resume_schedule(
                self.trainer, self.lr_scheduler, self._schedule_total, self.interval, self._position,
                self.schedule_is_stale,
            )  # fmt: skip
        if getattr(self.backbone, "wants_calibration", False) and self.trainer.global_step == 0:
            self._calibrate()

    def _calibrate(self) -> None:
        """Measures what a run that has not begun needs; what it starts from says what that is."""
        asked = self.calibrate_init_from
        if asked == "auto" and self.calibration == "none":
            asked = "none"
        if not self.recalibrate:
            if self._origin is None and (self.init_from is not None or self.calibration == "none"):
                return
            if self._origin is None and is_calibrated(self.backbone):
                rank_zero_info("Calibrated or trained already: beta, shifts and gains stay as they are.")
                return
            if self._origin is not None and self._origin.ticket and asked in ("auto", "none"):
                return
        like = next(self.backbone.parameters())
        images = self._calibration_images().to(like.device, like.dtype)
        now = Inputs.of(images)
        anew = self._origin is None or self.recalibrate
        choice = Choice("full") if anew else choose(asked, cast(Origin, self._origin), self.backbone, now)
        # Processes may have other images, or round differently; training must start from the same constants everywhere.
        broadcast = self.trainer.strategy.broadcast
        self._inputs, choice = broadcast((now, choice), src=0)
        kind = choice.kind
        if kind == "input" and not calibrate_stem(uncompiled(self.backbone), choice.strength):
            kind = "full"
        if kind == "none":
            return
        done = self._calibrate_as(kind, choice, images)
        if self.trainer.world_size > 1:
            state = {key: value.cpu() for key, value in self.backbone.state_dict().items()}
            self.backbone.load_state_dict(broadcast(state, src=0))
        since = f", since {choice.reason}" if choice.reason else ""
        rank_zero_info(f"Calibrated {done[0]} on {len(images)} training images{since}: {done[1]}.")

    def _calibrate_as(self, kind: str, choice: Choice, images: Tensor) -> tuple[str, str]:
        """Calibrates; what, and with which result, in words."""
        if kind == "input":
            return "the stem", f"its gain times {1 / choice.strength:.3g}"
        if kind == "gain":
            factors = torch.cat(list(calibrate_gains(self.backbone, images).values()))
            found = f"times {factors.min():.2f} to {factors.max():.2f}, {factors.mean():.2f} on average"
            return f"the gains of {len(factors)} filters", found
        report = calibrate(self.backbone, images, full=bool(choice.reason) or self.calibration == "full")
        betas = [unit.beta for unit in report]
        return f"{len(report)} residual units", f"beta {min(betas):.2f} to {max(betas):.2f}"

    def _calibration_images(self) -> Tensor:
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "calibration_images"):
            there = getattr(data, "num_training_images", self.calibration_images)
            return data.calibration_images(min(self.calibration_images, there))
        return first_images(cast(Iterable[Any], self.trainer.train_dataloader), self.calibration_images)

    def train(self, mode: bool = True) -> ImageClassifier:
        """As of every module; what `freeze: body` leaves alone stays in evaluation mode."""
        super().train(mode)
        evaluate_frozen(self.backbone, self.freeze_kind)
        return self

    def _logits(self, images: Tensor) -> Tensor:
        """The logits (N, num_classes) of a training or an evaluation.

        Raises:
            InputError: the network gives something else.
        """
        logits: Any = self(images)
        expected = (len(images), self._num_classes())
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != expected:
            raise InputError(
                f"backbone={type(uncompiled(self.backbone)).__name__} gives {found} in place of logits {expected}, one "
                "number for each image and class; put its last layer right, such as model.backbone.head."
            )
        return cast(Tensor, logits)

    def training_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """What is minimised, of shape (), for logits (N, num_classes) of images (N, C, H, W): `loss`.

        The one method to override for a loss that needs the images; metrics and evaluation stay as they are.
        """
        return self.loss(logits, labels)

    def loss_of_guessing(self) -> float | None:
        """What `train/loss` is where all classes have the same logits, over all classes; None where it is not known.

        `CollapseCheck` compares with it. To be overridden together with `training_loss` where that has another scale.
        """
        classes, like = self._num_classes(), next(self.backbone.parameters())
        logits = torch.zeros(classes, classes, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            return float(self.loss(logits, torch.arange(classes, device=like.device)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The training loss of a batch of images (N, C, H, W) and labels (N,), or (N, num_classes) of mixed images."""
        images, labels = batch
        logits = self._logits(images)
        loss = self.training_loss(images, logits, labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise InputError(
                f"the training loss of {len(images)} images is {found}, in place of a tensor of one number; let "
                f"model.loss ({getattr(self.loss, '__name__', type(self.loss).__name__)}) give their mean."
            )
        self.bar_items = {"loss": loss.detach()}
        read = is_read_in_every_step(self._trainer)
        self.log("loss", loss, on_step=True, on_epoch=False, prog_bar=read, logger=False)
        # Mixed images have shares of classes for a label; the largest is what they mostly show.
        shown = labels.argmax(1) if labels.dim() == 2 else labels
        self._log_metrics("train", loss.detach(), logits.detach(), shown)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the validation part."""
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the test set."""
        self._evaluate("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Class (N,) and its probability (N,) for images (N, C, H, W) with indices (N,)."""
        images, index = batch
        probability, label = self(images).float().softmax(1).max(1)
        return {"index": index, "class": label, "probability": probability}

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self._logits(images)
        self._log_metrics(stage, F.cross_entropy(logits, labels), logits, labels)

    def _log_metrics(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        mean = cast(MeanMetric, self.losses[f"{stage}/loss"])
        # Once for each image: a MeanMetric that takes NaN as it is ignores weights (torchmetrics 1.9).
        mean.update(loss.expand(len(labels)))
        self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True, batch_size=len(labels))
        # The largest of logits that are not finite is no answer: such an image counts as wrong.
        wrong = -F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        logits = torch.where(logits.isfinite().all(1, keepdim=True), logits, wrong)
        for name, metric in self.accuracies.items():
            if name.startswith(stage):
                accuracy = cast(MulticlassAccuracy, metric)
                accuracy.update(logits, labels)
                self.log(name, accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: those of the backbone. A subclass with parameters of its own adds theirs."""
        return parameter_groups(self.backbone, self.weight_decay_on)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer on its parameter groups, and the schedule over the length of the whole run."""
        optimizer = self.optimizer(self.parameter_groups())
        prefer_fused(optimizer)
        scale_learning_rates(optimizer, self.trainer, self.learning_rate_scaling, self.base_batch_size)
        total = self.trainer.estimated_stepping_batches if self.interval == "step" else self.trainer.max_epochs
        if total is None or total == float("inf") or total < 1:
            raise InputError(
                f"trainer.max_epochs={self.trainer.max_epochs} gives the learning-rate schedule no length; "
                "set trainer.max_epochs or trainer.max_steps to a positive number."
            )
        self._schedule_total = int(total)
        schedule = schedule_config(make_schedule(self.lr_scheduler, optimizer, int(total)), self.interval)
        return cast(Any, {"optimizer": optimizer, **({"lr_scheduler": schedule} if schedule else {})})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the weights mean, and where the run stands in its schedule, for runs that go on from here."""
        checkpoint[KEY] = meaning_of(self.backbone, self._inputs)
        if self._schedule_total:
            checkpoint["schedule_position"] = position_of(self.trainer, self._schedule_total, self.interval).as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up where the run stood."""
        self._inputs = remembered_inputs(checkpoint)
        position = checkpoint.get("schedule_position")
        self._position = SchedulePosition(**position) if position else None
