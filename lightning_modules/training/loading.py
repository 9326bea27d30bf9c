"""Whether the weights of a checkpoint or of a ticket fit a module, said before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from bnfree.errors import InputError
from bnfree.lightning_modules.training.checkpoints import remembered_config
from bnfree.lightning_modules.training.messages import say
from bnfree.state_dicts import OPTIONAL, backbone_of, contradicting_rows, reshaped_names
from bnfree.tickets import is_ticket, read_ticket


def checkpoint_to_load(
    model: LightningModule, data: LightningDataModule | None, content: dict[str, Any], path: str
) -> str | None:
    """Checks that a file fits a module, before the Trainer loads it.

    The backbone of the module is given the masks of a ticket, and the weights that it was found with, at once; a line
    says that nobody has trained them since.

    Args:
        model: the module.
        data: what it is to be evaluated on.
        content: what the file holds.
        path: the file.

    Returns:
        What the Trainer has to load: the path of a checkpoint, None after a ticket.

    Raises:
        InputError: a file of another network, a damaged ticket, or one without data to evaluate it on.
    """
    if not is_ticket(content):
        check_fits(model, content, path)
        return path
    ticket = read_ticket(content, f"ckpt_path={path!r}")
    backbone = backbone_of(model)
    if isinstance(backbone, LightningModule):
        raise InputError(f"ckpt_path={path!r} is a ticket, and {type(model).__name__} has no backbone to put it into.")
    if data is None:
        raise InputError(f"ckpt_path={path!r} is a ticket that does not say on which data; add --data or a --config.")
    check_weights(backbone.state_dict(), ticket.state_dict, type(backbone).__name__, content, path)
    backbone.load_state_dict(ticket.state_dict)
    start = ticket.start()
    if ticket.rewind is not None and all(torch.equal(start[name], value) for name, value in ticket.state_dict.items()):
        weights = "its rewind weights, which have not been trained under its masks"
    else:
        weights = "the weights that its masks were found with, pruned and not trained since"
    say(f"{path} is a ticket: evaluated with {weights}.")
    return None


def check_fits(model: LightningModule, checkpoint: dict[str, Any], path: str) -> None:
    """Compares names and shapes of a checkpoint's weights with a model's, before anything is loaded.

    Raises:
        InputError: they differ.
    """
    if not model.strict_loading or type(model).on_load_checkpoint is not LightningModule.on_load_checkpoint:
        return
    if type(model).configure_model is not LightningModule.configure_model:
        return
    check_weights(model.state_dict(), checkpoint["state_dict"], _described(model), checkpoint, path)


def check_weights(
    current: dict[str, Any], weights: dict[str, Any], name: str, checkpoint: dict[str, Any], path: str
) -> None:
    """Compares names and shapes of weights with those of a model.

    Args:
        current: state dict of the model.
        weights: state dict to be loaded.
        name: what the model is, for the message.
        checkpoint: where the weights are from.
        path: its file.

    Raises:
        InputError: they differ.
    """
    for key, value in weights.items():
        if not isinstance(value, torch.Tensor) and (
            key.endswith(OPTIONAL) or isinstance(current.get(key), torch.Tensor)
        ):
            raise InputError(f"ckpt_path={path!r} holds {key!r} that is not a tensor; give a checkpoint of this model.")
    # A pruned network's masks load into a freshly built one, and so do the rows that a shrunk one is left with.
    missing = sorted(key for key in set(current) - set(weights) if not key.endswith(OPTIONAL))
    unexpected = sorted(key for key in set(weights) - set(current) if not key.endswith(OPTIONAL))
    reshaped = reshaped_names(current, weights)
    problems = [f"lacks {_some(missing)}"] if missing else []
    problems += [f"has {_some(unexpected)} in addition"] if unexpected else []
    if reshaped:
        shapes = f"{tuple(weights[reshaped[0]].shape)} in place of {tuple(current[reshaped[0]].shape)}"
        problems.append(f"has {_some(reshaped)} with shape {shapes}")
    if not problems and (rows := contradicting_rows(current, weights)):
        raise InputError(
            f"ckpt_path={path!r} holds {_some(rows)} that are not ascending output channels, one for each row of the "
            "layer; give a checkpoint that bnfree has written."
        )
    if problems:
        raise InputError(
            f"ckpt_path={path!r}, written by {_written_by(checkpoint)}, does not fit {name}: it "
            f"{' and '.join(problems)}; leave out what you changed in the model, or give a checkpoint of this model."
        )


def _some(keys: list[str]) -> str:
    return repr(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _described(model: LightningModule) -> str:
    backbone = getattr(model, "backbone", None)
    return type(model).__name__ + (f" with {type(backbone).__name__}" if backbone is not None else "")


def _written_by(checkpoint: dict[str, Any]) -> str:
    section = remembered_config(checkpoint).get("model")
    if section is None:
        return "an unnamed model"
    backbone = section["init_args"].get("backbone")
    name = section["class_path"].rpartition(".")[2]
    return name + (f" with {backbone['class_path'].rpartition('.')[2]}" if isinstance(backbone, dict) else "")
