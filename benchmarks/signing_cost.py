"""What an owner's mark costs: test accuracy of tickets on digits, signed before their training and not signed.

    python benchmarks/signing_cost.py --seeds 5

For each seed: a dense network is trained, pruned to each density in one step, rewound to its start and trained again,
once as it is and once with a mark, on the same batches. Prints the mean over seeds and the difference with its standard
error.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.clipping import adaptive_clip_grad_
from bnfree.datamodules import DigitsDataModule
from bnfree.tickets import Ticket, mask_statistics, prunable_layers, prune, rewind, take_snapshot, verify
from bnfree.tickets.signing import sign_ticket, signature_of


def train(network, data, epochs, seed):
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    images, labels = data
    steps = epochs * (len(images) // 64)
    for step in range(steps):
        if step % (len(images) // 64) == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[64 * (step % (len(images) // 64)) :][:64]
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        adaptive_clip_grad_(network.body.parameters(), clip_factor=0.02)
        optimizer.step()


@torch.no_grad()
def accuracy(network, data):
    network.eval()
    return 100 * (network(data[0]).argmax(1) == data[1]).double().mean().item()


def tensors(data, loader):
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--bits", type=int, default=256)
    options = parser.parse_args()
    data = DigitsDataModule(image_size=8, augment=False)
    data.setup()
    training, test = tensors(data, data.train_dataloader()), tensors(data, data.test_dataloader())
    found = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        network = ReActNet18(in_channels=1, width=16, blocks_per_stage=[2, 2, 2, 2])
        calibrate(network, training[0][:256], full=True)
        start = take_snapshot(network)
        train(network, training, options.epochs, seed)
        found.setdefault("dense", []).append(accuracy(network, test))
        trained = take_snapshot(network)
        for density in (0.2, 0.1, 0.05):
            for layer in prunable_layers(network).values():
                layer.set_mask(None)
            rewind(network, trained)
            masks = prune(network, density)
            rewind(network, trained, masks)
            ticket = Ticket.of(network, rewind=start, score="standardized", scope="global", density=density)
            signed = sign_ticket(ticket, f"a key for seed number {seed:6}", bits=options.bits)
            for name, each in (("plain", ticket), ("signed", signed)):
                rewind(network, start, each.masks)
                train(network, training, options.epochs, seed)
                found.setdefault((density, name), []).append(accuracy(network, test))
            moved = sum(int((mask & ~signed.masks[layer]).sum()) for layer, mask in ticket.masks.items())
            share = 100 * moved / mask_statistics(ticket.masks).total.kept
            found.setdefault((density, "moved"), []).append(share)
            p_value = verify(signed.masks, f"a key for seed number {seed:6}", signature_of(signed)).p_value
            print(f"seed {seed} density {density}: plain {found[density, 'plain'][-1]:.2f} signed "
                  f"{found[density, 'signed'][-1]:.2f}, {share:.2f} % moved, p {p_value:.0e}", flush=True)  # fmt: skip
    print(f"dense {statistics.mean(found['dense']):.2f}")
    for density in (0.2, 0.1, 0.05):
        plain, signed = found[density, "plain"], found[density, "signed"]
        difference = [after - before for before, after in zip(plain, signed, strict=True)]
        error = statistics.stdev(difference) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
        print(
            f"density {density}: plain {statistics.mean(plain):.2f}, signed {statistics.mean(signed):.2f}, difference "
            f"{statistics.mean(difference):+.2f} +- {error:.2f}, moved {statistics.mean(found[density, 'moved']):.2f} %"
        )


if __name__ == "__main__":
    main()
