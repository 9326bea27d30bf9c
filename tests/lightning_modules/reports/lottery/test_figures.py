"""The figures of `bnfree lottery report`: what is drawn, and that nothing overlaps or leaves the page."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lottery_runs import network, write_level_folder
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from bnfree.lightning_modules.experiments.lottery.level_results import LevelResult
from bnfree.lightning_modules.reports.lotteries import group_levels
from bnfree.lightning_modules.reports.lottery_figures import draw_curve, draw_layers
from bnfree.lightning_modules.reports.lottery_layers import LayerCounts, LevelCounts
from bnfree.lightning_modules.reports.lottery_overlaps import MOST_MASKS, Overlaps, compare_masks, draw_overlaps, evenly
from bnfree.tickets import apply, current_masks, mask_statistics, prune, random_masks

CONTROLS = ("random_layerwise", "random_global", "reinit", "shuffle_signs")
SHORT, LONG = (0.5, 0.2), tuple(0.8**level for level in range(1, 16))


def result(kind, level, seed, density, accuracy, checksum=None):
    return LevelResult(
        kind=kind, level=level, seed=seed, density=density, mask_checksum=checksum, epochs=1, steps=1, seconds=1.0,
        val_acc=accuracy, best_val_acc=accuracy, test_acc=accuracy, directory=Path(),
    )  # fmt: skip


def groups_of(densities, seeds, controls=CONTROLS):
    """Accuracies that end in nearly one place, the worst case for labels."""
    results = [result("dense", 0, seed, 1.0, 0.9 + 0.001 * seed) for seed in range(seeds)]
    for level, density in enumerate(densities, start=1):
        for place, kind in enumerate(("ticket", *controls)):
            accuracy = 0.9 - 0.005 * level - 0.0001 * place
            results += [result(kind, level, seed, density, accuracy + 0.001 * seed) for seed in range(seeds)]
    return group_levels(results)


def check_page(figure):
    """Nothing beyond the page, and no label or tick on another."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    for axes in figure.axes:
        notes = [Text.get_window_extent(text, renderer) for text in axes.texts if isinstance(text, Annotation)]
        ticks = [
            [tick.get_window_extent(renderer) for tick in labels if tick.get_text()]
            for labels in (axes.get_xticklabels(), axes.get_yticklabels())
        ]
        for boxes in (notes, *ticks):
            for one, other in combinations(boxes, 2):
                assert not one.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9))
        for box in (*notes, axes.get_tightbbox(renderer)):
            assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1
            assert page.y0 - 1 <= box.y0 < box.y1 <= page.y1 + 1
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    assert all(page.x0 <= box.x0 < box.x1 <= page.x1 for box in boxes[len(figure.axes) :])
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("densities", [SHORT, LONG], ids=["2 levels", "15 levels"])
def test_the_curve(densities, seeds):
    figure = draw_curve(groups_of(densities, seeds), "test", 0.01, "Title")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 1 > densities[-1] > right
    lines = [line for line in axes.lines if len(line.get_xdata()) >= len(densities) and line.get_marker() in "osD^v"]
    drawn = [list(line.get_xdata()) for line in lines]
    assert drawn == [pytest.approx(expected) for expected in ([1.0, *densities], *[densities] * 4)]
    accuracies = 90 - 0.5 * np.arange(len(densities) + 1) + 0.1 * np.mean(range(seeds))
    assert list(lines[0].get_ydata()) == pytest.approx(accuracies)
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == [f"dense {accuracies[0]:.1f} %", "1 point below dense"]
    assert len(set(texts)) == 7
    spread = 0.1 * np.std(range(seeds), ddof=1) if seeds > 1 else 0
    bands = [patch for patch in axes.patches if patch.get_height() > 0]
    assert [band.get_height() for band in bands] == ([pytest.approx(2 * spread)] if spread else [])
    assert (f"mean over {seeds} seeds" in axes.get_xlabel()) == (seeds > 1)
    check_page(figure)


