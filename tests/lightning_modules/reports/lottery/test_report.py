"""`bnfree lottery report`: tables and text of runs whose levels are counted again here."""

import csv
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from lottery_runs import network, write_level_folder, write_lottery

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lightning_modules.command.lottery.report import run
from bnfree.lightning_modules.experiments.lottery.level_results import read_level, write_level
from bnfree.lightning_modules.reports import lottery_report

FIGURES = ("accuracy.png", "layers.png", "overlaps.png")
SEEDS, DENSITIES, CONTROLS = (0, 1), (0.5, 0.1), ("random_layerwise", "reinit")


def write_report(directory, *tolerance, **options):
    return lottery_report.report_lottery(directory, *tolerance, **options).path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run of two seeds and levels with controls, and its report; not to be changed."""
    directory = write_lottery(tmp_path_factory.mktemp("runs") / "digits", DENSITIES, SEEDS, CONTROLS)
    assert write_report(directory) == directory / "report.md"
    return directory


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Spares the time of drawing, which other tests look at, in all but the shared run."""
    monkeypatch.setattr(lottery_report, "save_png", lambda figure: b"")


@pytest.fixture
def small(tmp_path):
    """A run of one seed and one level."""
    return write_lottery(tmp_path / "small", (0.3,))


def rows(directory, name):
    with (directory / name).open(newline="") as file:
        return list(csv.DictReader(file))


def folder(directory, row):
    place = directory / f"seed_{row['seed']}"
    place = place if row["kind"] in ("dense", "ticket") else place / "controls" / row["kind"]
    return place / f"level_{int(row['level']):02d}"


