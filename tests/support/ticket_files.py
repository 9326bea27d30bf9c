"""Ticket files of a small network, for the tests of `bnfree ticket`."""

import torch

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.tickets import Ticket, apply, prune, take_snapshot

DEPTH = [2, 2, 1, 2]


def network(seed=0, depth=DEPTH, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ReActNet18(**{"width": 8, "in_channels": 1, "blocks_per_stage": list(depth), **options})


def remembered(**options):
    """What a checkpoint of a fit of the network holds about it."""
    arguments = {"width": 8, "in_channels": 1, "blocks_per_stage": DEPTH, **options}
    backbone = {"class_path": "bnfree.backbones.ReActNet18", "init_args": arguments}
    data = {"_class_path": "bnfree.datamodules.DigitsDataModule", "image_size": 8}
    model = {"_class_path": "bnfree.lightning_modules.ImageClassifier", "backbone": backbone}
    return {"hyper_parameters": model, "datamodule_hyper_parameters": data}


def make_ticket(density=0.1, seed=0, **options):
    """A ticket with betas that were measured, of weights that have moved since they were drawn."""
    start = network(seed, **options)
    images = torch.randn(16, start.in_channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    calibrate(start, images)
    trained = network(seed, **options)
    trained.load_state_dict(start.state_dict())
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1))
    apply(trained, prune(trained, density))
    return Ticket.of(
        trained, rewind=take_snapshot(start), score="standardized", scope="global", density=density, level=3,
        source="lot, seed 0", details={"rewind_point": "init"}, config=remembered(**options),
    )  # fmt: skip