def test_a_curve_without_dense_and_with_one_point():
    groups = [group for group in groups_of((0.1,), 1, ()) if group.kind != "dense"]
    figure = draw_curve(groups, "val", 0.01, "Title")
    (line,) = (line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert list(line.get_xdata()) == [0.1]
    assert figure.axes[0].get_ylabel() == "validation accuracy (%)"
    check_page(figure)


@pytest.mark.parametrize("layers", [1, 17, 120])
def test_the_bars_of_layers(layers):
    generator = torch.Generator().manual_seed(0)

    def counts(share):
        masks = {f"body.{i // 4}.{i % 4}.convolution": torch.rand(8, 8, 3, 3, generator=generator) < share
                 for i in range(layers)}  # fmt: skip
        rows = tuple(LayerCounts(row, None, None) for row in mask_statistics(masks).layers)
        return LevelCounts(result("ticket", 1, 0, share, 0.5), rows)

    levels = [(f"level {n}", [counts(share) for _ in range(3)]) for n, share in enumerate((0.5, 0.02), start=1)]
    figure = draw_layers(levels, "Title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["level 1", "level 2"]
    for axes, (_, seeds) in zip(figure.axes, levels, strict=True):
        shares = np.array([[layer.mask.kept / layer.mask.weights for layer in seed.layers] for seed in seeds])
        bars = [patch.get_height() for patch in axes.patches]
        assert bars == pytest.approx(list(100 * shares.mean(0)))
        assert axes.get_ylim()[1] > (100 * (shares.mean(0) + shares.std(0, ddof=1))).max()
    check_page(figure)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Finished levels of two seeds: tickets of two densities, and two controls of each, one with the ticket's mask."""
    directory, results = tmp_path_factory.mktemp("masked"), []
    for seed in (0, 1):
        trained = network(seed)
        for level, density in enumerate(SHORT, start=1):
            apply(trained, prune(trained, density))
            results.append(write_level_folder(directory / f"{seed}{level}", "ticket", level, seed, trained, 0.5))
            for kind in ("random_layerwise", "reinit"):
                other = network(seed + 9)
                masks = current_masks(trained)
                apply(other, random_masks(masks, seed + level) if kind == "random_layerwise" else masks)
                place = directory / f"{seed}{level}{kind}"
                results.append(write_level_folder(place, kind, level, seed, other, 0.5))
    return results


def test_overlap_counted_again(masked):
    found = compare_masks(masked)
    chosen = [(level.level, level.kind, level.seed) for level in found.levels]
    assert chosen == [
        (1, "ticket", 0), (1, "ticket", 1), (1, "random_layerwise", 0),
        (2, "ticket", 0), (2, "ticket", 1), (2, "random_layerwise", 0),
    ]  # fmt: skip
    states = [torch.load(level.directory / "ticket.pt")["state_dict"] for level in found.levels]
    names = [name for name in states[0] if name.endswith(".mask")]
    for i, j in combinations(range(6), 2):
        pairs = [(states[i][name].numpy(), states[j][name].numpy()) for name in names]
        both, either = sum((a & b).sum() for a, b in pairs), sum((a | b).sum() for a, b in pairs)
        chance = sum(np.float64(a.sum()) * b.sum() / a.size for a, b in pairs)
        first, second = sum(a.sum() for a, _ in pairs), sum(b.sum() for _, b in pairs)
        assert found.jaccard[i][j] == found.jaccard[j][i] == both / either
        assert found.chance[i][j] == pytest.approx(chance / (first + second - chance))
        nested = chosen[i][1:] == chosen[j][1:] and chosen[i][1] == "ticket"
        assert found.position(i, j) == pytest.approx(1.0 if nested else 0.0, abs=0.05)


def test_the_matrix(masked):
    found = compare_masks(masked)
    figure = draw_overlaps(found, "Title")
    axes = figure.axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 30
    for (j, i), text in texts.items():
        value = found.jaccard[i][j] if j < i else found.chance[i][j]
        assert float(text) == pytest.approx(value, abs=0.0051)
    assert [tick.get_text() for tick in axes.get_yticklabels()][2] == "50 %  random mask, layerwise, seed 0   3"
    check_page(figure)


@pytest.mark.parametrize("number", [2, MOST_MASKS])
def test_matrices_of_all_sizes_fit_the_page(number):
    levels = tuple(result("random_layerwise", level, 0, 0.8**level, 0.5) for level in range(number))
    flat = [[0.5] * number for _ in range(number)]
    check_page(draw_overlaps(Overlaps(levels, flat, flat, flat), "A rather long title of a run: overlap of the masks"))


def test_one_mask_is_compared_with_none(masked):
    assert compare_masks(masked[:1]) is None
    assert compare_masks([]) is None


def test_levels_are_chosen_evenly():
    for length in range(1, 30):
        for count in range(1, 10):
            chosen = evenly(range(length), count)
            assert len(chosen) == min(length, count)
            assert chosen[-1] == length - 1
            assert chosen[0] == 0 or count == 1
            gaps = [b - a for a, b in pairwise(chosen)]
            assert not gaps or max(gaps) - min(gaps) <= 1
