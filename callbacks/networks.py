"""The network inside anybody's LightningModule, for callbacks that call it."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn

from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of


def network_to_call(pl_module: LightningModule, callback: str, itself: bool = False) -> nn.Module:
    """The network of a LightningModule, as something that maps images to logits.

    Args:
        pl_module: the LightningModule, which may be its own network.
        callback: who asks, for the message.
        itself: whether the LightningModule itself will do, with a `forward` of its own.

    Raises:
        InputError: it is its own network, and that will not do.
    """
    network = backbone_of(pl_module)
    if network is not pl_module or (itself and type(network).forward is not LightningModule.forward):
        return network
    forward = " and no forward(images)" if itself else ""
    raise InputError(
        f"{type(pl_module).__name__} has no module backbone, nor another single attribute with all the weights that it "
        f"trains{forward}, which {callback} calls; keep the network in one attribute, such as self.backbone"
        f"{', or write a forward' if itself else ''}."
    )
