"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

# Vector instructions that the packed kernels gain from, the best first; the first is a popcount of eight words at once.
FLAGS = ("avx512_vpopcntdq", "avx512bw", "avx2", "asimd")


def describe() -> list[str]:
    """Lines about processor, threads, load and versions."""
    name, flags = _processor()
    best = next((flag for flag in FLAGS if flag in flags), "unknown")
    popcount = "yes" if FLAGS[0] in flags else "no"
    lines = [f"Processor   {name}; vector instructions {best}, popcount of vectors (vpopcntdq): {popcount}"]
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    lines.append(
        f"Machine     {os.cpu_count()} processors, {torch.get_num_threads()} of them used, load average {load} before "
        "the run"
    )
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1):
        lines.append("            (busy: others take part of the time; measure again when it is idle)")
    return [*lines, f"Software    torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"]


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = (values.get("flags") or values.get("Features") or "").split()
    return values.get("model name") or platform.machine(), set(flags)
