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
    rows = {layer: ((size - two.get(layer, 0)) / 2, 2 * two.get(layer, 0) - size) for layer, size in four.items()}
    if as_json:
        layers = [
            {"layer": layer, "bytes_per_image": image, "bytes_fixed": fixed} for layer, (image, fixed) in rows.items()
        ]
        totals = {key: sum(row[key] for row in layers) for key in ("bytes_per_image", "bytes_fixed")}
        return json.dumps(
            {"network": name, "image_shape": list(image_shape), "totals": totals, "layers": layers}, indent=2
        )
    heading = f"{name}, images {'x'.join(map(str, image_shape))}: kept between forward and backward pass, in MiB"
    lines = [("layer", "an image", "any batch"), *((n, _mib(image), _mib(fixed)) for n, (image, fixed) in rows.items())]
    lines.append(("total", *(_mib(sum(row[i] for row in rows.values())) for i in (0, 1))))
    width = max(len(line[0]) for line in lines)
    table = [f"{layer:<{width}}  {image:>9}  {fixed:>9}" for layer, image, fixed in lines]
    rule = "-" * len(table[0])
    return "\n".join([heading, "", table[0], rule, *table[1:-1], rule, table[-1]])


def _mib(size: float) -> str:
    return f"{size / MIB:.4f}" if size else "-"
