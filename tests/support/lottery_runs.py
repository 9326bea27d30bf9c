"""Directories of lottery runs as `bnfree lottery run` and `controls` leave them, with made-up accuracies."""

import random
from pathlib import Path

import torch
import yaml

from bnfree.backbones import ReActNet18
from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult, level_name, seed_name, write_level
from bnfree.tickets import Ticket, apply, checksum, current_masks, prune, random_masks, save_ticket

SMALL = {"num_classes": 10, "in_channels": 1, "width": 4}
CONTROLS = ("random_layerwise", "random_global", "reinit", "shuffle_signs")


def network(seed=0, arguments=SMALL):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ReActNet18(**arguments)


def write_lottery(directory, densities=(0.5, 0.2), seeds=(0,), controls=(), test=True, loss=0.1, arguments=SMALL):
    """Writes a whole run; a level's accuracy falls with its density by about `loss`, that of a control by twice."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    settings = {"config": "digits.yaml", "lottery": {"densities": list(densities), "seeds": list(seeds)}}
    (directory / "lottery.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for seed in seeds:
        trained = network(seed, arguments)
        generator = random.Random(seed)
        folder = directory / seed_name(seed)
        write_level_folder(folder / level_name(0), "dense", 0, seed, trained, 0.9 + 0.02 * generator.random(), test)
        masks = current_masks(trained)
        for level, density in enumerate(densities, start=1):
            masks = prune(trained, density)
            apply(trained, masks)
            fall = loss * (1 - density) ** 3
            accuracy = 0.9 - fall + 0.02 * generator.random()
            write_level_folder(folder / level_name(level), "ticket", level, seed, trained, accuracy, test)
            for kind in controls:
                other = network(seed + 100, arguments)
                keep = {"random_layerwise": "layer", "random_global": "global"}.get(kind)
                apply(other, masks if keep is None else random_masks(masks, seed, keep))
                place = folder / "controls" / kind / level_name(level)
                write_level_folder(place, kind, level, seed, other, accuracy - fall - 0.02 * generator.random(), test)
    return directory


def write_level_folder(directory, kind, level, seed, trained, accuracy, test=True, arguments=SMALL):
    """Writes the folder of one finished level: config, last checkpoint, ticket and mark."""
    (directory / "checkpoints").mkdir(parents=True)
    backbone = {"class_path": "bnfree.backbones.ReActNet18", "init_args": arguments}
    config = {
        "model": {"class_path": "bnfree.lightning_modules.ImageClassifier", "init_args": {"backbone": backbone}},
        "data": {"class_path": "bnfree.datamodules.DigitsDataModule", "init_args": {"batch_size": 64}},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    state = {f"backbone.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict": state}, directory / "checkpoints" / "last.ckpt")
    masks = current_masks(trained)
    if kind != "dense":
        found = {"score": "standardized", "scope": "global", "density": 0.5, "level": level}
        save_ticket(Ticket.of(trained, **found), directory / "ticket.pt")
    kept, weights = (sum(int(count(mask)) for mask in masks.values()) for count in (torch.sum, torch.numel))
    mark = LevelResult(
        kind=kind, level=level, seed=seed, density=kept / weights, epochs=5, steps=100 + level, seconds=60.5 + seed,
        mask_checksum=None if kind == "dense" else checksum(masks), val_acc=accuracy - 0.01,
        best_val_acc=accuracy + 0.005, test_acc=accuracy if test else None,
        test={"test/acc": accuracy} if test else {}, weights_checksum=f"{seed}{level}{kind}", directory=directory,
    )  # fmt: skip
    write_level(mark)
    return mark
