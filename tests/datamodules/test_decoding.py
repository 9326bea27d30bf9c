import numpy as np
import pytest
import torch
from PIL import Image

import bnfree.datamodules.decoding as decoding
from bnfree.datamodules.decoding import decode_image
from bnfree.errors import InputError


@pytest.fixture(params=["torchvision", "pillow"])
def decoder(request, monkeypatch):
    """With torchvision's decoder, and as in a release of torchvision that has none."""
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)


def picture(mode="RGB", height=37, width=53):
    pixels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {}),
        ("a.jpg", "RGB", {"progressive": True, "quality": 30}),
        ("a.jpg", "RGB", {"subsampling": 0}),
        ("a.jpg", "RGB", {"keep_rgb": True}),
        ("a.jpg", "L", {}),
        ("a.jpg", "CMYK", {}),
        ("a.png", "RGB", {}),
        ("a.png", "P", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "1", {}),
        ("a.gif", "P", {}),
        # ImageNet has a PNG file called JPEG.
        ("a.jpg", "RGB", {"format": "png"}),
    ],
)
@pytest.mark.usefixtures("decoder")
def test_pixels_are_pillows(tmp_path, name, mode, options):
    picture(mode).save(tmp_path / name, **options)
    image = decode_image(tmp_path / name)
    assert image.dtype == torch.uint8
    expected = np.array(Image.open(tmp_path / name).convert("RGB"))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_jpeg_is_decoded_by_torchvision(tmp_path, monkeypatch):
    if decoding._jpeg_decoder() is None:
        pytest.skip("this torchvision has no decoder")
    picture().save(tmp_path / "a.jpg")
    monkeypatch.setattr(decoding, "_decode_with_pillow", lambda path: pytest.fail("Pillow was asked"))
    assert decode_image(str(tmp_path / "a.jpg")).shape == (3, 37, 53)


@pytest.mark.usefixtures("decoder")
def test_an_orientation_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(tmp_path / "a.jpg").shape == (3, 37, 53)


@pytest.mark.usefixtures("decoder")
def test_spoilt_bytes_that_pillow_reads_are_read_alike(tmp_path):
    path = tmp_path / "a.jpg"
    picture(height=300, width=400).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    expected = np.array(Image.open(path).convert("RGB"))
    assert np.array_equal(decode_image(path).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("keep", [0, 2, 60, 400])
@pytest.mark.usefixtures("decoder")
def test_a_file_that_ends_early_is_refused(tmp_path, keep):
    path = tmp_path / "a.jpg"
    picture().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="a.jpg cannot be decoded as an image .*: replace or remove it"):
        decode_image(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be decoded"):
        decode_image(tmp_path / "a.jpg")
