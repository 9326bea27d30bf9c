"""The name of a run, which says what it changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bnfree.lightning_modules.training.config.sources import config_files

# Where a run lies, on what it runs and what it shows: no other run.
UNNAMED = re.compile(
    r"config|c|run_dir|name|ckpt_path|weights_only|allow_\w+|test_after_fit|print_config|help|"
    r"(best|last)_checkpoint\..*|lr_monitor.*|"
    r"data\.(data_dir|num_workers|download|cache_dir)|"
    r"trainer\.(accelerator|strategy|devices|num_nodes|logger.*|enable_\w+|log_every_n_steps|default_root_dir|profiler|"
    r"plugins.*)"
)
MOST_CHANGES = 4
LONGEST = 24


def run_label(arguments: Sequence[str]) -> str:
    """What a command changes of its first config: the overlays and the options, shortened; empty if nothing.

    Args:
        arguments: subcommand and options.

    Example:
        >>> run_label(["fit", "--config=quickstart.yaml", "--config=overlays/compile.yaml", "--model.backbone.width=8"])
        'compile-width=8'
    """
    overlays = [config.stem for config in config_files(arguments)[1:]]
    parts = [part for part in overlays if not part.startswith("config")]
    words = list(arguments[1:])
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("--") or UNNAMED.fullmatch(
            name.removeprefix("--").rstrip("+").replace(".init_args", "")
        ):
            continue
        if not equals:
            value = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else ""
        parts.append(_part(name.removeprefix("--"), value))
    shown = parts[:MOST_CHANGES] + ([f"and_{len(parts) - MOST_CHANGES}_more"] if len(parts) > MOST_CHANGES else [])
    return "-".join(safe(part) for part in shown)


def _part(name: str, value: str) -> str:
    last = name.rstrip("+").rpartition(".")[2]
    if re.fullmatch(r"[A-Za-z_][\w.]*\.[A-Z]\w*|[A-Z]\w*", value):
        # A class says what it is by itself.
        return value.rpartition(".")[2]
    if "/" in value:
        value = Path(value).stem
    return f"{last}={value}"


def safe(text: str, longest: int = LONGEST) -> str:
    """A text as it may stand in the name of a folder, cut off after `longest` characters."""
    return re.sub(r"[^\w.,=+-]+", "_", text)[:longest].strip("_.-")
