"""A lottery of seconds: a network of width 2 on 64 digits, and what its directory holds."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parents[2]
NETWORK = """\
model:
  class_path: bnfree.lightning_modules.ImageClassifier
  init_args:
    backbone:
      class_path: bnfree.backbones.ReActNet18
      init_args: {num_classes: 10, in_channels: 1, width: 2, blocks_per_stage: [1, 1, 1, 1]}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
    calibration_images: 16
data:
  class_path: bnfree.datamodules.DigitsDataModule
  init_args: {batch_size: 16, limit_train: 64, val_split: 32}
trainer:
  max_epochs: 2
  accelerator: cpu
  log_every_n_steps: 2
  enable_model_summary: false
test_after_fit: true
"""
LOTTERY = """\
config: network.yaml
lottery:
  densities: [0.5, 0.2, 0.1]
"""


def write_lottery(directory, **settings):
    """Writes the two files; `settings` are those of the section lottery."""
    (directory / "network.yaml").write_text(NETWORK)
    content = yaml.safe_load(LOTTERY)
    content["lottery"] |= settings
    (directory / "lottery.yaml").write_text(yaml.safe_dump(content))


def last(directory):
    """The checkpoint that a level has ended with."""
    return torch.load(Path(directory) / "checkpoints" / "last.ckpt", weights_only=True)


def weights(directory):
    """The network's weights after the last step, without masks."""
    state = {name.removeprefix("backbone."): value for name, value in last(directory)["state_dict"].items()}
    return {name: value for name, value in state.items() if not name.endswith(".mask")}


def finished(directory):
    """The mark of a level."""
    return yaml.safe_load((Path(directory) / "finished.yaml").read_text())


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def start(project, *arguments, action=("run", "lottery.yaml")):
    """The command as a process of its own."""
    script = project / "command.py"
    script.write_text("import sys\nfrom bnfree.lightning_modules.cli import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), "lottery", *action, *arguments],
        cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
