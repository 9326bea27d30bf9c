"""The lines of a GPU run: printed and written at once, so that stopping at any moment loses nothing finished."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FILE = "gpu_pack.jsonl"


class Report:
    """A file of JSON lines, and the clock of the run."""

    def __init__(self, folder: Path, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.start = time.monotonic()
        self.seconds = 60 * minutes

    def line(self, part: str, name: str, **values: Any) -> None:
        """Prints and appends one line; `at` is the second of the run."""
        rounded = {key: _rounded(value) for key, value in values.items()}
        text = json.dumps({"part": part, "name": name, **rounded, "at": round(time.monotonic() - self.start, 1)})
        print(text, flush=True)
        with (self.folder / FILE).open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.start + self.seconds - time.monotonic()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Lets `left` count to a nearer end."""
        whole = self.seconds
        self.seconds = min(whole, time.monotonic() - self.start + seconds)
        try:
            yield
        finally:
            self.seconds = whole

    @contextmanager
    def item(self, part: str, name: str, needs: float = 0) -> Iterator[bool]:
        """Gives whether there is time for it; an error of its own becomes its line, and the run goes on.

        Args:
            part: of the run.
            name: of the item.
            needs: seconds that it is expected to take.
        """
        if self.left < needs:
            self.line(part, name, left_out=f"{needs:.0f} s needed, {self.left:.0f} s left")
            yield False
            return
        try:
            yield True
        except Exception as error:
            self.line(part, name, error=f"{type(error).__name__}: {str(error)[:500]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        # JSON knows neither NaN nor infinity.
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value
