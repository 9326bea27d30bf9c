"""Part of `gpu_pack.py`: time, memory and kernel launches of a training step, side by side in one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_report import Report
from gpu_step import VARIANTS, Step, Variant, lacking

PART = "speed"
BASELINE = "plain composition"


@dataclass(frozen=True)
class Case:
    """What is measured."""

    backbone: str
    stem: str
    size: int
    batch: int
    classes: int

    @property
    def name(self) -> str:
        """As the lines name it."""
        return f"{self.backbone}, {self.size} pixels, batch {self.batch}"


CASES = (
    Case("ReActNet18", "cifar", 32, 512, 10),
    Case("ReActNet18", "cifar", 32, 256, 10),
    Case("ReActNet18", "cifar", 32, 1024, 10),
    Case("ReActNet18", "imagenet", 224, 256, 1000),
    Case("ReActNetA", "imagenet", 224, 128, 1000),
)
TOY_CASES = (Case("ReActNet18", "cifar", 32, 4, 10),)


def run(report: Report, device: torch.device, toy: bool) -> dict[str, float]:
    """A line for every case and variant; what must be compiled comes last, since that takes minutes.

    Returns:
        Milliseconds a step of every variant of ours in the first case, by its name.
    """
    measured = [Measured(case) for case in (TOY_CASES if toy else CASES)]
    for compiled in (False, True):
        for case in measured[: 1 if compiled else None]:
            for how in VARIANTS:
                if how.compiled == compiled and not (compiled and toy):
                    measure(report, device, case, how, toy)
    ours = {how.name for how in VARIANTS if how.composition != "plain" and how.norm == "bn_free"}
    return {name: value for name, value in measured[0].milliseconds.items() if name in ours}


@dataclass
class Measured:
    """What has been found of a case, by the names of the variants."""

    case: Case
    milliseconds: dict[str, float] = field(default_factory=dict)
    mib: dict[str, float | None] = field(default_factory=dict)


def measure(report: Report, device: torch.device, measured: Measured, how: Variant, toy: bool) -> None:
    """One line; ratios are to the plain composition of the same case."""
    case = measured.case
    options: dict[str, Any] = {"num_classes": case.classes, **({"width": 4} if toy else {})}
    if case.backbone == "ReActNet18":
        options["stem"] = case.stem
    name = f"{case.name}: {how.name}"
    with report.item(PART, name, needs=60 if how.compiled else 5) as go:
        if not go or lacking(report, PART, name, how, device):
            return
        images = torch.randn(case.batch, 3, case.size, case.size, device=device)
        labels = torch.arange(case.batch, device=device) % case.classes
        step = Step(how.build(case.backbone, **options).to(device), how)
        for _ in range(3):
            step(images, labels)
        # A graph has its memory already, and shows the profiler one launch.
        mib = None if how.graph else step.peak_mib(images, labels)
        milliseconds = min(step.milliseconds(images, labels, 1 if toy else 10) for _ in range(3))
        launches = None if how.graph else step.launches(images, labels)
        measured.milliseconds[how.name], measured.mib[how.name] = milliseconds, mib
        ratios = {}
        if BASELINE in measured.milliseconds:
            ratios["times_as_fast"] = measured.milliseconds[BASELINE] / milliseconds
        if mib and (most := measured.mib.get(BASELINE)):
            ratios["of_its_memory"] = mib / most
        speed = 1e3 * case.batch / milliseconds
        report.line(PART, name, ms=milliseconds, mib=mib, launches=launches, images_per_second=speed, **ratios)