def markdown_tables(directory):
    """The tables of the report, each a list of rows by heading."""
    tables, previous = [], ""
    for line in (directory / "report.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and not previous.startswith("|"):
            heading = cells
            tables.append([])
        elif line.startswith("|") and not line.startswith("| ---"):
            tables[-1].append(dict(zip(heading, cells, strict=True)))
        previous = line
    return tables


def test_levels_are_those_of_the_folders(reported):
    found = rows(reported, "levels.csv")
    order = [(row["kind"], int(row["seed"]), int(row["level"])) for row in found]
    assert order == [
        ("dense", 0, 0), ("dense", 1, 0), ("ticket", 0, 1), ("ticket", 0, 2), ("ticket", 1, 1), ("ticket", 1, 2),
        *((kind, seed, level) for kind in CONTROLS for seed in SEEDS for level in (1, 2)),
    ]  # fmt: skip
    for row in found:
        mark = yaml.safe_load((folder(reported, row) / "finished.yaml").read_text())
        for name in ("density", "val_acc", "best_val_acc", "test_acc"):
            assert float(row[name]) == mark[name]
        assert int(row["steps"]) == mark["steps"]
        assert (row["mask_checksum"] or None) == mark["mask_checksum"]
        state = torch.load(folder(reported, row) / "checkpoints" / "last.ckpt")["state_dict"]
        masks = [value.numpy() for name, value in state.items() if name.endswith(".mask")]
        assert int(row["effective_zeros"]) == sum(np.count_nonzero(~mask) for mask in masks)
        if masks:
            assert float(row["density"]) == (int(row["weights"]) - int(row["effective_zeros"])) / int(row["weights"])
    assert "seconds" not in found[0]


def test_layers_counted_again(reported):
    positions, built = {}, network()
    for name, layer in built.named_modules():
        if isinstance(layer, BinaryConv2d):
            layer.register_forward_hook(lambda _, __, out, name=name: positions.update({name: out[0, 0].numel()}))
    built(torch.zeros(1, 1, 8, 8))
    found = rows(reported, "layers.csv")
    ticket = [row for row in found if (row["kind"], row["seed"], row["level"]) == ("ticket", "1", "2")]
    state = torch.load(reported / "seed_1" / "level_02" / "ticket.pt")["state_dict"]
    masks = {name.removesuffix(".mask"): m.numpy() for name, m in state.items() if name.endswith(".mask")}
    assert [row["layer"] for row in ticket] == [*masks, "all"]
    sums = np.zeros(4)
    for row, (name, mask) in zip(ticket, masks.items(), strict=False):
        d = np.float64(mask.sum()) / mask.size
        bits = mask.size * (-d * np.log2(d) - (1 - d) * np.log2(1 - d) + d)
        assert (int(row["weights"]), int(row["kept"])) == (mask.size, mask.sum())
        assert float(row["density"]) == d
        assert int(row["effective_zeros"]) == mask.size - mask.sum()
        assert int(row["empty_filters"]) == sum(not part.any() for part in mask)
        assert int(row["bops"]) == mask.size * positions[name] * 4  # DigitsDataModule doubles height and width.
        assert float(row["kept_bops_share"]) == int(row["kept_bops"]) / int(row["bops"]) == d
        assert float(row["entropy_bits"]) == pytest.approx(bits, abs=1e-3)
        assert int(row["dense_bits"]) == mask.size
        sums += (mask.sum(), int(row["kept_bops"]), int(row["bops"]), bits)
    everything = ticket[-1]
    assert int(everything["kept"]) == sums[0]
    assert float(everything["kept_bops_share"]) == pytest.approx(sums[1] / sums[2], rel=1e-12)
    assert float(everything["entropy_bits"]) == pytest.approx(sums[3], abs=1e-2)
    dense = [row for row in found if row["kind"] == "dense" and row["seed"] == "0"]
    assert {row["layer"]: (row["density"], row["entropy_bits"]) for row in dense}.keys() == {*masks, "all"}
    assert all(float(row["entropy_bits"]) == int(row["weights"]) for row in dense)


def test_zeros_are_counted_in_the_trained_weights_and_not_in_the_masks(small):
    level = small / "seed_0" / "level_01"
    state = torch.load(level / "checkpoints" / "last.ckpt")["state_dict"]
    torch.save({"state_dict": {k: v for k, v in state.items() if not k.endswith(".mask")}},
               level / "checkpoints" / "last.ckpt")  # fmt: skip
    text = write_report(small).read_text()
    (row,) = (row for row in rows(small, "levels.csv") if row["kind"] == "ticket")
    assert row["effective_zeros"] == "0"
    assert f"0 effective weights are 0, but {round(0.7 * int(row['weights']))} are pruned" in text


def test_equal_results_give_equal_tables_whatever_the_time(small, tmp_path):
    write_report(small)
    again = tmp_path / "elsewhere"
    shutil.copytree(small, again)
    for place in again.glob("seed_*/level_*"):
        write_level(replace(read_level(place), seconds=7.25))
    write_report(again)
    for name in ("levels.csv", "layers.csv"):
        assert (again / name).read_bytes() == (small / name).read_bytes()
    assert "14.5 s of training in 2 finished levels." in (again / "report.md").read_text()


def test_means_spread_and_verdicts(reported):
    accuracies = {}
    for row in rows(reported, "levels.csv"):
        accuracies.setdefault((row["level"], row["kind"]), []).append(float(row["test_acc"]))
    dense, names = accuracies["0", "dense"], {"random_layerwise": "random mask, layerwise", "reinit": "re-initialised"}
    table = {(row["level"], row["kind"]): row for row in markdown_tables(reported)[0]}
    assert len(table) == len(accuracies) == 7
    for (level, kind), values in accuracies.items():
        row = table[level, names.get(kind, kind)]
        assert row["n"] == "2"
        assert row["test acc (%)"] == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
        differences = np.subtract(values, dense)
        expected = f"{100 * differences.mean():+.2f} ± {100 * differences.std(ddof=1):.2f}"
        assert row["to dense (points)"] == (expected if kind != "dense" else "—")
        assert row["verdict"] == ("—" if kind == "dense" else "matching" if differences.mean() >= -0.01 else "below")
        lead = np.subtract(accuracies[level, "ticket"], values) if kind in CONTROLS else None
        assert row["ticket's lead (points)"].startswith("—" if lead is None else f"{100 * lead.mean():+.2f} ± ")
        assert row["time per level"] == "1 min 01 s"
    assert {row["verdict"] for row in table.values()} == {"—", "matching", "below"}


def test_stored_bits_and_the_honest_sentence(reported):
    sizes = {row["level"]: row for row in markdown_tables(reported)[1]}
    assert set(sizes) == {"0", "1", "2"}
    found = [row for row in rows(reported, "layers.csv") if row["layer"] == "all" and row["kind"] == "ticket"]
    for level, smaller in (("1", False), ("2", True)):
        own = [row for row in found if row["level"] == level]
        bits = statistics.mean(float(row["entropy_bits"]) / int(row["weights"]) for row in own)
        row = sizes[level]
        assert row["stored bits per weight (entropy-coded)"] == f"{bits:.3f}"
        assert row["smaller than dense"] == (f"{1 / bits:.2f} times" if smaller else "no")
        assert (bits < 1) == smaller
        assert row["bits per weight in memory"] == "2"
        assert row["true zeros"].endswith(f"({100 - 100 * DENSITIES[int(level) - 1]:.2f} %)")
    text = (reported / "report.md").read_text()
    assert "smaller than the dense one only below a density of 0.227" in text
    assert "make nothing faster" in text
    assert all(f"]({name})" in text and (reported / name).read_bytes()[:4] == b"\x89PNG" for name in FIGURES)


def test_the_verdict_at_the_tolerance_and_with_seeds_that_are_missing(tmp_path):
    directory = tmp_path / "run"
    pruned = network()
    for seed, dense, ticket in ((0, 0.9, 0.88), (1, 0.5, None)):
        write_level_folder(directory / f"seed_{seed}" / "level_00", "dense", 0, seed, pruned, dense)
        if ticket is not None:
            write_level_folder(directory / f"seed_{seed}" / "level_01", "ticket", 1, seed, masked(pruned), ticket)
    (directory / "seed_1" / "level_01").mkdir()
    text = write_report(directory, tolerance=0.02).read_text()
    assert "Sparsest matching ticket: level 1 at density 1, -2.00 points to dense" in text
    assert "- Not finished: seed_1/level_01." in text
    row = markdown_tables(directory)[0][1]
    assert (row["n"], row["to dense (points)"], row["verdict"]) == ("1", "-2.00", "matching")
    assert "No ticket matches the dense network" in write_report(directory, tolerance=0.0199).read_text()


def masked(network):
    for layer in network.modules():
        if isinstance(layer, BinaryConv2d):
            layer.set_mask(torch.ones(layer.weight.shape).bool())
    return network


def test_a_control_that_matches_is_named(tmp_path):
    directory = write_lottery(tmp_path / "run", (0.9,), (0,), ("random_global",), loss=0.0)
    assert "but its controls match as well: random mask, global" in write_report(directory, 0.05).read_text()


def test_a_run_that_has_only_begun(tmp_path):
    directory = write_lottery(tmp_path / "run", ())
    (directory / "accuracy.png").write_bytes(b"of an earlier report")
    text = write_report(directory).read_text()
    assert "1 min 00 s of training in 1 finished level." in text
    assert not any((directory / name).exists() for name in FIGURES)
    assert len(rows(directory, "levels.csv")) == 1


def test_what_is_missing_is_left_out_and_said(small):
    for config in small.glob("seed_*/*/config.yaml"):
        config.write_text(config.read_text().replace("ReActNet18", "Gone"))
    (small / "seed_0" / "level_00" / "config.yaml").unlink()
    text = write_report(small).read_text()
    assert "the network cannot be built" in text
    assert "a level has no config.yaml" in text
    ticket = next(row for row in rows(small, "layers.csv") if row["kind"] == "ticket")
    assert (ticket["effective_zeros"], ticket["bops"], ticket["kept_bops"]) == ("", "", "")
    assert float(ticket["density"]) > 0
    (small / "seed_0" / "level_01" / "ticket.pt").unlink()
    assert "seed_0/level_01 (ticket) has no ticket file" in write_report(small).read_text()


def test_validation_counts_where_a_level_has_no_test(tmp_path):
    directory = write_lottery(tmp_path / "run", (0.5,), test=False)
    text = write_report(directory).read_text()
    assert "Verdict by the validation accuracy after the last epoch" in text
    ticket, dense = (float(rows(directory, "levels.csv")[i]["val_acc"]) for i in (1, 0))
    assert markdown_tables(directory)[0][1]["to dense (points)"] == f"{100 * (ticket - dense):+.2f}"


def test_the_command_prints_a_short_table(small, capsys):
    run(["report", str(small), "--tolerance", "0.5"])
    out = capsys.readouterr().out.splitlines()
    values = [100 * float(row["test_acc"]) for row in rows(small, "levels.csv")]
    assert out[0] == f"Dense network, test accuracy in %: {values[0]:.2f}"
    assert out[1].split() == ["level", "density", "ticket", "to", "dense", "verdict"]
    assert out[2].split() == ["1", "0.3", f"{values[1]:.2f}", f"{values[1] - values[0]:+.2f}", "matching"]
    assert out[-1] == f"Report: {small / 'report.md'}"


def test_through_the_command(small, bnfree, complaint):
    code, out, _ = bnfree("lottery", "report", small)
    assert code == 0
    assert out.endswith(f"Report: {small / 'report.md'}\n")
    assert "is no lottery run" in complaint("lottery", "report", small.parent)
    code, out, _ = bnfree("lottery", "report", "--help")
    assert code == 0
    assert all(name in out for name in ("levels.csv", "layers.csv", "report.md", *FIGURES, "--tolerance"))


def test_refusals(small, tmp_path):
    def complaint(*arguments):
        with pytest.raises(InputError) as error:
            run(["report", *map(str, arguments)])
        return str(error.value)

    assert complaint() == "DIR is required and not given; name the directory of a bnfree lottery run."
    assert complaint(tmp_path / "nowhere").endswith("does not exist; give the directory of a bnfree lottery run.")
    assert "is a file" in complaint(small / "lottery.yaml")
    assert f"it holds some, such as {str(small)!r}" in complaint(tmp_path)
    assert f"it lies in one, {str(small.resolve())!r}" in complaint(small / "seed_0" / "level_00")
    assert "did you mean '--tolerance'" in complaint(small, "--tolerances=1")
    for value in ("-0.1", "nan", "2"):
        assert "must be a share from 0 to 1" in complaint(small, f"--tolerance={value}")
    (tmp_path / "empty").mkdir()
    assert "is no lottery run" in complaint(tmp_path / "empty")
    (tmp_path / "empty" / "lottery.yaml").write_text("lottery: {}\n")
    assert "has no finished level yet" in complaint(tmp_path / "empty")
    ticket = small / "seed_0" / "level_01" / "ticket.pt"
    ticket.write_bytes(ticket.read_bytes()[:1000])
    assert "cannot be read" in complaint(small)
    assert not (small / "report.md").exists()
    (small / "lottery.yaml").write_text("words\n")
    assert "holds no settings" in complaint(small)
