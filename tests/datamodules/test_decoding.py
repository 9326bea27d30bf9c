import io
import resource
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import bnfree.images.decoding as decoding
from bnfree.errors import InputError
from bnfree.images.decoding import decode_image


@pytest.fixture(params=["torchcodec", "pillow"])
def decoder(request, monkeypatch):
    """With torchcodec, and as without it."""
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)
    else:
        pytest.importorskip("torchcodec")


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


def test_jpeg_is_decoded_by_torchcodec(tmp_path, monkeypatch):
    pytest.importorskip("torchcodec")
    picture().save(tmp_path / "a.jpg")
    monkeypatch.setattr(decoding, "_decode_with_pillow", lambda path: pytest.fail("Pillow was asked"))
    assert decode_image(str(tmp_path / "a.jpg")).shape == (3, 37, 53)


def oriented(path, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(path, exif=exif, **options)
    return path


@pytest.mark.usefixtures("decoder")
def test_no_warning_reaches_the_user(tmp_path):
    oriented(tmp_path / "a.jpg", 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
@pytest.mark.usefixtures("decoder")
def test_an_orientation_is_obeyed(tmp_path, name, orientation):
    path = oriented(tmp_path / name, orientation)
    # An independent implementation; 0 and 9 mean nothing.
    expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    image = decode_image(path)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert image.shape == ((3, 53, 37) if 5 <= orientation <= 8 else (3, 37, 53))
    assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
@pytest.mark.usefixtures("decoder")
def test_an_orientation_is_left_alone_if_asked(tmp_path, name):
    """As Pillow itself, which obeys that of TIFF alone."""
    path = oriented(tmp_path / name, 6)
    expected = np.array(Image.open(path).convert("RGB"))
    assert np.array_equal(decode_image(path, exif_orientation=False).permute(1, 2, 0).numpy(), expected)


@pytest.mark.usefixtures("decoder")
def test_an_orientation_in_xmp_or_behind_other_segments_is_obeyed(tmp_path):
    picture().save(tmp_path / "a.jpg", xmp=b'<rdf:Description tiff:Orientation="6"/>', icc_profile=b"0" * 200_000)
    assert decode_image(tmp_path / "a.jpg").shape == (3, 53, 37)
    oriented(tmp_path / "b.jpg", 8, icc_profile=b"0" * 200_000, comment="phone")
    assert decode_image(tmp_path / "b.jpg").shape == (3, 53, 37)


@pytest.mark.parametrize("keep", range(0, 40, 3))
@pytest.mark.usefixtures("decoder")
def test_damaged_metadata_leave_whole_pixels_alone(tmp_path, keep):
    path = oriented(tmp_path / "a.jpg", 6)
    content = bytearray(path.read_bytes())
    start = content.index(b"Exif") + 6
    end = start + 26
    content[start + keep : end] = b"\xff" * max(0, end - start - keep)
    path.write_bytes(content)
    assert decode_image(path).shape in ((3, 37, 53), (3, 53, 37))


def jpeg_of(height, width):
    """A small file that states a size."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize(("height", "width"), [(65000, 65000), (65535, 65535), (13000, 14000)])
@pytest.mark.usefixtures("decoder")
def test_a_file_that_states_too_many_pixels_is_refused_undecoded(tmp_path, height, width):
    """In a process that may not have the memory for it."""
    (tmp_path / "bomb.jpg").write_bytes(jpeg_of(height, width))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, limit[1]))
    try:
        with pytest.raises(InputError, match=r"bomb.jpg cannot be decoded as an image \(Image size \(\d+ pixels\)"):
            decode_image(tmp_path / "bomb.jpg")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


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
