"""The figure of `bnfree report`: which panels it has, what is drawn in them, and that nothing overlaps."""

import random
import struct
import time
from itertools import combinations, pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.text import Annotation, Text
from small_runs import STEPS, column, write_metrics, write_recipe, write_run

from bnfree.lightning_modules.reports.confusion import Confusion, draw_confusion
from bnfree.lightning_modules.reports.figures import save_png, spread
from bnfree.lightning_modules.reports.run_figure import draw_runs
from bnfree.lightning_modules.reports.run_groups import compare_runs
from bnfree.lightning_modules.reports.runs import curves_of, read_run

APART = ["Validation accuracy", "Training accuracy", "Validation loss", "Training loss"]
RATE, CLIPPING, FLIPS = "Learning rate", "Gradient clipping, mean over the epoch", "Sign flips in the epoch"


def figure_of(*runs):
    return draw_runs(compare_runs([read_run(run) for run in runs]).groups, "Title")


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def labels(axes):
    return [t for t in axes.texts if isinstance(t, Annotation) and t.arrow_patch is not None]


def lines(axes):
    """Points of the curves, without the lines that mark a stage."""
    return [list(map(tuple, line.get_xydata())) for line in axes.lines if len(line.get_xdata()) > 2]


def test_png_of_two_settings_with_seeds(tmp_path):
    runs = [
        write_run(
            tmp_path / f"{norm}{seed}", seed, base=base, model__backbone__norm=norm, flips=True, gains=base == 0.5
        )
        for norm, base in (("bn_free", 0.5), ("none", 0.4))
        for seed in (0, 1)
    ]
    figure = figure_of(*runs)
    found = panels(figure)
    gains = "Mean |gain| of each layer, after epoch 1 (dashed) and 4 (solid)"
    assert list(found) == [*APART, f"{RATE} (the same in all)", f"{CLIPPING} (the same in all)",
                           f"{FLIPS} (the same in all)", gains]  # fmt: skip
    png = save_png(figure)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert 1500 < width < 2000
    assert 2000 < height < 3000
    assert 50_000 < len(png) < 1_000_000
    first, second = lines(found["Validation accuracy"])
    for drawn, pair in ((first, runs[:2]), (second, runs[2:])):
        means = [sum(values) / 2 for values in zip(*(column(run, "val/acc") for run in pair), strict=True)]
        assert drawn == [(epoch, pytest.approx(mean)) for epoch, mean in enumerate(means, start=1)]
    (band,) = found["Validation accuracy"].collections[:1]
    values = [column(run, "val/acc") for run in runs[:2]]
    corners = {tuple(map(float, point)) for point in band.get_paths()[0].vertices}
    for epoch, pair in enumerate(zip(*values, strict=True), start=1):
        assert {(epoch, min(pair)), (epoch, max(pair))} <= corners
    assert found["Validation accuracy"].get_ylim() == found["Training accuracy"].get_ylim()
    assert found["Validation accuracy"].get_ylabel() == "accuracy (%)"
    before, after = lines(found[gains])
    assert before == [(0, 1), (1, 2), (2, 3)]
    assert after == [(0, 4), (1, 5), (2, 6)]
    assert [tick.get_text() for tick in found[gains].get_xticklabels()] == ["stem", "0.0", "1.0 projection"]
    assert "line: mean over seeds" in figure.get_supxlabel()


def test_a_single_run_has_training_and_validation_in_one_panel_and_no_empty_ones(tmp_path):
    run = write_run(tmp_path / "run")
    figure = figure_of(run)
    assert list(panels(figure)) == ["Accuracy", "Loss", RATE, CLIPPING]
    axes = panels(figure)["Accuracy"]
    last = [f"{name}\n{100 * column(run, metric)[-1]:.1f} %"
            for name, metric in (("validation", "val/acc"), ("training", "train/acc"))]  # fmt: skip
    assert [label.get_text() for label in labels(axes)] == last
    assert figure.get_supxlabel() == ""
    rows = [{"epoch": e, "step": e, "val/acc": 0.1 * e} for e in range(3)]
    write_metrics(run, rows)
    assert list(panels(figure_of(run))) == ["Accuracy"]


