"""LightningModules around a backbone, and the `bnfree` command."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnfree.import_names import one_module

if TYPE_CHECKING:
    from bnfree.lightning_modules.deployment.bench import BenchResult, BenchSettings, bench
    from bnfree.lightning_modules.deployment.compress import CompressResult, CompressSettings, compress
    from bnfree.lightning_modules.deployment.export import ExportResult, ExportSettings, export
    from bnfree.lightning_modules.experiments.lottery.controls import run_controls
    from bnfree.lightning_modules.experiments.lottery.early_bird import run_early_bird
    from bnfree.lightning_modules.experiments.lottery.lottery import run_lottery
    from bnfree.lightning_modules.experiments.lottery.settings import (
        ControlSettings,
        EarlyBirdSettings,
        LotterySettings,
    )
    from bnfree.lightning_modules.experiments.recipe import run_recipe
    from bnfree.lightning_modules.experiments.recipe_file import RecipeSettings
    from bnfree.lightning_modules.experiments.sweep import SweepResult, run_sweep
    from bnfree.lightning_modules.experiments.sweep_grid import SweepSettings
    from bnfree.lightning_modules.modules.distilled_classifier import DistilledClassifier
    from bnfree.lightning_modules.modules.image_classifier import ImageClassifier
    from bnfree.lightning_modules.modules.teacher import Teacher
    from bnfree.lightning_modules.modules.timm_network import TimmNetwork
    from bnfree.lightning_modules.modules.torchvision_network import TorchvisionNetwork
    from bnfree.lightning_modules.reports.documents import ReportResult
    from bnfree.lightning_modules.reports.network_costs import SummaryResult, SummarySettings, summary
    from bnfree.lightning_modules.reports.report import ReportSettings, report
    from bnfree.lightning_modules.training.command_line import TrainingCLI
    from bnfree.lightning_modules.training.evaluate import EvaluateResult, evaluate
    from bnfree.lightning_modules.training.fit import FitResult, fit
    from bnfree.lightning_modules.training.settings import EvaluateSettings, FitSettings

one_module(__name__)

PUBLIC = {
    "BenchResult": "deployment.bench",
    "BenchSettings": "deployment.bench",
    "CompressResult": "deployment.compress",
    "CompressSettings": "deployment.compress",
    "ControlSettings": "experiments.lottery.settings",
    "DistilledClassifier": "modules.distilled_classifier",
    "EarlyBirdSettings": "experiments.lottery.settings",
    "EvaluateResult": "training.evaluate",
    "EvaluateSettings": "training.settings",
    "ExportResult": "deployment.export",
    "ExportSettings": "deployment.export",
    "FitResult": "training.fit",
    "FitSettings": "training.settings",
    "ImageClassifier": "modules.image_classifier",
    "LotterySettings": "experiments.lottery.settings",
    "RecipeSettings": "experiments.recipe_file",
    "ReportResult": "reports.documents",
    "ReportSettings": "reports.report",
    "SummaryResult": "reports.network_costs",
    "SummarySettings": "reports.network_costs",
    "SweepResult": "experiments.sweep",
    "SweepSettings": "experiments.sweep_grid",
    "Teacher": "modules.teacher",
    "TimmNetwork": "modules.timm_network",
    "TorchvisionNetwork": "modules.torchvision_network",
    "TrainingCLI": "training.command_line",
    "bench": "deployment.bench",
    "compress": "deployment.compress",
    "evaluate": "training.evaluate",
    "export": "deployment.export",
    "fit": "training.fit",
    "report": "reports.report",
    "run_controls": "experiments.lottery.controls",
    "run_early_bird": "experiments.lottery.early_bird",
    "run_lottery": "experiments.lottery.lottery",
    "run_recipe": "experiments.recipe",
    "run_sweep": "experiments.sweep",
    "summary": "reports.network_costs",
}
"""Where each public name is."""

__all__ = [
    "BenchResult",
    "BenchSettings",
    "CompressResult",
    "CompressSettings",
    "ControlSettings",
    "DistilledClassifier",
    "EarlyBirdSettings",
    "EvaluateResult",
    "EvaluateSettings",
    "ExportResult",
    "ExportSettings",
    "FitResult",
    "FitSettings",
    "ImageClassifier",
    "LotterySettings",
    "RecipeSettings",
    "ReportResult",
    "ReportSettings",
    "SummaryResult",
    "SummarySettings",
    "SweepResult",
    "SweepSettings",
    "Teacher",
    "TimmNetwork",
    "TorchvisionNetwork",
    "TrainingCLI",
    "bench",
    "compress",
    "evaluate",
    "export",
    "fit",
    "report",
    "run_controls",
    "run_early_bird",
    "run_lottery",
    "run_recipe",
    "run_sweep",
    "summary",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name in PUBLIC:
        return getattr(importlib.import_module(f"bnfree.lightning_modules.{PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
