"""The same pixels in every mode and depth give the same image, within one grey level."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from bnfree.datamodules import ImageFolderDataModule
from bnfree.errors import InputError
from bnfree.images.decoding import decode_image

HEIGHT, WIDTH = 24, 40
# All of 0..65535 in even steps, with both ends.
DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)


def expected(maximum=65535, values=DEEP):
    return values.astype(np.float64) * 255 / maximum


def assert_grey(path, levels, within=1.0):
    image = decode_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, *levels.shape)
    assert np.abs(image.numpy().astype(np.float64) - levels).max() <= within


def pgm(values, maximum, plain=False):
    header = f"P{2 if plain else 5}\n{values.shape[1]} {values.shape[0]}\n{maximum}\n".encode()
    if plain:
        return header + " ".join(map(str, values.flatten())).encode() + b"\n"
    return header + values.astype(">u2" if maximum > 255 else "u1").tobytes()


def tiff(data, bits=16, photometric=1, order="<", sample_format=1):
    """An uncompressed grey image with one strip."""
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: photometric, 277: 1, 278: HEIGHT, 279: len(data)}
    tags |= {339: sample_format}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    content = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags) + 1)
    for tag, value in sorted({**tags, 273: start}.items()):
        content += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return content + struct.pack(f"{order}I", 0) + data


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "I;16") for name in ("a.png", "a.tif", "a.im", "a.jp2")),
        *((name, "I;16B") for name in ("a.png", "a.tif", "a.im")),
        *((name, "I;16L") for name in ("a.tif", "a.im")),
    ],
)
def test_sixteen_bits_are_scaled(tmp_path, name, mode):
    values = DEEP.astype(">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (WIDTH, HEIGHT), values.tobytes())
    image.save(tmp_path / name)
    assert_grey(tmp_path / name, expected())


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff_is_scaled(tmp_path, compression):
    Image.fromarray(DEEP).save(tmp_path / "a.tif", compression=compression)
    assert_grey(tmp_path / "a.tif", expected())


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_tiff(tmp_path, order):
    (tmp_path / "a.tif").write_bytes(tiff(DEEP.astype(f"{order}u2").tobytes(), order=order))
    assert_grey(tmp_path / "a.tif", expected())


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_whose_zero_is_white(tmp_path, bits):
    data = DEEP.astype("<u2") if bits == 16 else (DEEP >> 8).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(data.tobytes(), bits, photometric=0))
    assert_grey(tmp_path / "a.tif", 255 - expected())


def test_tiff_of_twelve_bits(tmp_path):
    values = (DEEP >> 4).flatten().astype(np.uint32)
    first, second = values[::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(packed.tobytes(), bits=12))
    assert_grey(tmp_path / "a.tif", expected(4095, DEEP >> 4))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("maximum", [1, 7, 100, 255, 256, 1023, 4095, 65534, 65535])
def test_pgm_of_any_maximum(tmp_path, maximum, plain):
    values = (DEEP.astype(np.int64) * maximum // 65535).astype(np.uint16)
    (tmp_path / "a.pgm").write_bytes(pgm(values, maximum, plain))
    assert_grey(tmp_path / "a.pgm", expected(maximum, values))


@pytest.mark.parametrize("maximum", [15, 1023, 65535])
def test_ppm_of_any_maximum(tmp_path, maximum):
    values = (DEEP.astype(np.int64) * maximum // 65535).astype(">u2" if maximum > 255 else "u1")
    data = np.repeat(values[..., None], 3, axis=2)
    (tmp_path / "a.ppm").write_bytes(f"P6\n{WIDTH} {HEIGHT}\n{maximum}\n".encode() + data.tobytes())
    assert_grey(tmp_path / "a.ppm", expected(maximum, values))


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize(
    ("name", "mode"), [("a.tif", "F"), ("a.tif", "I"), ("a.pfm", "F"), ("a.im", "F"), ("a.im", "I"), ("a.spider", "F")]
)
def test_pixels_whose_range_nobody_states_are_refused(tmp_path, name, mode):
    kind = {".spider": "SPIDER", ".pfm": "PPM"}.get((tmp_path / name).suffix)
    Image.fromarray(DEEP.astype(np.float32 if mode == "F" else np.int32)).save(tmp_path / name, kind)
    with pytest.raises(InputError) as caught:
        decode_image(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert f"mode {mode}," in message
    assert "\n" not in message
    assert message.count(".") == str(tmp_path / name).count(".") + 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_tiff_is_refused(tmp_path, order):
    (tmp_path / "a.tif").write_bytes(tiff(DEEP.astype(f"{order}u2").tobytes(), order=order, sample_format=2))
    with pytest.raises(InputError, match=r"a.tif has pixels of mode I,"):
        decode_image(tmp_path / "a.tif")


def test_sixteen_bits_of_fits_are_refused(tmp_path):
    cards = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": WIDTH, "NAXIS2": HEIGHT}
    header = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END".ljust(80)
    (tmp_path / "a.fits").write_bytes(header.ljust(2880).encode() + DEEP.astype(">i2").tobytes().ljust(2880, b"\0"))
    with pytest.raises(InputError, match=r"a.fits has pixels of mode I;16,"):
        decode_image(tmp_path / "a.fits")


COLOURS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREYS = COLOURS[..., :1].repeat(3, 2)


@pytest.mark.parametrize(
    ("mode", "name", "pixels"),
    [
        ("RGB", "a.png", COLOURS),
        ("RGB", "a.tif", COLOURS),
        ("RGBX", "a.tif", COLOURS),
        ("YCbCr", "a.tif", COLOURS),
        ("L", "a.png", GREYS),
        ("L", "a.tif", GREYS),
        ("P", "a.png", GREYS),
        ("P", "a.gif", GREYS),
        ("P", "a.tif", GREYS),
        ("PA", "a.tif", GREYS),
        ("1", "a.png", GREYS // 128 * 255),
        ("1", "a.tif", GREYS // 128 * 255),
        ("1", "a.bmp", GREYS // 128 * 255),
        ("1", "a.pbm", GREYS // 128 * 255),
        ("CMYK", "a.tif", COLOURS),
    ],
)
def test_other_modes_are_the_pixels_in_rgb(tmp_path, mode, name, pixels):
    image = Image.fromarray(pixels)
    if mode in ("P", "PA"):
        image = Image.fromarray(pixels[..., 0]).convert("P")
    elif mode == "1":
        image = Image.fromarray(pixels[..., 0]).convert("1", dither=Image.Dither.NONE)
    image.convert(mode).save(tmp_path / name)
    image = decode_image(tmp_path / name)
    # YCbCr rounds its coefficients.
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - pixels).max() <= (3 if mode == "YCbCr" else 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "P with a colour", "P with a table", "L with a level", "RGB with a colour"]
)
def test_transparency_is_left_out(tmp_path, mode):
    """The colours below transparent pixels are those in the file."""
    grey = mode.startswith(("L", "P"))
    pixels = GREYS if grey else COLOURS
    alpha = Image.fromarray(COLOURS[..., 2])
    image, options = Image.fromarray(pixels[..., 0] if grey else pixels), {}
    if mode in ("RGBA", "LA"):
        image.putalpha(alpha)
    elif mode.startswith("P"):
        image = image.convert("P")
        options = {"transparency": 7 if "colour" in mode else bytes(range(256))}
    else:
        options = {"transparency": 7 if grey else (1, 2, 3)}
    image.save(tmp_path / "a.png", **options)
    assert np.array_equal(decode_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), pixels)


def test_premultiplied_colours_are_divided_by_their_alpha(tmp_path):
    """In TIFF, where the extra sample says so."""
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 255))
    image.save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.index(struct.pack("<HHI", 338, 3, 1))
    content[place + 8] = 1
    premultiplied = bytes((100, 50, 25, 128)) * 64
    content = content.replace(bytes((200, 100, 50, 255)) * 64, premultiplied)
    (tmp_path / "a.tif").write_bytes(content)
    pixel = decode_image(tmp_path / "a.tif")[:, 0, 0].int()
    assert (pixel - torch.tensor([200, 100, 50])).abs().max() <= 2


def test_lab_is_converted(tmp_path):
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "white.tif")
    assert decode_image(tmp_path / "white.tif").min() >= 250


@pytest.mark.parametrize("options", [{}, {"in_memory": True}, {"cache": "raw"}])
def test_a_data_module_sees_the_same_in_both_depths(tmp_path, options):
    rng = np.random.default_rng(1)
    for number in range(8):
        values = rng.integers(0, 65536, (20, 20)).astype(np.uint16)
        for depth, pixels in (("deep", values), ("flat", (values * (255 / 65535)).round().astype(np.uint8))):
            folder = tmp_path / depth / "train" / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    options = {"val_split": 0, "image_size": 16, "num_workers": 0, **options}
    modules = [ImageFolderDataModule(str(tmp_path / depth), 8, **options) for depth in ("deep", "flat")]
    images = [module.calibration_images(8) for module in modules]
    # One grey level of 255, divided by the smallest standard deviation.
    assert (images[0] - images[1]).abs().max() <= 1.01 / 255 / 0.224
    assert images[0].std() > 0.3
