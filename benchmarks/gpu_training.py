"""Parts of `gpu_pack.py` that train: short screens, the CIFAR-10 recipe in both steps with its teacher, controls."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpu_data import MEAN, STD, Batches, Images, accuracy
from gpu_report import Report
from gpu_step import Step, Variant
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.gradient_windows import measure_signal_widths, rescale_gradient_windows
from bnfree.packing import NetworkInfo, load, pack

CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Settings:
    """Of a training; the defaults are those of the recipe."""

    how: Variant
    width: int = 64
    batch: int = 512
    learning_rate: float = 2.5e-3
    weight_decay: float = 5e-6
    """Of latent weights in step 1; step 2 has none."""
    clip_factor: float | None = 0.02
    estimator: str = "sigmoid"
    alpha: float | None = 0.25
    norm: str = "bn_free"
    binary_shortcut: bool = False
    gradient_windows: bool = True
    """Whether the signs of a BN-free network get the width of their windows back before every epoch."""
    warmup: float = 0.02
    """Share of the steps."""
    first_step: float = 0.28
    """Share of the epochs that goes to step 1."""
    seed: int = 0

    def network(self, binary_weights: bool) -> ReActNet18:
        """A fresh one."""
        torch.manual_seed(self.seed)
        return ReActNet18(
            num_classes=10, width=self.width, norm=self.norm, binary_weights=binary_weights, estimator=self.estimator,
            alpha=self.alpha, binary_shortcut=self.binary_shortcut,
        )  # fmt: skip


def factor(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate: a linear rise, then a linear fall to 0."""
    return min((step + 1) / (warmup * steps + 1), 1 - step / steps)


def train(
    report: Report, part: str, name: str, network: nn.Module, data: Images, test: Images, settings: Settings,
    epochs: int, weight_decay: float, teacher: nn.Module | None, every: int,
) -> Step:  # fmt: skip
    """Trains for some epochs; a line of held-out accuracy after every few of them and after the last."""
    batches = Batches(data, settings.batch, seed=settings.seed)
    step = Step(network, settings.how, settings.learning_rate, weight_decay, settings.clip_factor, teacher)
    steps, done, start = epochs * batches.steps, 0, time.monotonic()
    network.train()
    for epoch in range(1, epochs + 1):
        if settings.gradient_windows and settings.norm == "bn_free":
            network.eval()
            rescale_gradient_windows(network, measure_signal_widths(network, data.images[:CALIBRATION_IMAGES]))
            network.train()
        for images, labels in batches:
            step.set_learning_rate(settings.learning_rate * factor(done, steps, settings.warmup))
            step(images, labels)
            done += 1
        if epoch % every == 0 or epoch == epochs:
            step.synchronize()
            seconds = time.monotonic() - start
            reached = accuracy(network, test)
            report.line(part, name, epoch=epoch, of=epochs, loss=step.loss.item(), accuracy=reached, seconds=seconds)
            network.train()
    return step


def seconds_an_epoch(data: Images, settings: Settings, teacher: nn.Module | None) -> float:
    """Measured on ten steps of a network that is thrown away; compiling and capturing are done before."""
    batches = Batches(data, settings.batch)
    step = Step(settings.network(True).to(data.images.device), settings.how, 1e-5, 0.0, settings.clip_factor, teacher)
    taken = []
    for images, labels in batches:
        step.synchronize()
        start = time.monotonic()
        step(images, labels)
        step.synchronize()
        taken.append(time.monotonic() - start)
        if len(taken) == 13:
            break
    # Augmentation runs before the clock and is little; the epochs themselves are timed on the way.
    return 1.1 * batches.steps * sum(sorted(taken)[: max(1, len(taken) - 3)]) / max(1, len(taken) - 3)


