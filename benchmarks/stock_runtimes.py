"""What stock runtimes make of a binary network: size, latency of one image on one thread, agreement of classes.

python benchmarks/stock_runtimes.py [--model NAME|FILE] [--folder DIR] [--images 1000] [--seconds 2]

The packed network (numba, which is the reference of all), OpenVINO's binary convolution, the C export compiled here,
ONNX Runtime on float32 and on what its own tool quantises to 8 bits, and ExecuTorch with XNNPACK. What is not installed
is left out with a sentence. Calls take turns; medians of process CPU time. Images: digits for a network of 16x16 grey
pixels, those of --folder, else noise.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bnfree.datamodules import DigitsDataModule
from bnfree.lightning_modules.deployment.bench import describe_machine
from bnfree.packing import PackedNetwork, load
from bnfree.packing.openvino_engine import OpenVINONetwork, save_openvino
from bnfree.packing.unpacked_network import UnpackedNetwork
from bnfree.packing.zoo import pretrained_path

Forms = dict[str, tuple[int, Callable[[Tensor], Tensor]]]
CALIBRATION = 100


def real_images(packed: PackedNetwork, count: int, folder: str | None) -> tuple[Tensor, str]:
    """Normalised images, and what they are."""
    shape = packed.info.image_shape
    if shape == (1, 16, 16):
        data = DigitsDataModule(image_size=16)
        data.setup("fit")
        data.setup("test")
        batches = [images for images, _ in data.test_batches(count)]
        batches += [images for images, _ in data.validation_batches(count)]
        batches += [data.on_after_batch_transfer(batch, 0)[0] for batch in data.train_dataloader()]
        return torch.cat(batches)[:count], "digits"
    if folder is not None:
        files = sorted(file for file in Path(folder).rglob("*") if file.suffix in (".jpg", ".png"))
        chosen = [files[i * len(files) // count] for i in range(min(count, len(files)))]
        return packed.info.normalization(packed.preprocess(chosen)), f"of {Path(folder).name}"
    return torch.randn(count, *shape), "noise"


def onnx_runtime(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def quantised(path: Path, images: Tensor) -> Path:
    """The model in 8 bits, activations by their extremes on some images, weights by channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(images[:CALIBRATION].split(1))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared, found = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(found), Reader(), per_channel=True, weight_type=QuantType.QInt8)
    return found


def executorch(network: UnpackedNetwork, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.export(network, (example,))
    made = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(made.buffer)
    method = Runtime.get().load_program(str(path)).load_method("forward")

    def run(images: Tensor) -> Tensor:
        return torch.cat([method.execute([image])[0].clone() for image in images.split(1)])

    return run


def c_export(packed: PackedNetwork, folder: Path) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Size of the object file, and a function by ctypes."""
    from bnfree.packing.formats import export_format

    kind = export_format("c")
    kind.write(packed, folder, "planes")
    objects = folder / "network.o"
    source = next(file for file in folder.glob("*.c") if file.name != "main.c")
    subprocess.run(["cc", "-O3", "-march=native", "-std=c99", "-c", str(source), "-o", str(objects)], check=True)
    sizes = subprocess.run(["size", str(objects)], check=True, capture_output=True, text=True).stdout.splitlines()[1]
    return int(sizes.split()[0]), kind.read(folder, "auto")


def forms(
    packed: PackedNetwork, path: Path, images: Tensor, folder: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names, and what gives size and function of each."""
    network, shape = UnpackedNetwork(packed.layers).eval(), tuple(images.shape[1:])

    def openvino() -> object:
        save_openvino(packed.layers, packed.info, folder / "a.xml", shape)
        size = (folder / "a.xml").stat().st_size + (folder / "a.bin").stat().st_size
        return size, OpenVINONetwork.of_layers(packed.layers)

    def float32() -> object:
        from bnfree.packing.onnx_model import save_onnx

        save_onnx(packed.layers, packed.info, folder / "a.onnx")
        return (folder / "a.onnx").stat().st_size, onnx_runtime(folder / "a.onnx")

    def int8() -> object:
        with contextlib.redirect_stderr(io.StringIO()):
            found = quantised(folder / "a.onnx", images)
        return found.stat().st_size, onnx_runtime(found)

    def program() -> object:
        run = executorch(network, images[:1], folder / "a.pte")
        return (folder / "a.pte").stat().st_size, run

    yield "packed, numba", lambda: (path.stat().st_size, load(path, "numba"))
    yield "C export (`-O3 -march=native`; code and constants)", lambda: c_export(packed, folder / "network")
    yield "OpenVINO, binary convolution", openvino
    yield "ONNX Runtime, float32", float32
    yield "ONNX Runtime, int8 by its quantize_static", int8
    yield "ExecuTorch, XNNPACK, float32", program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--folder", help="of image files")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(given.model) if Path(given.model).is_file() else pretrained_path(given.model)
    packed = load(path, "torch")
    images, what = real_images(packed, given.images, given.folder)
    found: Forms = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in forms(packed, path, images, Path(folder)):
            try:
                found[name] = make()  # type: ignore[assignment]
            # Whatever keeps a runtime from loading is what the table says.
            except Exception as error:
                print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        reference = packed(images).argmax(1)
        agreement = {name: int((run(images).argmax(1) == reference).sum()) for name, (_, run) in found.items()}
        times: dict[str, list[float]] = {name: [] for name in found}
        one, end = images[:1].contiguous(), time.monotonic() + given.seconds * len(found)
        while time.monotonic() < end:
            for name, (_, run) in found.items():
                # Of all threads: a machine that others use delays every runtime that waits for a second thread.
                start = time.process_time()
                run(one)
                times[name].append(time.process_time() - start)
        machine = describe_machine()
        print(f"{packed}, {len(images)} images ({what}); {machine.processor}, one thread, load {machine.load}")
        versions = [m for m in ("onnxruntime", "openvino", "executorch") if importlib.util.find_spec(m)]
        print(", ".join(f"{m} {importlib.metadata.version(m)}" for m in versions))
        print(f"| runtime | bytes | CPU ms, one image | same class as packed, of {len(images)} |")
        print("| --- | --- | --- | --- |")
        for name, (size, _) in found.items():
            print(f"| {name} | {size:,} | {1e3 * statistics.median(times[name]):.3f} | {agreement[name]} |")


if __name__ == "__main__":
    main()
