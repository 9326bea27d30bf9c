"""The results as CSV: `levels.csv` and `layers.csv`, equal byte for byte for equal results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult
from bnfree.lightning_modules.reports.lottery.layers import LevelCounts

LEVEL_COLUMNS = (
    "kind", "seed", "level", "density", "weights", "effective_zeros", "val_acc", "best_val_acc", "test_acc", "epochs",
    "steps", "mask_checksum", "weights_checksum",
)  # fmt: skip
LAYER_COLUMNS = (
    "kind", "seed", "level", "layer", "weights", "kept", "density", "effective_zeros", "filters", "empty_filters",
    "bops", "kept_bops", "kept_bops_share", "entropy_bits", "dense_bits",
)  # fmt: skip
ALL = "all"


def levels_csv(levels: Sequence[LevelResult], counts: Sequence[LevelCounts]) -> str:
    """One row for each finished level of each seed and kind; no times, which no repetition repeats.

    Args:
        levels: all finished levels.
        counts: what `count_levels` has found; `weights` (of the prunable layers) and `effective_zeros` come from here.
    """
    found = {id(count.level): count for count in counts}
    rows = []
    for level in levels:
        count = found.get(id(level))
        weights, zeros = (None, None) if count is None else (count.total("weights"), count.total("effective_zeros"))
        own = {name: getattr(level, name) for name in LEVEL_COLUMNS if hasattr(level, name)}
        rows.append({**own, "weights": weights, "effective_zeros": zeros})
    return _csv(LEVEL_COLUMNS, rows)


def layers_csv(counts: Sequence[LevelCounts]) -> str:
    """One row for each prunable layer of each level, and one called `all` for their sum.

    Args:
        counts: what `count_levels` has found.
    """
    rows: list[dict[str, object]] = []
    for count in counts:
        level = {name: getattr(count.level, name) for name in ("kind", "seed", "level")}
        for layer in count.layers:
            sums = {name: getattr(layer, name) for name in ("effective_zeros", "bops", "kept_bops", "entropy_bits")}
            masks = {name: getattr(layer.mask, name) for name in ("weights", "kept", "filters", "empty_filters")}
            rows.append({**level, "layer": layer.mask.name, **_shares({**masks, **sums})})
        names = ("weights", "kept", "effective_zeros", "filters", "empty_filters", "bops", "kept_bops", "entropy_bits")
        rows.append({**level, "layer": ALL, **_shares({name: count.total(name) for name in names})})
    return _csv(LAYER_COLUMNS, rows)


def _shares(values: dict[str, float | int | None]) -> dict[str, object]:
    weights, kept, bops, kept_bops = (values[name] for name in ("weights", "kept", "bops", "kept_bops"))
    bits = values["entropy_bits"]
    return {
        **values,
        "density": kept / weights if weights and kept is not None else None,
        "kept_bops_share": kept_bops / bops if bops and kept_bops is not None else None,
        # More digits would depend on the mathematical library.
        "entropy_bits": None if bits is None else round(bits, 3),
        "dense_bits": weights,
    }


def _csv(columns: Sequence[str], rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
