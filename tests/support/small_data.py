"""Writers of small data sets in the layouts of the real ones."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_pickle(path: Path, content: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def write_cifar(root: Path, classes: int, images: int = 20, protocol: int = 2) -> dict[str, dict]:
    """Write the published layout with few images; returns the content per file."""
    random = np.random.default_rng(classes)
    if classes == 10:
        names, folder = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], root / "cifar-10-batches-py"
        write_pickle(folder / "batches.meta", {"label_names": [f"c{i}" for i in range(10)]})
    else:
        names, folder = ["train", "test"], root / "cifar-100-python"
        write_pickle(folder / "meta", {"fine_label_names": [f"c{i}" for i in range(100)], "coarse_label_names": []})
    content = {}
    for name in names:
        labels = random.integers(0, classes, images).tolist()
        content[name] = {
            "data": random.integers(0, 256, (images, 3072), np.uint8),
            "filenames": ["x.png"] * images,
            "labels" if classes == 10 else "fine_labels": labels,
        }
        write_pickle(folder / name, content[name], protocol)
    return content


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_fashion_mnist(folder: Path, packed: bool = True, num_labels: int | None = None) -> dict[str, np.ndarray]:
    """Write the four idx files with 50 training and 20 test images; returns the arrays per file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {}
    for prefix, n in (("train", 50), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = random.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = random.integers(0, 10, num_labels or n).astype(np.uint8)
    for name, values in arrays.items():
        content = idx_bytes(values)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return arrays


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
