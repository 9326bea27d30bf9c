import io
import zipfile

import pytest
import torch

from bnfree import checksums
from bnfree.errors import InputError

CONTENT = {"weights": torch.arange(5000.0), "note": "x"}


@pytest.fixture
def file(tmp_path):
    checksums.save(CONTENT, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize("options", [{"weights_only": True}, {"weights_only": True, "mmap": True}])
def test_torch_reads_the_file_as_any_other(file, options):
    found = torch.load(file, **options)
    assert torch.equal(found["weights"], CONTENT["weights"])
    assert torch.equal(torch.load(io.BytesIO(file.read_bytes()))["weights"], CONTENT["weights"])
    assert zipfile.ZipFile(file).testzip() is None


def test_an_undamaged_file_passes_and_one_without_a_checksum_too(file, tmp_path):
    checksums.check(file, "f")
    torch.save(CONTENT, tmp_path / "plain.pt")
    checksums.check(tmp_path / "plain.pt", "f")
    (tmp_path / "short").write_bytes(b"PK")
    checksums.check(tmp_path / "short", "f")


def test_every_flipped_bit_of_a_file_is_found(file):
    whole = file.read_bytes()
    for place in [*range(0, len(whole), 97), *range(len(whole) - 110, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            checksums.check(file, "ckpt='a.pt'")
        except InputError:
            continue
        # Where the length of the comment is damaged, it is none of ours: torch reads nothing then.
        with pytest.raises(RuntimeError, match="archive"):
            torch.load(file, weights_only=True)


def test_a_tensor_with_a_flipped_bit_would_be_loaded(file):
    """What the checksum is for."""
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    assert not torch.equal(torch.load(file, weights_only=True)["weights"], CONTENT["weights"])
    with pytest.raises(InputError):
        checksums.check(file, "f")


def test_the_size_grows_by_the_checksum_alone(file):
    plain = io.BytesIO()
    torch.save(CONTENT, plain)
    assert file.stat().st_size - len(plain.getvalue()) == 78


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.float64])
def test_bytes_of_values_do_not_depend_on_strides(dtype):
    for shape in [(), (1,), (3,), (4, 4, 1, 1), (1, 4, 3, 3), (4, 2, 3, 3)]:
        plain = torch.randn(shape).to(dtype)
        expected = (
            plain.view(torch.uint8).numpy().tobytes() if shape else plain[None].view(torch.uint8).numpy().tobytes()
        )
        assert checksums.value_bytes(plain) == expected
        spread = torch.zeros((*shape, 16), dtype=dtype)[..., 0]
        spread.copy_(plain)
        assert checksums.value_bytes(spread) == expected
        if len(shape) == 4:
            assert checksums.value_bytes(plain.to(memory_format=torch.channels_last)) == expected
