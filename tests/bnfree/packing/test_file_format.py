"""The file: what it says, what comes back, and what every kind of damage leads to."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packable_networks import TwoUnits, images, random_network, scatter
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from bnfree.backbones import ReActNet18
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.packing import NetworkInfo, load, pack
from bnfree.packing.layers import tensors_of

INFO = NetworkInfo((0.1, 0.2), (0.3, 0.4), (2, 6, 6), ("a", "b", "ß", "d"), "runs/first", 0.875)
X = images(0, 2, 2, 6, 6)


@pytest.fixture(scope="module")
def packed():
    return pack(scatter(TwoUnits(), density=0.6), info=INFO, engine="torch")


@pytest.fixture
def path(packed, tmp_path):
    packed.save(tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def read_table(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["bnfree.packed"])


NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int32": "I32", "int8": "I8", "uint8": "U8"}


def checksum(table, tensors):
    """As the format's description says."""
    rest = {name: value for name, value in table.items() if name != "checksum"}
    content = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    for name, tensor in sorted(tensors.items()):
        array = tensor.numpy()
        content += f"{name} {NAMES[array.dtype.name]} {list(array.shape)}\n".encode() + array.tobytes()
    return hashlib.sha256(content).hexdigest()


def rewrite(path, table, tensors, sign=True):
    """Writes a file whose checksum is right, whatever is in it."""
    if sign:
        table = {**table, "checksum": checksum(table, tensors)}
    save_tensors(tensors, path, metadata={"bnfree.packed": json.dumps(table)})