def test_stages_follow_each_other_on_one_axis(tmp_path):
    recipe = write_recipe(tmp_path / "recipe", {"step1": {"epochs": 3}, "step2": {"epochs": 4, "noise": 5}})
    axes = panels(figure_of(recipe))["Accuracy"]
    validation = lines(axes)[:2]
    assert validation[0] == list(zip((1, 2, 3), column(recipe / "step1", "val/acc"), strict=True))
    assert validation[1] == list(zip((4, 5, 6, 7), column(recipe / "step2", "val/acc"), strict=True))
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2] == [[3, 3]]
    names = {text.get_text(): text.xy[0] for text in axes.texts if text not in labels(axes)}
    assert names == {"step1": 1.5, "step2": 5}
    assert axes.get_xlim() == (0, 7)


def test_equal_lines_stay_visible(tmp_path):
    runs = [write_run(tmp_path / f"{alpha}", model__backbone__alpha=alpha) for alpha in (0.2, 0.5)]
    other = write_run(tmp_path / "other", noise=4, model__backbone__alpha=1.0)
    axes = panels(figure_of(*runs, other))["Validation accuracy"]
    widths = [line.get_linewidth() for line in axes.lines]
    assert widths[0] > widths[1] == widths[2]
    assert len({line.get_color() for line in axes.lines}) == 3


@pytest.mark.parametrize("count", [2, 5, 8])
def test_nothing_overlaps(tmp_path, count):
    # The worst case: all lines end at nearly the same place.
    runs = []
    for index in range(count):
        runs.append(write_run(tmp_path / f"{index}", noise=1, model__backbone__alpha=index / 10, flips=True))
        values = [{"epoch": e, "step": e, "val/acc": 0.5 + 0.001 * index, "train/acc": 0.3 + 0.1 * e} for e in range(4)]
        write_metrics(runs[-1], values)
    figure = figure_of(*runs)
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    for axes in figure.axes:
        # Without the lines that lead to them.
        texts = [Text.get_window_extent(label, renderer) for label in labels(axes)]
        for one, other in combinations(texts, 2):
            assert not one.shrunk(1, 0.9).overlaps(other.shrunk(1, 0.9))
        for box in (*texts, axes.get_tightbbox(renderer)):
            assert page.x0 <= box.x0 < box.x1 <= page.x1
            assert page.y0 <= box.y0 < box.y1 <= page.y1
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    # Many names do not fit beside the lines.
    assert len(figure.legends) == (count > 5)


def test_one_run_has_no_legend_whatever_its_name(tmp_path):
    figure = figure_of(write_run(tmp_path / "a name of more than twenty letters"))
    assert not figure.legends
    assert figure.get_suptitle() == "Title"


def test_each_label_has_the_colour_of_its_line(tmp_path):
    runs = [write_run(tmp_path / str(alpha), noise=alpha, model__backbone__alpha=alpha) for alpha in (1, 2, 3)]
    axes = panels(figure_of(*runs))["Validation accuracy"]
    ends = {100 * column(run, "val/acc")[-1]: f"alpha={alpha}" for alpha, run in zip((1, 2, 3), runs, strict=True)}
    for line, label in zip(axes.lines, labels(axes), strict=True):
        end = 100 * line.get_ydata()[-1]
        assert label.get_text() == f"{ends[end]}\n{end:.1f} %"
        assert same_color(label.get_color(), line.get_color())


def test_labels_are_moved_no_further_than_needed():
    generator = random.Random(0)
    for count in (1, 2, 3, 6):
        wanted = [generator.random() for _ in range(count)]
        sizes = [generator.uniform(0.02, 0.15) for _ in range(count)]
        places = spread(wanted, sizes)

        def fits(candidate, sizes=sizes, wanted=wanted):
            order = sorted(range(len(wanted)), key=lambda i: wanted[i])
            edges = [(candidate[i] - sizes[i] / 2, candidate[i] + sizes[i] / 2) for i in order]
            inside = edges[0][0] >= -1e-9 and edges[-1][1] <= 1 + 1e-9
            return inside and all(a[1] <= b[0] + 1e-9 for a, b in pairwise(edges))

        def distance(candidate, wanted=wanted):
            return sum((place - want) ** 2 for place, want in zip(candidate, wanted, strict=True))

        assert fits(places)
        for _ in range(2000):
            other = [place + generator.gauss(0, 0.02) for place in places]
            assert not fits(other) or distance(other) >= distance(places) - 1e-9
    assert spread([0.2, 0.8], [0.1, 0.1]) == pytest.approx([0.2, 0.8])
    # Without room, the middle of all stays the middle.
    assert sum(spread([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])) == pytest.approx(1.5)


