"""Packed networks in C on ARM: in user-mode emulation, and on a Cortex-M4 board under system emulation."""

import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from c_networks import COMPILER, STRICT, answers, example, needs_compiler, raw, run, write_c
from packable_networks import random_network

from bnfree.backbones import ReActNetA
from bnfree.datamodules import DigitsDataModule
from bnfree.packing import NetworkInfo, load, pretrained_path
from bnfree.packing.folding import fold

pytestmark = needs_compiler
BOARD = Path(__file__).parents[2] / "support" / "cortex_m"
HOW = (
    "apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf "
    "libc6-dev-armhf-cross"
)
HOW_BOARD = "apt-get install qemu-system-arm gcc-arm-linux-gnueabihf"
TARGETS = {
    "64 bits": ("aarch64-linux-gnu-gcc", "qemu-aarch64", ()),
    "32 bits": ("arm-linux-gnueabihf-gcc", "qemu-arm", ()),
    "32 bits with NEON": ("arm-linux-gnueabihf-gcc", "qemu-arm", ("-mfpu=neon",)),
}
CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-ffreestanding")
MACHINE = (
    "-M",
    "mps2-an386",
    "-nographic",
    "-monitor",
    "none",
    "-serial",
    "none",
    "-icount",
    "shift=0",
    "-chardev",
    "stdio,id=host",
)


@pytest.mark.parametrize("arithmetic", ["float", pytest.param("fixed", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", TARGETS)
def test_user_mode_emulation_prints_what_this_processor_does(tmp_path, target, arithmetic):
    compiler, emulator, flags = TARGETS[target]
    if not (shutil.which(compiler) and shutil.which(emulator)):
        pytest.skip(f"{compiler} or {emulator} is missing; {HOW}")
    options = {"width": 4, "density": 0.2, "backbone": ReActNetA} if flags else {"width": 5, "binary_shortcut": True}
    network = random_network(5, **options)
    info = NetworkInfo((0.5,) * 3, (0.25,) * 3, (3, 15, 20))
    pixels = torch.randint(0, 256, (2, 3, 15, 20), dtype=torch.uint8)
    write_c(tmp_path, fold(network), info, arithmetic)
    image = raw(tmp_path / "image.raw", pixels)
    here = run(example(tmp_path, COMPILER, "-O1"), image)
    assert run(emulator, example(tmp_path, compiler, "-O1", "-static", *flags), image) == here


@pytest.mark.parametrize("arithmetic", ["float", pytest.param("fixed", marks=pytest.mark.slow)])
def test_a_cortex_m4_board_classifies_ten_digits_as_the_packed_file_does(tmp_path, arithmetic):
    # Without a C library, a compiler for Linux will do.
    compiler = next((name for name in ("arm-linux-gnueabihf-gcc", "arm-none-eabi-gcc") if shutil.which(name)), None)
    if compiler is None or shutil.which("qemu-system-arm") is None:
        pytest.skip(f"arm-linux-gnueabihf-gcc or qemu-system-arm is missing; {HOW_BOARD}")
    packed = load(pretrained_path("digits"), "torch")
    data = DigitsDataModule(image_size=packed.info.image_shape[1])
    images, labels = next(islice(data.test_batches(10), 1))
    pixels = packed.info.normalization.pixels(images)
    write_c(tmp_path, packed.layers, packed.info, arithmetic)
    image, program = raw(tmp_path / "image.raw", pixels), tmp_path / "board.elf"
    script = ("-nostdlib", "-static", f"-I{tmp_path}", "-T", BOARD / "board.ld", "-Wl,--build-id=none")
    run(compiler, *STRICT, *CORTEX_M4, "-O2", "-o", program, *script, BOARD / "board.c", tmp_path / "net.c")
    semihosting = f"enable=on,target=native,chardev=host,arg=net,arg={image}"
    printed = run("qemu-system-arm", *MACHINE, "-kernel", program, "-semihosting-config", semihosting, timeout=100)
    rows = torch.tensor([[int(word) for word in line.split()] for line in printed.splitlines()])
    classes, instructions, logits = (
        rows[:, 0],
        rows[:, 1],
        rows[:, 2:].to(torch.uint32).contiguous().view(torch.float32),
    )
    assert torch.equal(classes, packed(pixels).argmax(1))
    assert (classes == labels).float().mean() >= 0.9
    here = run(example(tmp_path, COMPILER, "-O1"), image)
    assert torch.equal(answers(here, 10)[1], logits)
    # In float32 all images take the same way; a tick is 40 instructions. Whole numbers are multiplied where negative.
    assert (instructions - instructions[0]).abs().max() <= (40 if arithmetic == "float" else 20_000)
    assert 0 < instructions[0] < 20_000_000
