"""Every callback of Lightning comes back from the config that a run saves."""

import inspect
import warnings

import pytest
import yaml
from lightning.pytorch import callbacks

from bnfree.lightning_modules.training.parsed_fit import parse_fit
from bnfree.lightning_modules.training.settings import FitSettings

# What a callback cannot do without.
ARGUMENTS = {
    "EarlyStopping": {"monitor": "val/acc"},
    "StochasticWeightAveraging": {"swa_lrs": 1e-3},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "Timer": {"duration": "00:00:01:00"},
    "GradientAccumulationScheduler": {"scheduling": {4: 2}},
    "OnExceptionCheckpoint": {"dirpath": "somewhere"},
    "ThroughputMonitor": {"batch_size_fn": "builtins.len"},
}
BASES = {"Callback", "BaseFinetuning", "BasePredictionWriter", "Checkpoint", "ProgressBar"}
NAMES = sorted(name for name in callbacks.__all__ if inspect.isclass(getattr(callbacks, name)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BASES])
@pytest.mark.slow
def test_a_callback_is_read_back_as_it_was_given(tmp_path, name):
    given = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": ARGUMENTS.get(name, {})}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"\s*Unable to serialize")
        parsed = parse_fit(FitSettings(configs=("quickstart",), options={"trainer.callbacks": [given]}))
    (saved,) = parsed.settings["trainer"]["callbacks"]
    for key, value in ARGUMENTS.get(name, {}).items():
        # Keys of a mapping are text in the file; the type of the argument makes them numbers again.
        expected = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        assert saved["init_args"][key] == expected
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(parsed.settings))
    assert parse_fit(FitSettings(configs=(file,))).settings["trainer"] == parsed.settings["trainer"]
