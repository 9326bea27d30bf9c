"""Teachers' logits for the training images, computed once and read from disk afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bnfree.checksums import value_bytes
from bnfree.errors import InputError
from bnfree.files import full_disk, is_full_disk
from bnfree.lightning_modules.modules.teacher import Teacher

FORMAT = "bnfree teacher logits 1"
# What a user calls the settings that a file was made with.
ADVICE = "give another folder, or remove it to have it made again"


class TeacherLogits:
    """A folder with a file of logits for each variant of the training images, `variant-000.safetensors` and so on.

    A file holds `logits` (M, T, K), float32 or float64, of the M training images, T teachers and K classes, and what it
    was made with: hashes of the teachers' weights and of the images, the seed of the augmentation, the precision. A
    missing file is made when its variant is first needed, in the order of the training part, by all processes together;
    it takes its name once it is complete. One that was made with something else is refused. Files are mapped into
    memory and not read as a whole.

    Args:
        folder: where the files lie; made if it is not there. Several nodes must see the same one.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()
        self._variant: int | None = None
        self._logits = torch.empty(0)
        self._made_with: dict[str, Any] = {}
        self._variants = 0

    def prepare(self, module: LightningModule, teachers: Sequence[Teacher]) -> None:
        """Finds out what the files have to be made with, and looks at those that are there.

        Args:
            module: of a run that is about to begin, with a data module that says how many variants it shows.
            teachers: loaded.

        Raises:
            InputError: a data module without a fixed number of variants, or a file made with something else.
        """
        data: Any = getattr(module.trainer, "datamodule", None)
        if not hasattr(data, "variant_batches"):
            raise InputError(
                f"logits_cache={str(self.folder)!r} needs a data module of bnfree, which says how its images are "
                f"augmented; {type(data).__name__} does not: remove logits_cache."
            )
        if data.variants is None:
            raise InputError(
                f"logits_cache={str(self.folder)!r} needs images that come again, and every epoch augments them anew: "
                "set data.augmentation_cycle to a number of epochs, such as 8, or data.augment to false."
            )
        self._variant, self._variants = None, data.variants
        self._made_with = {
            "teachers": [_settings(teacher) for teacher in teachers],
            "precision": str(module.trainer.precision),
            **data.variant_settings(),
        }
        for variant in range(self._variants):
            if self._path(variant).is_file():
                self._check(variant)

    @property
    def complete(self) -> bool:
        """Whether no file is missing, so that the teachers are not needed."""
        return all(self._path(variant).is_file() for variant in range(self._variants))

    def select(self, module: LightningModule, teachers: Sequence[Teacher]) -> None:
        """Opens the file of the current epoch's variant, and makes it if it is not there.

        Args:
            module: the module that trains.
            teachers: loaded, and on the module's device, unless the cache is `complete`.

        Raises:
            InputError: the file cannot be written.
        """
        variant = module.current_epoch % self._variants
        if variant == self._variant:
            return
        # All processes must do the same, whenever the others look.
        if not module.trainer.strategy.broadcast(self._path(variant).is_file()):
            self._make(variant, module, teachers)
        self._check(variant)
        self._logits = load_file(self._path(variant))["logits"]
        self._variant = variant

    def rows(self, positions: NDArray[np.int64]) -> list[Tensor]:
        """Logits (N, K) of each teacher for the images at `positions` (N,) of the training part, on the CPU."""
        if len(positions) and int(positions.max()) >= len(self._logits):
            raise InputError(f"logits_cache: {self.folder} has logits for {len(self._logits)} images only; {ADVICE}.")
        return list(self._logits.index_select(0, torch.from_numpy(positions)).unbind(1))

    def release(self) -> None:
        """Lets go of the file."""
        self._variant, self._logits = None, torch.empty(0)

    def _path(self, variant: int) -> Path:
        return self.folder / f"variant-{variant:03d}.safetensors"

    def _check(self, variant: int) -> None:
        path = self._path(variant)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                form = file.get_slice("logits") if "logits" in file.keys() else None  # noqa: SIM118 - it has no other
                shape, kind = ((), "") if form is None else (tuple(form.get_shape()), form.get_dtype())
        except (OSError, SafetensorError) as error:
            raise InputError(f"logits_cache: {path} cannot be read ({error}); {ADVICE}.") from error
        if metadata.get("format") != FORMAT:
            raise InputError(f"logits_cache: {path} holds no logits of a teacher; give another folder.")
        try:
            earlier = json.loads(metadata["made_with"])
        except (KeyError, ValueError, RecursionError):
            earlier = None
        teachers = earlier.get("teachers") if isinstance(earlier, dict) else None
        # Of other teachers too, which is told below, as many as it says.
        sound = len(shape) == 3 and isinstance(teachers, list) and shape[1] == len(teachers) and kind in ("F32", "F64")
        if not isinstance(earlier, dict) or not sound:
            raise InputError(f"logits_cache: {path} is damaged; {ADVICE}.")
        for name, value in self._made_with.items():
            if earlier.get(name) != value:
                values = "" if "images and" in name or name == "teachers" else f" ({earlier.get(name)}, not {value})"
                raise InputError(f"logits_cache: {path} was made with other {name}{values}; {ADVICE}.")

    def _make(self, variant: int, module: LightningModule, teachers: Sequence[Teacher]) -> None:
        trainer, start = module.trainer, time.monotonic()
        # Another run may be at the same file.
        run = trainer.strategy.broadcast(f"{socket.gethostname()}-{os.getpid()}")
        name = f".{self._path(variant).stem}.{run}"
        parts = [self.folder / f"{name}.{rank}.unfinished" for rank in range(trainer.world_size)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(self._answers(variant, module, teachers), parts[trainer.global_rank])
            trainer.strategy.barrier("teacher logits")
            if trainer.is_global_zero:
                answers = [load_file(part) for part in parts]
                logits = torch.cat([answer["logits"] for answer in answers])
                logits = logits[torch.cat([answer["positions"] for answer in answers]).argsort()]
                whole = self.folder / f"{name}.unfinished"
                metadata = {"format": FORMAT, "made_with": json.dumps(self._made_with)}
                save_file({"logits": logits.contiguous()}, whole, metadata)
                # As readable as the folder; safetensors keeps its files from everybody else.
                whole.chmod(self.folder.stat().st_mode & 0o666)
                whole.replace(self._path(variant))
                for part in parts:
                    part.unlink(missing_ok=True)
        except BaseException as error:
            # The first process ends the others, which would leave their parts behind.
            own = parts if trainer.is_global_zero else [parts[trainer.global_rank]]
            for unfinished in (*own, self.folder / f"{name}.unfinished"):
                unfinished.unlink(missing_ok=True)
            if is_full_disk(error):
                raise full_disk(self._path(variant)) from error
            if isinstance(error, OSError | SafetensorError):
                raise InputError(f"logits_cache={str(self.folder)!r} cannot be written to ({error}).") from error
            raise
        trainer.strategy.barrier("teacher logits")
        rank_zero_info(
            f"Teacher logits of variant {variant + 1} of {self._variants} in {time.monotonic() - start:.1f} s: "
            f"{self._path(variant)}"
        )

    def _answers(self, variant: int, module: LightningModule, teachers: Sequence[Teacher]) -> dict[str, Tensor]:
        from tqdm import tqdm  # type: ignore[import-untyped]

        trainer: Any = module.trainer
        total = -(-self._made_with["images"] // trainer.world_size)
        logits, positions = [], []
        with (
            isolate_rng(include_cuda=False),
            torch.no_grad(),
            trainer.precision_plugin.forward_context(),
            # Shown on a terminal only.
            tqdm(
                total=total, desc="teacher logits", leave=False, disable=None if trainer.is_global_zero else True
            ) as bar,
        ):
            for batch in trainer.datamodule.variant_batches(variant):
                images, places = trainer.strategy.batch_to_device(batch)
                answers = torch.stack([teacher(images) for teacher in teachers], 1)
                logits.append(answers.to(torch.promote_types(answers.dtype, torch.float32)).cpu())
                positions.append(places.cpu())
                bar.update(len(places))
        return {"logits": torch.cat(logits), "positions": torch.cat(positions)}


def _settings(teacher: Teacher) -> dict[str, Any]:
    return {"network": teacher.name, "weights": _hash(teacher.loaded), "image_size": teacher.image_size}


def _hash(network: nn.Module) -> str:
    # Its layers and their settings, without the addresses of functions among them.
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(value_bytes(tensor))
    return digest.hexdigest()
