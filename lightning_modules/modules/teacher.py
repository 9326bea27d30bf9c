"""A frozen network that teaches another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree import trust
from bnfree.errors import InputError
from bnfree.file_bounds import bounded_network
from bnfree.import_names import class_path_of_today
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.lightning_modules.modules.torchvision_network import TorchvisionNetwork
from bnfree.plugins import imported
from bnfree.state_dicts import read_checkpoint_file


class Teacher:
    """A frozen network, where its weights come from, and the size of the images it sees.

    Not an `nn.Module`, so that nothing that walks over the student's modules meets it: no checkpoint, optimizer,
    summary, averaging of weights or DDP. A copy of it is itself. It is built and its weights are read when a training
    begins, and not to evaluate a student, which works without the teacher's file.

    Args:
        network: the network, as class path and arguments or as a function without arguments that gives one; it sees
            the images as the student does, normalised by the data module. None: the backbone that the checkpoint in
            `weights` was trained with, if it is one of a `bnfree` run.
        weights: checkpoint of a `bnfree` run, or file with the network's state dict, strict; for a
            `TorchvisionNetwork` also the name of torchvision's weights, such as `IMAGENET1K_V1`. None: the network as
            it is built.
        image_size: height and width in pixels to which images are resized for the teacher (bilinear, antialiased).
            None: as they are.

    Raises:
        InputError: neither `network` nor `weights`, or an `image_size` below 1.
    """

    def __init__(
        self,
        network: Callable[[], nn.Module] | None = None,
        weights: str | None = None,
        image_size: int | None = None,
    ) -> None:
        if network is None and weights is None:
            raise InputError(
                "teacher has neither weights nor network; give the checkpoint of a trained network as teacher.weights."
            )
        if image_size is not None and image_size < 1:
            raise InputError(f"teacher.image_size={image_size} must be at least 1 pixel, or null.")
        self.network, self.weights, self.image_size = network, weights, image_size
        self._loaded: nn.Module | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    @property
    def loaded(self) -> nn.Module:
        """The network with its weights, between `load` and `release`."""
        if self._loaded is None:
            raise RuntimeError("the teacher is not loaded; call load() first.")
        return self._loaded

    @property
    def name(self) -> str:
        """The architecture, once loaded."""
        return str(getattr(self.loaded, "architecture", type(self.loaded).__name__))

    def load(self, num_classes: int, image_shape: tuple[int, int, int] | None = None) -> None:
        """Builds the network on the CPU, reads its weights and freezes it, without a draw from the random generators.

        Args:
            num_classes: the student's number of classes.
            image_shape: (C, H, W) of the images, to try whether the teacher takes them; None: not tried.

        Raises:
            InputError: no such file, weights that cannot be read or do not fit, or a network for other classes or
                images.
        """
        with isolate_rng(include_cuda=False):
            network = self._build()
            if self.weights is not None:
                if isinstance(network, TorchvisionNetwork) and self.weights in network.torchvision_weights:
                    network.load_torchvision_weights(self.weights)
                else:
                    load_initial_weights(network, self.weights, "teacher.weights", trained_ticket=True)
        self._loaded = network.eval().requires_grad_(False)
        if image_shape is not None:
            self._try(num_classes, image_shape)

    def _build(self) -> nn.Module:
        if isinstance(self.network, nn.Module):
            # It may be the student itself, which goes on training.
            return copy.deepcopy(self.network)
        network = remembered_network(str(self.weights)) if self.network is None else self.network()
        if not isinstance(network, nn.Module):
            raise InputError(f"teacher.network gives a {type(network).__name__}; it must give a network.")
        return network

    def _try(self, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        like = next(self.loaded.parameters(), torch.zeros(()))
        try:
            logits = self(torch.zeros(1, *image_shape, dtype=like.dtype))
        except Exception as error:
            # Whatever a network makes of images of the wrong size or number of channels.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"teacher {self.name} cannot take images of shape {image_shape} ({reason}); give a teacher for such "
                "images, or the height and width it takes as teacher.image_size."
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise InputError(f"teacher {self.name} gives no logits of shape (N, num_classes); give a classifier.")
        if logits.shape[1] != num_classes:
            raise InputError(
                f"teacher {self.name} knows {logits.shape[1]} classes, but backbone.num_classes={num_classes}; give a "
                "teacher for the same classes."
            )

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the loaded network."""
        self.loaded.to(device, dtype)

    def release(self) -> None:
        """Lets go of the network and its memory."""
        self._loaded = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W), without a gradient."""
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            exact = images.to(torch.promote_types(images.dtype, torch.float32))
            resized = F.interpolate(exact, (size, size), mode="bilinear", antialias=True)
            images = resized.to(images.dtype)
        return self.loaded(images)


def remembered_network(path: str) -> nn.Module:
    """The backbone that a checkpoint of a `bnfree` run was trained with, with fresh weights.

    Args:
        path: checkpoint file, opened with `weights_only=True`.

    Raises:
        InputError: the file cannot be read, or does not say what it belongs to.
    """
    given = f"teacher.weights={path!r}"
    content = read_checkpoint_file(path, given)
    remembered = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    backbone = remembered.get("backbone") if isinstance(remembered, Mapping) else None
    if not isinstance(backbone, Mapping):
        raise InputError(
            f"{given} does not say which network its weights belong to, as checkpoints of a bnfree run do; give "
            "teacher.network too."
        )
    trust.approve_signed(remembered, content.get(trust.KEY))
    trust.check(backbone, given)
    with bounded_network(path, given):
        return _built(backbone, given)


def _built(spec: Any, given: str) -> Any:
    """A value of a config; where it names a network, that network."""
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return spec
    try:
        network = imported(class_path_of_today(str(spec["class_path"])), "teacher.network")
    except InputError as error:
        raise InputError(
            f"{given} belongs to the network {spec['class_path']!r}, which cannot be imported here ({error}); start "
            "bnfree in the directory that holds its module, or give teacher.network."
        ) from error
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        # A file must not be able to call just anything.
        raise InputError(f"{given} names {spec['class_path']!r} as its network, which is none; give teacher.network.")
    arguments = spec.get("init_args", {})
    if not isinstance(arguments, Mapping):
        raise InputError(f"{given} has arguments of its network that have no names; give teacher.network.")
    try:
        return network(**{str(key): _built(value, given) for key, value in arguments.items()})
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{given} has arguments that {network.__name__} does not take ({str(error).splitlines()[0]}); give "
            "teacher.network."
        ) from error
