"""A network in C beside the numba engine and ONNX Runtime in float32, one image a call, one thread, in one run.

    python benchmarks/c_network.py cifar10_reactnet18_w16 [--width 64] [--seconds 10]

All three take turns, each with an untimed call in front; printed are the least and the median of each, and sizes of the
compiled file as `size` says them. ONNX Runtime is left out where it is not installed. With `--width` a network of
random weights of that width takes the place of a pretrained one. `--check N` compares classes and logits on N images
first. `--c_arithmetic fixed` takes whole numbers in place of float32. `--cortex_m4` counts the instructions of an image
on a Cortex-M4, by SysTick under `-icount shift=0`; it needs qemu-system-arm and arm-linux-gnueabihf-gcc.
"""

import argparse
import ctypes
import importlib.util
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.packing import NetworkInfo, load, pack, pretrained_path
from bnfree.packing.c_source.c_format import FLAGS, CFormat, CompiledNetwork

BOARD = Path(__file__).parents[1] / "tests" / "support" / "cortex_m"
CORTEX_M4 = (
    "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-ffreestanding", "-std=c99",
    "-ffp-contract=off", "-O3", "-nostdlib", "-static", "-Wl,--build-id=none",
)  # fmt: skip
EMULATOR = (
    "qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=0",
    "-chardev", "stdio,id=host",
)  # fmt: skip


def network_of(arguments):
    if arguments.width is None:
        return load(pretrained_path(arguments.network), "numba")
    torch.manual_seed(0)
    backbone = {"ReActNet18": ReActNet18, "ReActNetA": ReActNetA}[arguments.backbone]
    stem = {} if arguments.stem is None else {"stem": arguments.stem}
    network = backbone(num_classes=10, width=arguments.width, **stem).eval()
    shape = (3, arguments.image_size, arguments.image_size)
    return pack(network, "float32", info=NetworkInfo((0.5,) * 3, (0.25,) * 3, shape), engine="numba")


def onnx_runtime(packed, folder, images):
    """A call of the network in float32, or None where a package is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnx", "onnxscript")):
        return None
    import onnxruntime

    from bnfree.packing.onnx_model import save_onnx

    save_onnx(packed.layers, packed.info, folder / "network.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "network.onnx", options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: packed.info.normalization(images).numpy()}
    return lambda: session.run(None, given)


def measure(functions, seconds):
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 10:
        for name, function in functions.items():
            function()
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def said(*words, **options):
    """What a program prints."""
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True, **options).stdout


def cortex_m4(folder, images):
    image, program = folder / "image.raw", folder / "board.elf"
    image.write_bytes(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    parts = (f"-I{folder}", "-T", BOARD / "board.ld", BOARD / "board.c", folder / "net.c")
    said("arm-linux-gnueabihf-gcc", *CORTEX_M4, "-o", program, *parts)
    print(said("arm-linux-gnueabihf-size", program))
    semihosting = f"enable=on,target=native,chardev=host,arg=net,arg={image}"
    printed = said(*EMULATOR, "-kernel", program, "-semihosting-config", semihosting)
    print(f"Cortex-M4, QEMU: {int(printed.split()[1]) / 1e6:.1f} million instructions an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="cifar10_reactnet18_w16")
    parser.add_argument("--width", type=int)
    parser.add_argument("--backbone", default="ReActNet18")
    parser.add_argument("--stem", default=None)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--c_arithmetic", default="float")
    parser.add_argument("--cortex_m4", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packed = network_of(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kind = CFormat("net", arithmetic=arguments.c_arithmetic)
        kind.write(packed, folder, "planes")
        compiled = CompiledNetwork(folder, "net")
        said("cc", *FLAGS, "-c", "net.c", cwd=folder)
        print(said("size", "-A", folder / "net.o"))
        images = torch.randint(0, 256, (max(arguments.check, 1), *packed.info.image_shape), dtype=torch.uint8)
        if arguments.check:
            expected, logits = packed(images), compiled(images)
            same = int((expected.argmax(1) == logits.argmax(1)).sum())
            largest = ((expected - logits).abs().amax(1) / expected.abs().amax(1)).max()
            print(f"same class for {same} of {len(images)} images, logits differ by {largest:.1e} of their largest")
        image = images[:1]
        pixels, logits = image.permute(0, 2, 3, 1).contiguous(), torch.empty(packed.num_classes)
        pointers = ctypes.c_void_p(pixels.data_ptr()), ctypes.c_void_p(logits.data_ptr())
        functions = {"C": lambda: compiled._predict(*pointers), "numba": lambda: packed(image)}
        runtime = onnx_runtime(packed, folder, image)
        functions |= {} if runtime is None else {"ONNX Runtime, float32": runtime}
        for name, times in measure(functions, arguments.seconds).items():
            least, median = 1e3 * min(times), 1e3 * statistics.median(times)
            print(f"{name:24s} {least:8.3f} ms at least, median {median:8.3f} ms, {len(times)} calls")
        if arguments.cortex_m4:
            cortex_m4(folder, images[:2])


if __name__ == "__main__":
    main()
