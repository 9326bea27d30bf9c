"""`bnfree bench`: statistics, tables and what is left out."""

import time

import pytest
import torch
from packable_networks import TwoUnits, images, random_network, scatter

from bnfree.errors import InputError
from bnfree.lightning_modules import BenchSettings, bench
from bnfree.lightning_modules.command.bench import times_table
from bnfree.lightning_modules.deployment import contestants as forms
from bnfree.lightning_modules.deployment.contestants import Int8Network, contestants
from bnfree.lightning_modules.deployment.timing import LEAST_ROUNDS, Times, interleaved, profile, summarize_times
from bnfree.packing import NetworkInfo, PackedNetwork, engines, pack


def test_median_and_percentile():
    assert summarize_times([3.0, 1.0, 2.0]) == Times(2.0, 3.0, 3)
    assert summarize_times([4.0, 1.0, 2.0, 3.0]).median == 2.5
    assert summarize_times([float(i) for i in range(1, 101)][::-1]).p95 == 95.0


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: (calls.append(name), time.sleep(2e-3 if name == "slow" else 0))
                 for name in ("slow", "fast")}  # fmt: skip
    times = interleaved(functions, 1e-9)
    # Each once in front of its time, which the other must not spoil.
    assert calls[:2] == ["slow", "fast"]
    assert calls[2:] == ["slow", "slow", "fast", "fast"] * (len(calls[2:]) // 4)
    assert times["slow"].calls == times["fast"].calls == LEAST_ROUNDS
    assert times["slow"].median >= max(2e-3, times["fast"].median)


def test_the_table_has_ratios_to_eager_and_the_fastest_first():
    times = {"eager": Times(0.004, 0.005, 9), "numba": Times(0.0005, 0.001, 9)}
    lines = times_table(times, 2).splitlines()
    assert lines[2].startswith("packed, numba")
    assert lines[2].split()[-5:] == ["0.500", "1.000", "4000.0", "8.00", "9"]
    assert lines[3].split()[-5:] == ["4.000", "5.000", "500.0", "1.00", "9"]


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 7, 11)])
def test_int8_convolutions_give_the_same_sums(shape):
    packed = pack(random_network(0, width=6, density=0.7), "float32", engine="torch")
    x = images(0, *shape)
    assert torch.allclose(Int8Network(packed.layers)(x), packed(x), rtol=1e-5, atol=1e-5)


def test_what_does_not_run_is_left_out_with_a_sentence(monkeypatch):
    packed, x = pack(scatter(TwoUnits()), engine="torch"), images(0, 1, 2, 6, 6)
    monkeypatch.setattr(forms, "is_available", lambda name: name == "torch")
    monkeypatch.setattr(forms.shutil, "which", lambda name: None)

    def broken(layers):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(forms, "Int8Network", broken)
    found, notes = contestants(packed, ["numba", "eager", "compile", "int8"], x)
    assert set(found) == {"eager"}
    assert "pip install 'bnfree[fast]'" in notes[0]
    assert "no C++ compiler" in notes[1]
    assert "does not run here (no such operator)" in notes[2]
    with pytest.raises(InputError, match="engines='tpu' is not known; choose from numba"):
        contestants(packed, ["tpu"], x)


def test_a_form_that_computes_something_else_is_named(monkeypatch):
    network = pack(scatter(TwoUnits()), "float32", engine="torch")
    other = pack(scatter(TwoUnits(), seed=1), "float32", engine="torch").layers
    x = images(0, 16, 2, 6, 6)
    monkeypatch.setattr(forms, "UnpackedNetwork", lambda layers: forms.Int8Network(other))
    differing = int((network(x).argmax(1) != PackedNetwork(other, engine="torch")(x).argmax(1)).sum())
    notes = contestants(network, ["eager"], x)[1]
    assert differing > 0
    assert notes == [f"float32, eager: another class for {differing} of 16 images of noise."]


