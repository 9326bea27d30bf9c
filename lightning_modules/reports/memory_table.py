"""What a training step keeps of each image, as text."""

from __future__ import annotations

import json

import torch
from torch import nn

from bnfree.errors import InputError
from bnfree.saved_memory import measure_saved_memory

MIB = 2**20


def memory_report(network: nn.Module, name: str, image_shape: tuple[int, ...], as_json: bool) -> str:
    """A table of bytes that the forward pass keeps for the backward pass, for one image and for the weights.

    Both come from a batch of two and one of four images, on the network in training mode: what grows with the batch,
    and what does not.

    Args:
        network: from images to logits.
        name: for the heading.
        image_shape: (C, H, W).
        as_json: plain numbers in place of the table.

    Raises:
        InputError: the network cannot process such images.
    """
    network.train()
    images = torch.randn(4, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        # The first batch is the larger one, since batch norm refuses a single value in a channel.
        four, two = (measure_saved_memory(network, images[:count].clone()).layers for count in (4, 2))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"image_shape={image_shape} does not go through {name} ({reason}).") from error
    rows = {layer: ((size - two.get(layer, 0)) / 2, 2.0 * two.get(layer, 0) - size) for layer, size in four.items()}
    per_image, fixed = (sum(row[column] for row in rows.values()) for column in (0, 1))
    if as_json:
        layers = [{"layer": layer, "bytes_per_image": row[0], "bytes_fixed": row[1]} for layer, row in rows.items()]
        totals = {"bytes_per_image": per_image, "bytes_fixed": fixed}
        report = {"network": name, "image_shape": list(image_shape), "totals": totals, "layers": layers}
        return json.dumps(report, indent=2)
    heading = f"{name}, images {'x'.join(map(str, image_shape))}: kept between forward and backward pass, in MiB"
    width = max(len(layer) for layer in rows)
    lines = [f"{'layer':<{width}}  {'an image':>9}  {'any batch':>9}"]
    lines += [f"{layer:<{width}}  {_mib(row[0]):>9}  {_mib(row[1]):>9}" for layer, row in rows.items()]
    rule = "-" * len(lines[0])
    total = f"{'total':<{width}}  {_mib(per_image):>9}  {_mib(fixed):>9}"
    return "\n".join([heading, "", lines[0], rule, *lines[1:], rule, total])


def _mib(size: float) -> str:
    return f"{size / MIB:.4f}" if size else "-"
