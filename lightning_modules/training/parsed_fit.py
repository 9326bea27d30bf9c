"""A `bnfree fit` that is parsed and not run: to know what it would do before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule

from bnfree.import_names import class_paths_of_today
from bnfree.lightning_modules.training.command_line import TrainingCLI
from bnfree.lightning_modules.training.config.explanations import first_cause
from bnfree.lightning_modules.training.settings import FitSettings, words_of

# What may differ between two starts of one training: where it runs, and what it shows.
OF_THE_MACHINE = {
    "config", "run_dir", "ckpt_path", "weights_only", "test_after_fit", "lr_monitor",
    "data.init_args.data_dir", "data.init_args.num_workers", "data.init_args.download", "data.init_args.cache_dir",
    *(f"trainer.{name}" for name in (
        "accelerator", "strategy", "devices", "num_nodes", "logger", "enable_progress_bar", "enable_model_summary",
        "log_every_n_steps", "default_root_dir", "profiler", "plugins", "detect_anomaly",
    )),
}  # fmt: skip


class ParsedFit(TrainingCLI):
    """The effective config of a `bnfree fit`, without a run.

    Args:
        arguments: `fit` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """

    settings: dict[str, Any]
    """The config as plain values."""

    def read_checkpoint(self) -> None:
        """Looks at no checkpoint."""

    def seed(self) -> None:
        """Leaves the random generators alone."""

    def before_instantiate_classes(self) -> None:
        """Chooses no run directory."""

    def instantiate_classes(self) -> None:
        """Builds nothing."""
        self.settings = yaml.safe_load(self._config_text())

    def run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""

    def build_model(self) -> LightningModule:
        """The LightningModule of the config; neither data nor a Trainer are built.

        Raises:
            InputError: an argument of the module or of its backbone out of range.
        """
        config = self.config.clone()
        section = config[self.subcommand]
        section.data, section.trainer.callbacks, section.trainer.logger = None, None, None
        try:
            model: LightningModule = self.parser.instantiate_classes(config)[self.subcommand].model
        except ValueError as error:
            raise first_cause(error) from None
        return model


def changes(earlier: Any, now: Any, name: str = "") -> Iterator[str]:
    """What has another value in a config than in an earlier one, as far as it changes the training.

    Args:
        earlier: settings of a run, as in its config.yaml.
        now: settings of the run to be.
        name: dotted name of the two.

    Yields:
        `NAME=VALUE, not VALUE` for each difference. Keys that only one of the two has say nothing.
    """
    if name in OF_THE_MACHINE:
        return
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in earlier:
            if key in now:
                yield from changes(earlier[key], now[key], f"{name}.{key}" if name else key)
    elif class_paths_of_today(_place(earlier)) != _place(now):
        yield f"{name.replace('.init_args', '')}={now}, not {earlier}"


def _place(value: Any) -> Any:
    # A checkpoint of another stage is the same one where the directory of all stages has moved.
    return Path(value).parts[-3:] if isinstance(value, str) and value.endswith(".ckpt") else value


def parse_fit(settings: FitSettings) -> ParsedFit:
    """Parses the settings of a training.

    Args:
        settings: of the training.

    Raises:
        InputError: a mistake in what the user gave.
    """
    return ParsedFit(["fit", *words_of(settings)])
