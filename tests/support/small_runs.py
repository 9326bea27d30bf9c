"""Run directories as `bnfree fit` and `bnfree recipe` leave them, with made-up numbers."""

import csv
import random
from pathlib import Path

import yaml

STEPS = 10
"""Steps in an epoch."""


def config(seed=0, data_dir="data/digits", **changes):
    """What a run's config.yaml holds, shortened; `changes` by dotted name of the arguments."""
    content = {
        "seed_everything": seed,
        "trainer": {
            "max_epochs": 4,
            "callbacks": [
                {"class_path": "bnfree.callbacks.AdaptiveGradientClipping", "init_args": {"clip_factor": 0.02}}
            ],
        },
        "model": {
            "class_path": "bnfree.lightning_modules.ImageClassifier",
            "init_args": {
                "backbone": {
                    "class_path": "bnfree.backbones.ReActNet18",
                    "init_args": {"norm": "bn_free", "binary_weights": True, "alpha": None},
                },
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.005}},
                "init_from": None,
            },
        },
        "data": {
            "class_path": "bnfree.datamodules.DigitsDataModule",
            "init_args": {"data_dir": data_dir, "seed": seed, "num_workers": 4},
        },
        "run_dir": None,
        "best_checkpoint": {"dirpath": None, "monitor": "val/acc"},
    }
    for name, value in changes.items():
        place = content
        *above, last = name.split("__")
        for part in above:
            place = place[part]
            place = place.get("init_args", place) if "class_path" in place else place
        place[last] = value
    return content


def write_run(directory, seed=0, epochs=4, base=0.5, noise=None, flips=False, gains=False, test=True, **changes):
    """Writes a run directory; its accuracies grow from `base` and depend on `noise` (default: the seed)."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("# bnfree 0.1.0\n" + yaml.safe_dump(config(seed, **changes)))
    generator = random.Random(seed if noise is None else noise)
    rows = []
    for epoch in range(epochs):
        end = (epoch + 1) * STEPS - 1
        for step in (end - STEPS // 2, end):
            rate = 0.005 * (1 - step / (STEPS * epochs))
            rows.append({"step": step, "lr-Adam/decayed": rate, "lr-Adam/undecayed": rate / 2})
            rows.append({"epoch": epoch, "step": step, "agc/clipped_fraction": generator.random()})
        growth = base + 0.4 * (1 - 0.5**epoch)
        val = {"val/acc": growth + 0.1 * generator.random(), "val/loss": 2 - growth}
        train = {"train/acc": growth - 0.1 * generator.random(), "train/loss": 2.1 - growth}
        if flips:
            train["signs/flipped"] = 0.1 / (epoch + 1)
        rows += [{"epoch": epoch, "step": end, **val}, {"epoch": epoch, "step": end, **train}]
    if test:
        accuracy = {"test/acc": base + 0.3 + 0.1 * generator.random(), "test/loss": 0.7}
        rows.append({"epoch": epochs, "step": epochs * STEPS, **accuracy})
    write_metrics(directory, rows)
    if gains:
        write_gains(directory, epochs)
    return directory


def write_metrics(directory, rows):
    columns = sorted({name for row in rows for name in row})
    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_gains(directory, epochs):
    layers = ["stem.convolution", "body.0.0.convolution", "body.1.0.projection"]
    with (directory / "weight_dynamics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "layer", "weights", "flipped", "gain"])
        for epoch in range(epochs):
            for index, layer in enumerate(layers):
                writer.writerow([epoch, layer, "" if index != 1 else 36, "" if index != 1 else 0.1, 1 + index + epoch])


def write_recipe(directory, stages, **arguments):
    """Writes a recipe's directory, from the name of each stage to arguments of `write_run`; None: not started."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    content = {"stages": {name: {"init_from": None} for name in stages}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for name, own in stages.items():
        if own is not None:
            write_run(directory / name, **{**arguments, **own})
    return directory


def column(directory, name):
    """Values of a metric in the order in which they were logged."""
    with (Path(directory) / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