def test_curves_stand_at_the_number_of_trained_epochs():
    # Two epochs of 4 steps, a validation in the middle of each, and an epoch that has not been finished.
    table = [
        {"step": 1, "lr-SGD/a": 0.1, "lr-SGD/b": 0.3},
        {"step": 0, "epoch": 0, "agc/clipped_fraction": 0.2},
        {"step": 3, "epoch": 0, "agc/clipped_fraction": 0.4},
        {"step": 1, "epoch": 0, "val/acc": 0.1},
        {"step": 3, "epoch": 0, "val/acc": 0.2},
        {"step": 3, "epoch": 0, "train/acc": 0.15},
        {"step": 5, "epoch": 1, "val/acc": 0.3},
        {"step": 5, "epoch": 1, "agc/clipped_fraction": 0.1},
        {"step": 7, "epoch": 1, "val/acc": 0.4},
        {"step": 7, "epoch": 1, "train/acc": 0.25},
        {"step": 9, "epoch": 2, "agc/clipped_fraction": 0.9},
        {"step": 8, "epoch": 2, "test/acc": 0.4},
    ]
    assert curves_of(table) == {
        "learning rate": {0.5: 0.3},
        "agc/clipped_fraction": {1.0: pytest.approx(0.3), 2.0: 0.1},
        "val/acc": {0.5: 0.1, 1.0: 0.2, 1.5: 0.3, 2.0: 0.4},
        "train/acc": {1.0: 0.15, 2.0: 0.25},
    }


def test_the_clipped_fraction_is_a_mean_over_the_epoch(tmp_path):
    run = write_run(tmp_path / "run")
    fractions = column(run, "agc/clipped_fraction")
    assert STEPS == 10
    assert len(fractions) == 8
    ((*points,),) = lines(panels(figure_of(run))[CLIPPING])
    expected = [(epoch + 1, pytest.approx(sum(fractions[2 * epoch : 2 * epoch + 2]) / 2)) for epoch in range(4)]
    assert points == expected


def test_a_real_run(tmp_path, monkeypatch):
    from bnfree.lightning_modules.cli import main

    monkeypatch.chdir(tmp_path)
    options = [
        "--model=bnfree.lightning_modules.ImageClassifier", "--model.backbone=bnfree.backbones.ReActNet18",
        "--model.backbone.width=4", "--model.backbone.in_channels=1", "--model.calibration_images=16",
        "--data=bnfree.datamodules.DigitsDataModule", "--data.batch_size=16", "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2",
        "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--test_after_fit=true",
        "--trainer.callbacks+=bnfree.callbacks.AdaptiveGradientClipping",
        "--trainer.callbacks+=bnfree.callbacks.WeightDynamics",
    ]  # fmt: skip
    start = time.monotonic()
    assert main(["fit", *options, "--run_dir=run"]) == 0
    took = time.monotonic() - start
    assert main(["report", "run"]) == 0
    group = compare_runs([read_run("run")]).groups[0]
    title = "Mean |gain| of each layer, after epoch 1 (dashed) and 2 (solid)"
    assert list(panels(draw_runs([group], ""))) == ["Accuracy", "Loss", RATE, CLIPPING, FLIPS, title]
    stage = group.runs[0].stages[0]
    assert list(stage.curves["val/acc"]) == list(stage.curves["signs/flipped"]) == [1, 2]
    assert list(stage.curves["learning rate"]) == pytest.approx([step / 3 for step in range(1, 7)], abs=1e-6)
    assert stage.test["test/acc"] == column("run", "test/acc")[-1]
    assert 0 < stage.seconds < took
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert f"| {100 * column('run', 'test/acc')[-1]:.2f} |" in text


# No formula, and one that is.
@pytest.mark.parametrize("name", [r"$\price$", "$a_1$"])
def test_names_with_dollars_are_drawn_as_they_are(name):
    figure = draw_confusion(Confusion([name, "other"], [[1, 2], [3, 4]]))
    figure.suptitle(name)
    save_png(figure)
    drawn = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() == name]
    # The title, and the class on both axes.
    assert len(drawn) == 3
    assert not any(text.get_parse_math() for text in drawn)
