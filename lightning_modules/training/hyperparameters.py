"""What a run was made with, as one flat table for every logger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

# Where a run shows what it does, not what it does.
NOT_LOGGED = ("trainer/logger",)
CLASS = "class_path"


def flat_hyperparameters(settings: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The hyperparameters of a run by names without nesting, which tables of loggers can sort and filter.

    Args:
        settings: a config as plain values; of it the seed and the sections `model`, `data` and `trainer`.

    Returns:
        Values by name: `init_args` are left out of names, and a slash joins their parts, as in Lightning's own tables,
        since dots mean something else to W&B. A callback stands by its class, numbered where there are several. Lists
        are texts, null is `None` in model and data and left out elsewhere.

    Example:
        >>> backbone = {"class_path": "bnfree.backbones.ReActNet18", "init_args": {"width": 8}}
        >>> flat_hyperparameters({"model": {"init_args": {"backbone": backbone}}})
        {'model/backbone/class_path': 'bnfree.backbones.ReActNet18', 'model/backbone/width': 8}
    """
    sections = {name: settings.get(name) for name in ("seed_everything", "model", "data", "trainer")}
    pairs = dict(_flat(sections, ""))
    return {
        name: "None" if value is None else value
        for name, value in pairs.items()
        if (value is not None or name.startswith(("model/", "data/"))) and not name.startswith(NOT_LOGGED)
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            unnamed = key in ("init_args", "dict_kwargs")
            yield from _flat(inner, name if unnamed else f"{name}/{key}".strip("/"))
    elif isinstance(value, list) and any(isinstance(item, Mapping) and CLASS in item for item in value):
        seen: dict[str, int] = {}
        for item in value:
            short = str(item.get(CLASS) if isinstance(item, Mapping) else item).rpartition(".")[2]
            seen[short] = seen.get(short, 0) + 1
            yield from _flat(item, f"{name}/{short}" + (f"-{seen[short]}" if seen[short] > 1 else ""))
    else:
        yield name, value if isinstance(value, str | int | float | None) else str(value)


class Hyperparameters(Callback):
    """Only observes: gives the hyperparameters of the run to every logger, once training starts.

    TensorBoard's HPARAMS page gets no list of columns of its own from a run: TensorBoard then finds the columns, the
    choices of each filter and the metrics in all the runs that it shows, and not in one of them.

    Args:
        values: as from `flat_hyperparameters`.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs them; a logger that does not take them costs a warning, not the training."""
        for logger in trainer.loggers:
            try:
                logger.log_hyperparams(dict(self.values))
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment._get_file_writer().add_summary(_session(self.values)[0])
                logger.save()
            except Exception as error:
                # Such as MLflow's, of a resumed run with another number of epochs.
                rank_zero_warn(
                    f"{type(logger).__name__} has not taken the hyperparameters ({' '.join(str(error).split())[:200]})."
                )

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells TensorBoard that the run has come to its end."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment._get_file_writer().add_summary(_session(self.values)[1])


def _session(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """TensorBoard's records of the start and the end of a run; its list of columns is not used."""
    # Imported here: it takes a second, and most configs are parsed without a run.
    from torch.utils.tensorboard.summary import hparams

    _, start, end = hparams(dict(values), {})
    return start, end
