"""Damaged files of every format that Pillow opens: pixels, or one sentence that names the file."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnfree.errors import InputError
from bnfree.images.decoding import decode_image

SIDE = 40
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)


def picture(mode="RGB"):
    return Image.fromarray(COLOURS).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert(mode)


def saved(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 40).save(buffer, "PNG")
    return buffer.getvalue()


def with_metadata():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "phone"
    return saved("JPEG", exif=exif, xmp=b"<x:xmpmeta/>", comment=b"comment")


def animation(kind):
    frames = [picture("P"), picture("P").rotate(90), picture("P").rotate(180)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def two_pictures():
    buffer = io.BytesIO()
    picture().save(buffer, "MPO", save_all=True, append_images=[picture().rotate(90)])
    return buffer.getvalue()


def sun_raster():
    header = struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 24, 3 * SIDE * SIDE, 1, 0, 0)
    return header + picture().tobytes()


def x_pixmap():
    lines = [f'"{SIDE} {SIDE} 2 1",', '"a c #ff0000",', '"b c #0000ff",']
    lines += ['"' + "ab" * (SIDE // 2) + '",'] * SIDE
    return ("/* XPM */\nstatic char * picture[] = {\n" + "\n".join(lines) + "\n};\n").encode()


def photoshop():
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIDE, SIDE, 8, 3)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + b"".join(band.tobytes() for band in picture().split())


def flexible_transport():
    cards = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": SIDE, "NAXIS2": SIDE}
    header = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END".ljust(80)
    return header.ljust(2880).encode() + picture("L").tobytes().ljust(2880, b"\0")


def multipage_pcx():
    return struct.pack("<III", 0x3ADE68B1, 12, 0) + saved("PCX")


def cursor():
    bitmap = saved("BMP")[14:]
    bitmap = bitmap[:8] + struct.pack("<I", 2 * SIDE) + bitmap[12:] + bytes(SIDE * 8)
    return struct.pack("<HHHBBBBHHII", 0, 2, 1, SIDE, SIDE, 0, 0, 0, 0, len(bitmap), 22) + bitmap


def thumbnail():
    return f"P7 332\n#XVVERSION\n#END_OF_COMMENTS\n{SIDE} {SIDE} 255\n".encode() + picture("L").tobytes()


def pixar():
    header = bytearray(1024)
    header[:4] = b"\200\350\000\000"
    struct.pack_into("<HH", header, 416, SIDE, SIDE)
    struct.pack_into("<HH", header, 424, 14, 2)
    return bytes(header) + picture().tobytes()


def brush():
    name = b"brush\0"
    return struct.pack(">IIIII4sI", 28 + len(name), 2, SIDE, SIDE, 1, b"GIMP", 10) + name + picture("L").tobytes()


def float_map():
    return f"Pf\n{SIDE} {SIDE}\n-1.0\n".encode() + np.zeros((SIDE, SIDE), np.float32).tobytes()


def plain_pixmap():
    return f"P3\n{SIDE} {SIDE}\n255\n".encode() + " ".join(map(str, picture().tobytes())).encode()


def satellite():
    words = np.zeros(64, ">i4")
    words[1], words[8], words[9], words[10], words[13], words[14], words[33] = 4, SIDE, SIDE, 1, 1, 0, 256
    return words.tobytes() + picture("L").tobytes()


def texture():
    data = picture().tobytes()
    return struct.pack("<4s7iii", b"FTEX", 1, SIDE, SIDE, 1, 1, 1, 0, 36, len(data)) + data


def image_tool():
    return f"pixel n8\nwidth {SIDE}\nheight {SIDE}\n\x0c".encode() + picture("L").tobytes()


def flic():
    chunk = struct.pack("<IHH", 6 + SIDE * SIDE, 16, 0)[:6] + picture("L").tobytes()
    frame = struct.pack("<IHH8x", 16 + len(chunk), 0xF1FA, 1) + chunk
    header = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, SIDE, SIDE, 8, 3, 5)
    return header.ljust(128, b"\0") + frame


FORMATS = {
    "png": lambda: saved("PNG"),
    "png-palette": lambda: saved("PNG", "P", transparency=bytes(range(256))),
    "png-16": deep_png,
    "jpeg": lambda: saved("JPEG"),
    "jpeg-metadata": with_metadata,
    "jpeg-progressive": lambda: saved("JPEG", progressive=True),
    "jpeg-cmyk": lambda: saved("JPEG", "CMYK"),
    "mpo": two_pictures,
    "jpeg2000": lambda: saved("JPEG2000"),
    "gif": lambda: animation("GIF"),
    "webp": lambda: saved("WEBP"),
    "webp-lossless": lambda: saved("WEBP", lossless=True),
    "avif": lambda: saved("AVIF"),
    "tiff": lambda: saved("TIFF"),
    "tiff-lzw": lambda: saved("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: saved("TIFF", compression="jpeg"),
    "tiff-deflate": lambda: saved("TIFF", compression="tiff_deflate"),
    "tiff-packbits": lambda: saved("TIFF", compression="packbits"),
    "tiff-group4": lambda: saved("TIFF", "1", compression="group4"),
    "bmp": lambda: saved("BMP"),
    "bmp-palette": lambda: saved("BMP", "P"),
    "dib": lambda: saved("DIB"),
    "ico": lambda: saved("ICO"),
    "icns": lambda: saved("ICNS"),
    "cur": cursor,
    "dds": lambda: saved("DDS"),
    "blp": lambda: saved("BLP", "P"),
    "tga": lambda: saved("TGA"),
    "tga-packed": lambda: saved("TGA", compression="tga_rle"),
    "sgi": lambda: saved("SGI"),
    "pcx": lambda: saved("PCX"),
    "dcx": multipage_pcx,
    "ppm": lambda: saved("PPM"),
    "ppm-plain": plain_pixmap,
    "pgm": lambda: saved("PPM", "L"),
    "pbm": lambda: saved("PPM", "1"),
    "pfm": float_map,
    "qoi": lambda: saved("QOI"),
    "im": lambda: saved("IM"),
    "msp": lambda: saved("MSP", "1"),
    "xbm": lambda: saved("XBM", "1"),
    "xpm": x_pixmap,
    "spider": lambda: saved("SPIDER", "F"),
    "sun": sun_raster,
    "psd": photoshop,
    "fits": flexible_transport,
    "xv": thumbnail,
    "pixar": pixar,
    "gbr": brush,
    "mcidas": satellite,
    "ftex": texture,
    "imt": image_tool,
    "fli": flic,
}
REFUSED_WHOLE = {"pfm", "spider"}


def damaged(content, random):
    """A copy that ends early, has other bytes, a hole, or too much."""
    content = bytearray(content)
    kind = random.integers(5)
    # Headers are short, and most of what can go wrong is there.
    place = int(random.integers(min(len(content), 200 if random.random() < 0.7 else len(content))))
    if kind == 0:
        return bytes(content[:place])
    if kind == 1:
        for _ in range(int(random.integers(1, 8))):
            content[int(random.integers(min(len(content), 200)))] = int(random.integers(256))
    elif kind == 2:
        content[place : place + 4] = bytes([255]) * 4
    elif kind == 3:
        del content[place : place + int(random.integers(1, 40))]
    else:
        content[place:place] = random.bytes(int(random.integers(1, 40)))
    return bytes(content)


def check_damaged(folder: Path, name: str, count: int) -> int:
    """Decodes `count` damaged files; returns how many were refused."""
    random, path, refused = np.random.default_rng(len(name) + sum(map(ord, name))), folder / "damaged.png", 0
    content = FORMATS[name]()
    for number in range(count):
        path.write_bytes(damaged(content, random))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = decode_image(path)
        except InputError as error:
            refused += 1
            message = str(error)
            assert message.startswith(str(path)), (name, number, message)
            assert message.endswith(("replace or remove it.", "or remove it.")), (name, number, message)
            assert "\n" not in message
        else:
            assert image.shape[0] == 3
    return refused


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_whole_files_are_read(tmp_path, name):
    (tmp_path / "a").write_bytes(FORMATS[name]())
    if name in REFUSED_WHOLE:
        with pytest.raises(InputError, match="mode F"):
            decode_image(tmp_path / "a")
    else:
        # Icons come in sizes of their own.
        assert decode_image(tmp_path / "a").shape == (3, SIDE, SIDE) or name in ("ico", "icns")


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_named(tmp_path, name):
    check_damaged(tmp_path, name, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files_are_read_or_named(tmp_path, name):
    assert check_damaged(tmp_path, name, int(os.environ.get("DAMAGED_FILES", "100"))) > 0
