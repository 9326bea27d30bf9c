"""Every callback of bnfree with arguments and a network that it is for."""

import yaml

import bnfree.callbacks
from bnfree.lightning_modules.training.config.shipped import shipped_plugins

# What a callback needs beyond its defaults, of itself and of the network.
ARGUMENTS = {"MultiPrizeTicket": {"density": 0.5}, "EarlyBird": {"density": 0.5}}
NETWORKS = {
    "EstimatorSchedule": {"estimator": "reste", "weight_estimator": "ede"},
    "AlphaBatchNorm": {"norm": "batch_norm"},
}


def built(name):
    """A callback as the overlay that is named like it has it, or with its defaults; and the network that it is for."""
    for path in shipped_plugins().values():
        said = yaml.safe_load(path.read_text())
        for callback in said.get("trainer", {}).get("callbacks+", []):
            if callback["class_path"].endswith(f".{name}"):
                backbone = said.get("model", {}).get("init_args", {}).get("backbone", {}).get("init_args", {})
                return getattr(bnfree.callbacks, name)(**callback.get("init_args", {})), backbone
    return getattr(bnfree.callbacks, name)(**ARGUMENTS.get(name, {})), NETWORKS.get(name, {})