@pytest.mark.parametrize("masks", ["planes", "digits"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("binary_shortcut", [True, False])
def test_everything_comes_back(tmp_path, precision, masks, binary_shortcut):
    network = scatter(TwoUnits(binary_shortcut=binary_shortcut), density=0.6)
    packed = pack(network, precision, precision, INFO, engine="torch")
    packed.save(tmp_path / "file", masks=masks)
    loaded = load(tmp_path / "file", engine="torch")
    assert loaded.info == INFO
    before, after = dict(tensors_of(packed.layers)), dict(tensors_of(loaded.layers))
    assert before.keys() == after.keys()
    assert len(before) > 10
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert torch.equal(loaded(X), packed(X))


def test_the_file_describes_itself(path):
    table = read_table(path)
    # One filter of the projection has lost all its weights.
    assert table["format_version"] == 2
    assert table["layout"]["units"][1]["projection_filters"] == 5
    assert table["layout"]["architecture"] == "TwoUnits"
    assert table["info"] == {
        "mean": [0.1, 0.2], "std": [0.3, 0.4], "image_shape": [2, 6, 6], "class_names": ["a", "b", "ß", "d"],
        "source_run": "runs/first", "accuracy": 0.875,
    }  # fmt: skip
    tensors = load_file(path)
    assert tensors["stem.weight"].dtype == torch.float32
    assert tensors["classifier.weight"].dtype == torch.float16
    assert tensors["units.0.signs"].dtype == torch.uint8
    assert tensors["units.1.thresholds"].shape == (3,)


def test_what_earlier_versions_can_read_says_so(tmp_path):
    pack(scatter(TwoUnits()), info=INFO, engine="torch").save(tmp_path / "file")
    assert read_table(tmp_path / "file")["format_version"] == 1


@pytest.mark.parametrize("masks", ["planes", "digits"])
@pytest.mark.parametrize("density", [None, 0.6])
@pytest.mark.parametrize("binary_shortcut", [True, False])
def test_filters_that_make_nothing_are_not_in_the_file(tmp_path, masks, density, binary_shortcut):
    network = scatter(TwoUnits(binary_shortcut=binary_shortcut), density=density)
    pack(network, engine="torch").save(tmp_path / "whole", masks=masks)
    with torch.no_grad():
        network.body[0].convolution.gain[:] = 0
        network.body[1].convolution.gain[[0, 2, 5]] = 0
        if binary_shortcut:
            network.body[1].projection.gain[[1, 2, 3]] = 0
    packed = pack(network, engine="torch")
    packed.save(tmp_path / "file", masks=masks)
    tensors, whole = load_file(tmp_path / "file"), load_file(tmp_path / "whole")
    assert tensors["units.0.scale"].shape == (0,)
    assert tensors["units.0.filters"].tolist() == [0]
    assert tensors["units.1.filters"].tolist() == [0b011010]
    assert tensors["units.1.scale"].shape == (3,)
    form = "signs" if density is None else {"planes": "survivors", "digits": "digits"}[masks]
    of_byte = 5 if form == "digits" else 8
    assert tensors[f"units.1.{form}"].shape == (-(-3 * 27 // of_byte),)
    assert whole[f"units.1.{form}"].shape == (-(-6 * 27 // of_byte),)
    loaded = load(tmp_path / "file", engine="torch")
    before, after = dict(tensors_of(packed.layers)), dict(tensors_of(loaded.layers))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), network(X), rtol=1e-3, atol=1e-3)


def test_whole_filters_that_are_pruned_need_no_plane_of_survivors():
    network = scatter(TwoUnits(binary_shortcut=False))
    layer = network.body[1].convolution
    mask = torch.ones_like(layer.weight, dtype=torch.bool)
    mask[2:4] = False
    layer.set_mask(mask)
    packed = pack(network, engine="torch")
    assert packed.layers.units[1].weight.survivors is None
    with torch.no_grad():
        torch.testing.assert_close(packed(X), network(X), rtol=1e-3, atol=1e-3)


SAVE = """
import sys
from packable_networks import TwoUnits, scatter
from bnfree.packing import pack
pack(scatter(TwoUnits(), density=0.6), engine="torch").save(sys.argv[1])
"""


@pytest.mark.slow
def test_the_same_network_gives_the_same_bytes_in_every_process(tmp_path):
    for seed in "12":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        program = SAVE.replace("scatter(TwoUnits()", "__import__('torch').manual_seed(0) and scatter(TwoUnits()")
        subprocess.run([sys.executable, "-c", program, tmp_path / seed], env=environment, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_an_unknown_form_of_masks_is_refused(packed, tmp_path):
    with pytest.raises(InputError, match="masks='runs'"):
        packed.save(tmp_path / "file", masks="runs")


@pytest.mark.parametrize("place", ["missing/file", ""])
def test_a_place_that_cannot_be_written_to_is_refused(packed, tmp_path, place):
    with pytest.raises(InputError, match="cannot be written"):
        packed.save(tmp_path / place)
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob(".*.unfinished"))


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    network = scatter(TwoUnits())
    names = ("x" * 5_000_000, "b", "c", "d")
    with pytest.raises(InputError, match="shorten class_names"):
        pack(network, info=NetworkInfo(class_names=names), engine="torch").save(tmp_path / "file")
    network.body[0].convolution = BinaryConv2d(3, 3, 9, padding=4)
    with pytest.raises(InputError, match="kernel of .9, 9."):
        pack(network, engine="torch").save(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_replaced_does_not_change_the_network(path):
    loaded = load(path, engine="torch")
    before = loaded(X)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(loaded(X), before)


def special_files(folder):
    (folder / "empty").touch()
    (folder / "short").write_bytes(b"\x08\0\0")
    (folder / "long_header").write_bytes((1 << 62).to_bytes(8, "little") + b"{}" * 100)
    (folder / "text").write_text("not a network, but long enough to have a header")
    (folder / "nested").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    (folder / "directory").mkdir()
    os.mkfifo(folder / "pipe")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    torch.save({"weight": torch.zeros(3)}, folder / "checkpoint")
    save_tensors({"weight": torch.zeros(3)}, folder / "other")
    save_tensors({"weight": torch.zeros(3)}, folder / "no_json", metadata={"bnfree.packed": "{"})
    save_tensors({"weight": torch.zeros(3)}, folder / "deep", metadata={"bnfree.packed": "[" * 100_000})
    return [*sorted(folder.iterdir()), folder / "absent", Path("/dev/zero")]


def test_files_of_another_kind_are_refused_in_one_sentence(tmp_path):
    for path in special_files(tmp_path):
        with pytest.raises(InputError, match=r"^path='[^\n]*\.$") as error:
            load(path, engine="torch")
        assert str(path) in str(error.value)


def test_another_version_is_named(path):
    for version in (3, 0, "1", True, None):
        table = {**read_table(path), "format_version": version}
        rewrite(path, table, load_file(path))
        with pytest.raises(InputError, match="format version"):
            load(path)


def changed_tensors(name, change):
    def apply(table, tensors):
        tensors[name] = change(tensors[name])

    return apply


def changed_layout(*keys, value):
    def apply(table, tensors):
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = value

    return apply


HOSTILE = {
    "scale_nan": (changed_tensors("units.0.scale", lambda t: t * torch.nan), "units.0.scale holds .* not finite"),
    "weight_inf": (changed_tensors("stem.weight", lambda t: t / 0), "stem.weight holds .* not finite"),
    "dtype": (changed_tensors("units.1.signs", lambda t: t.view(torch.int8)), "units.1.signs is I8"),
    "double": (changed_tensors("stem.scale", torch.Tensor.double), "stem.scale is F64"),
    "shape": (changed_tensors("units.0.rprelu", lambda t: t.view(-1)), r"units.0.rprelu is F32 \[9\]"),
    "shorter": (changed_tensors("units.0.signs", lambda t: t[:-1].clone()), "units.0.signs is U8"),
    "missing": (lambda table, tensors: tensors.pop("units.1.thresholds"), "missing or surplus.*units.1.thresholds"),
    "surplus": (changed_tensors("stem.bias", lambda t: t) and (lambda _, t: t.update(more=torch.ones(1))), "'more'"),
    "huge": (changed_layout("layout", "units", 0, "shape", value=[1 << 20, 1 << 20, 7, 7]), "channels in front"),
    "huge_classifier": (changed_layout("layout", "classifier", "shape", value=[1 << 20, 6]), r"classifier\.\w+ is"),
    "too_huge": (changed_layout("layout", "stem", "shape", value=[1 << 70, 2, 3, 3]), "stem.shape is not an integer"),
    "kernel": (changed_layout("layout", "stem", "shape", value=[3, 2, 101, 101]), "at most 7"),
    "even": (changed_layout("layout", "units", 0, "shape", value=[3, 3, 2, 2]), "odd"),
    "stride": (changed_layout("layout", "units", 0, "stride", value=0), "units.0.stride"),
    "filters_all": (changed_layout("layout", "units", 1, "projection_filters", value=6), "not an integer from 0 to 5"),
    "filters_fewer": (changed_layout("layout", "units", 1, "projection_filters", value=4), "projection.scale is F32"),
    "filters_bits": (
        changed_tensors("units.1.projection.filters", lambda t: t & (t - 1)),
        "projection.filters are 4 in place of 5",
    ),
    "filters_of_none": (changed_layout("layout", "units", 0, "projection_filters", value=1), "has no projection"),
    "filters_real": (changed_layout("layout", "units", 1, "projection", value="float16"), "has real weights"),
    "filters_huge": (
        changed_layout(
            "layout",
            "units",
            value=[
                {"form": "signs", "shape": shape, "stride": 1, "shortcut_scale": 1.0, "filters": 0}
                for shape in ([3 << 10, 3, 3, 3], [3 << 10, 3 << 10, 7, 7])
            ],
        ),
        "leaves out 462504960 weights",
    ),
    "boolean": (changed_layout("layout", "units", 0, "stride", value=True), "units.0.stride"),
    "pool": (changed_layout("layout", "stem", "pool", value=1), "pool"),
    "factor": (changed_layout("layout", "units", 0, "shortcut_scale", value=float("nan")), "shortcut_scale nan"),
    "form": (changed_layout("layout", "units", 0, "form", value="float32"), "form 'float32' for units.0"),
    "form_list": (changed_layout("layout", "stem", "form", value=[]), "form"),
    "units": (changed_layout("layout", "units", value={}), "units that are not a list"),
    "no_units": (changed_layout("layout", "units", value=[]), "channels in front of the classifier"),
    "layout": (changed_layout("layout", value=None), "layout is not a table"),
    "architecture": (changed_layout("layout", "architecture", value=3), "architecture"),
    "names": (changed_layout("info", "class_names", value=["a"]), "class_names has 1 names"),
    "accuracy": (changed_layout("info", "accuracy", value=10**400), "accuracy"),
    "info": (changed_layout("info", value={"code": "import os"}), "info"),
    "long": (changed_layout("layout", "stem", "form", value="x" * 1000), r"form 'x{200,300}\.\.\. \.$"),
    "entry": (changed_layout("more", value=1), "entries"),
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_content_with_a_right_checksum_is_refused(path, kind):
    change, message = HOSTILE[kind]
    table, tensors = read_table(path), load_file(path)
    change(table, tensors)
    rewrite(path, table, tensors)
    with pytest.raises(InputError, match=message) as error:
        load(path, engine="torch")
    assert str(error.value).startswith(f"path={str(path)!r} is not a valid packed network: ")


def test_digits_that_are_none_are_refused(packed, path):
    packed.save(path, masks="digits")
    table, tensors = read_table(path), load_file(path)
    tensors["units.0.digits"][0] = 250
    rewrite(path, table, tensors)
    with pytest.raises(InputError, match="242"):
        load(path)


def test_a_wrong_checksum_is_refused(path):
    table, tensors = read_table(path), load_file(path)
    tensors["units.0.signs"][0] ^= 1
    rewrite(path, table, tensors, sign=False)
    with pytest.raises(InputError, match="checksum"):
        load(path)


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    position = chance.randrange(len(data))
    kind = chance.randrange(8)
    if kind == 0:
        data[position] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[position:]
    elif kind == 2:
        data[position:position] = chance.randbytes(chance.randrange(1, 40))
    elif kind == 3:
        del data[position : position + chance.randrange(1, 40)]
    elif kind == 4:
        data[position : position + 16] = bytes([chance.choice([0, 255])]) * 16
    elif kind == 5:
        data[:8] = chance.randbytes(8) if chance.random() < 0.5 else chance.randrange(1 << 24).to_bytes(8, "little")
    elif kind == 6:
        header = int.from_bytes(data[:8], "little")
        digits = [i for i in range(8, 8 + header) if chr(data[i]).isdigit()]
        data[chance.choice(digits)] = ord(str(chance.randrange(10)))
    else:
        other = chance.randrange(len(data))
        data[position : position + 64] = data[other : other + 64]
    return bytes(data)


JUNK = [
    None,
    True,
    0,
    -1,
    1,
    2,
    3,
    7,
    2**70,
    0.5,
    1e308,
    float("nan"),
    "",
    "digits",
    "planes",
    "int8",
    [],
    {},
    [1] * 99,
]


def mutate_content(table, tensors, chance):
    """Replaces one leaf of the table, or damages one tensor."""
    if chance.random() < 0.4:
        name = chance.choice(sorted(tensors))
        tensor = tensors[name]
        change = chance.randrange(5)
        if change == 0:
            del tensors[name]
        elif change == 1:
            tensors[name] = tensor.double() if tensor.is_floating_point() else tensor.to(torch.int32)
        elif change == 2:
            tensors[name] = torch.cat([tensor, tensor])
        elif change == 3:
            tensors[name] = tensor.unsqueeze(0)
        else:
            noise = [chance.randrange(256) for _ in range(tensor.nbytes)]
            tensors[name] = torch.tensor(noise, dtype=torch.uint8).view(tensor.dtype).view(tensor.shape)
        return
    parent, keys = table, list(table)
    while True:
        key = chance.choice(keys)
        child = parent[key]
        if not isinstance(child, (dict, list)) or not child or chance.random() < 0.15:
            break
        parent, keys = child, list(child) if isinstance(child, dict) else list(range(len(child)))
    parent[key] = chance.choice(JUNK)


def fuzz_bytes(path, count):
    content, expected, chance = path.read_bytes(), load(path, engine="torch")(X), random.Random(count)
    refused = []
    for _ in range(count):
        path.write_bytes(mutate_bytes(content, chance))
        try:
            loaded = load(path, engine="torch")
        except InputError as error:
            refused.append(str(error))
        else:
            assert torch.equal(loaded(X), expected), "a changed network was accepted"
    assert not any("\n" in message for message in refused)
    assert len(refused) > 0.9 * count
    path.write_bytes(content)


def fuzz_content(path, count):
    content, chance = path.read_bytes(), random.Random(count)
    refused = []
    for _ in range(count):
        path.write_bytes(content)
        table, tensors = read_table(path), load_file(path)
        mutate_content(table, tensors, chance)
        rewrite(path, table, tensors)
        try:
            loaded = load(path, engine="torch")
        except InputError as error:
            refused.append(str(error))
        else:
            assert loaded(X[:, : loaded.in_channels]).shape == (2, loaded.num_classes)
    assert not any("\n" in message for message in refused)
    assert 0.5 * count < len(refused) < count


def test_mutated_files_are_refused_or_harmless(path):
    fuzz_bytes(path, 300)


def test_mutated_content_with_a_right_checksum_is_refused_or_runs(path):
    fuzz_content(path, 100)


@pytest.mark.slow
def test_many_mutations(path):
    fuzz_bytes(path, 10_000)
    fuzz_content(path, 1_000)


@pytest.mark.slow
def test_a_whole_network_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    pack(random_network(0, width=2), engine="torch").save(path)
    content = path.read_bytes()
    for length in random.Random(0).sample(range(len(content)), 200):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            load(path)


def test_a_network_with_channels_last_is_written_like_any_other(tmp_path):
    torch.manual_seed(0)
    network = ReActNet18(4, in_channels=2, width=8)
    path = tmp_path / "channels_last.safetensors"
    plain = pack(network, engine="torch")
    pack(network.to(memory_format=torch.channels_last), engine="torch").save(path)
    # Scales are means of weights, which are added up in another order.
    torch.testing.assert_close(load(path, engine="torch")(X), plain(X), rtol=1e-5, atol=1e-5)