def test_the_profile_has_every_layer_and_its_operations():
    packed = pack(scatter(TwoUnits(width=3)), engine="torch")
    rows = profile(packed, "torch", images(0, 2, 2, 7, 6), 1e-9)
    assert [row.name for row in rows] == ["call", "stem and unit 0, 3x3", "unit 1, 3x3 and 1x1", "classifier"]
    assert [row.shapes for row in rows] == ["", "2x7x6 -> 3x7x6", "3x7x6 -> 6x4x3", "6x4x3 -> 4"]
    per_image = [0, (3 * 2 * 9 + 3 * 3 * 9) * 42, (6 * 3 * 9 + 6 * 3) * 12, 24]
    assert [row.operations for row in rows] == [2 * count for count in per_image]
    assert sum(row.seconds for row in rows) > 0


def test_the_profile_gives_a_call_what_it_takes_on_no_images(monkeypatch):
    packed = pack(scatter(TwoUnits(width=3)), engine="torch")
    compute = PackedNetwork.__call__

    def slow(network, images):
        time.sleep(0.005)
        return compute(network, images)

    monkeypatch.setattr(PackedNetwork, "__call__", slow)
    rows = {row.name: row.seconds for row in profile(packed, "torch", images(0, 2, 2, 7, 6), 1e-9)}
    assert rows["call"] >= 0.005
    assert rows["classifier"] < 0.0025


@pytest.fixture
def packed(project):
    info = NetworkInfo(image_shape=(3, 8, 8))
    pack(random_network(0, width=4), info=info, engine="torch").save(project / "network.safetensors")
    return project / "network.safetensors"


def test_the_command_prints_machine_memory_tables_and_profile(bnfree, packed, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    before = torch.get_num_threads()
    code, out, err = bnfree(
        "bench", packed, "--seconds=0.01", "--batch_sizes=1,2", "--engines=torch,eager,int8", "--image_size=6"
    )
    torch.set_num_threads(before)
    assert (code, err) == (0, "")
    for text in ("Processor", "vpopcntdq", "load average", "images 3x6x6", "MB in float32", "batch 1 ", "batch 2 "):
        assert text in out
    for name in ("packed, torch", "float32, eager", "int8, oneDNN"):
        assert sum(line.startswith(name) for line in out.splitlines()) >= 2
    assert "stem and unit 0, 3x3" in out
    assert "classifier" in out


def test_the_function_gives_what_the_command_prints(packed, monkeypatch):
    before = torch.get_num_threads()
    found = bench(BenchSettings(packed, (1, 3), image_size=6, seconds=0.01, engines=("torch", "eager")))
    torch.set_num_threads(before)
    assert [one.batch for one in found.batches] == [1, 3]
    assert [list(one.times) for one in found.batches] == [["torch", "eager"]] * 2
    assert all(times.calls >= LEAST_ROUNDS for one in found.batches for times in one.times.values())
    assert (found.image_shape, found.file_bytes) == ((3, 6, 6), packed.stat().st_size)
    real = sum(parameter.numel() for parameter in random_network(0, width=4).parameters()) * 4
    assert found.bits_bytes < found.float32_bytes
    assert found.float32_bytes == pytest.approx(real, rel=0.05)
    assert [layer.name for layer in found.profile][-1] == "classifier"
    assert found.machine.threads == 1
    with pytest.raises(InputError, match=r"batch_sizes=\[0\] must be positive"):
        bench(BenchSettings(packed, (0,)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch_sizes=0"], "batch_sizes='0' must be positive integers"),
        (["--batch_sizes=1,x"], "batch_sizes='1,x' must be positive"),
        (["--seconds=0"], "seconds=0.0 must be positive"),
        (["--image_size=0"], "image_size=0 must be at least 1"),
        (["--engines=cpu"], "engines='cpu' is not known"),
    ],
)
def test_mistakes_are_one_sentence(complaint, packed, options, said):
    assert said in complaint("bench", packed, *options)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_classes():
    packed, x = pack(random_network(0, width=4), "float32", engine="torch"), images(0, 4, 3, 8, 8)
    found, notes = contestants(packed, ["compile"], x)
    if found:
        assert torch.allclose(found["compile"](), packed(x), rtol=1e-4, atol=1e-4)
    else:
        assert "left out" in notes[0]