def two_steps(
    report: Report, part: str, name: str, data: Images, test: Images, settings: Settings, epochs: int,
    teacher: nn.Module | None,
) -> nn.Module:  # fmt: skip
    """Step 1 with real weights, the hand-over, step 2 with binary ones; gives the network of the last epoch."""
    device = data.images.device
    first = max(1, round(settings.first_step * epochs))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(settings.seed))
    chosen = data.images[order[:CALIBRATION_IMAGES].to(device)]
    every = max(1, epochs // 12)
    network = settings.network(binary_weights=False).to(device)
    if network.wants_calibration:
        calibrate(network, chosen, full=True)
    settings.how.prepare(network)
    train(report, part, f"{name}, step 1", network, data, test, settings, first, settings.weight_decay, teacher, every)
    binary = settings.network(binary_weights=True).to(device)
    binary.load_state_dict(network.state_dict())
    settings.how.prepare(binary)
    train(report, part, f"{name}, step 2", binary, data, test, settings, epochs - first, 0.0, teacher, every)
    return binary


def train_teacher(report: Report, data: Images, test: Images, batch: int, seconds: float, toy: bool) -> nn.Module:
    """ResNet-18 with the stem for small images, SGD, one cycle, cutout 12; as many epochs as the seconds hold."""
    device = data.images.device
    torch.manual_seed(0)
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = Batches(data, batch, cutout=12)
    start, epoch, epochs = time.monotonic(), 0, 0
    done = 0
    while epochs == 0 or epoch < epochs:
        for images, labels in batches:
            # The first epoch, in which the rate rises, also tells how many there will be.
            progress = done / (max(epochs, 12) * batches.steps)
            rate = 0.4 * min((progress + 1e-3) / 0.2, (1 - progress) / 0.8)
            for group in optimizer.param_groups:
                group["lr"] = max(rate, 1e-5)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                logits = network(images.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            done += 1
        epoch += 1
        if epochs == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            epochs = 1 if toy else max(12, int(seconds / (time.monotonic() - start)))
    taken = time.monotonic() - start
    report.line("recipe", "teacher", epochs=epochs, accuracy=accuracy(network, test), seconds=taken)
    return network.eval().requires_grad_(False)


def run_recipe(
    report: Report, data: Images, test: Images, names: list[str], settings: Settings, seconds: float, toy: bool
) -> nn.Module:
    """The teacher, both steps and the packed network, in the seconds given."""
    start = time.monotonic()
    teacher = train_teacher(report, data, test, settings.batch, 0.15 * seconds, toy)
    an_epoch = seconds_an_epoch(data, settings, teacher)
    left = seconds - (time.monotonic() - start)
    # Packing, evaluation and compiling or capturing twice more stay within the margin.
    epochs = 2 if toy else max(4, int((0.92 * left - 20) / an_epoch))
    report.line("recipe", "plan", seconds_an_epoch=an_epoch, epochs=epochs, variant=settings.how.name)
    network = two_steps(report, "recipe", "BN-free", data, test, settings, epochs, teacher)
    taken = time.monotonic() - start
    report.line("recipe", "last epoch", accuracy=accuracy(network, test), seconds=taken, images=len(test))
    save(report, network, test, names)
    return network


def save(report: Report, network: nn.Module, test: Images, names: list[str]) -> Path:
    """The packed network as a file, and how often it agrees with the network that it was made of."""
    path = report.folder / "cifar10.safetensors"
    on_cpu = network.cpu().float().eval()
    pack(on_cpu, info=NetworkInfo(mean=MEAN, std=STD, class_names=names)).save(path)
    some = test.images[:: max(1, len(test) // 500)].cpu()
    with torch.no_grad():
        same = (load(path)(some).argmax(1) == on_cpu(some).argmax(1)).float().mean().item()
    report.line("recipe", "packed", bytes=path.stat().st_size, same_class=same, images=len(some))
    return path


def run_screens(report: Report, data: Images, settings: Settings, seconds: float, toy: bool) -> None:
    """Seven short trainings in one step that differ in one thing; they are judged on training images set apart."""
    apart = max(1, len(data) // 20)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).to(data.labels.device)
    chosen, rest = (Images(data.images[part], data.labels[part]) for part in (order[:apart], order[apart:]))
    cases = {
        "sigmoid, alpha 0.25, clip 0.02": settings,
        "approx": replace(settings, estimator="approx"),
        "ste": replace(settings, estimator="ste"),
        "alpha 0.5": replace(settings, alpha=0.5),
        "clip 0.001": replace(settings, clip_factor=0.001),
        "no clipping": replace(settings, clip_factor=None),
        "no gradient windows": replace(settings, gradient_windows=False),
    }
    an_epoch = seconds_an_epoch(rest, settings, None)
    epochs = 1 if toy else max(2, int(seconds / len(cases) / an_epoch))
    for name, case in cases.items():
        with report.item("screens", name, needs=0.5 * epochs * an_epoch) as go:
            if go:
                network = case.network(binary_weights=True).to(data.images.device)
                calibrate(network, rest.images[:CALIBRATION_IMAGES], full=True)
                case.how.prepare(network)
                train(report, "screens", name, network, rest, chosen, case, epochs, 0.0, None, epochs)


def run_controls(report: Report, data: Images, test: Images, settings: Settings, seconds: float, toy: bool) -> None:
    """In equal epochs, without a teacher: ours, its batch-norm twin, and A&B BNN's published recipe, shortened."""
    published = replace(
        settings, batch=min(256, settings.batch), learning_rate=1e-3, clip_factor=0.001, binary_shortcut=True,
        first_step=0.5, gradient_windows=False,
    )  # fmt: skip
    cases = {
        "BN-free": settings,
        "batch-norm twin": replace(settings, norm="batch_norm", alpha=None),
        "A&B BNN's published recipe": published,
    }
    an_epoch = seconds_an_epoch(data, settings, None)
    epochs = 2 if toy else max(4, int(0.8 * seconds / (len(cases) + 1) / an_epoch))
    for name, case in cases.items():
        with report.item("controls", name, needs=0.8 * epochs * an_epoch) as go:
            if go:
                network = two_steps(report, "controls", name, data, test, case, epochs, None)
                report.line("controls", f"{name}, last epoch", accuracy=accuracy(network, test), epochs=epochs)
