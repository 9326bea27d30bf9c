"""What `compat` relies on, provoked in the installed releases of Lightning, jsonargparse and torch."""

import warnings
from typing import Optional, Union

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from bnfree.lightning_modules import compat
from bnfree.lightning_modules.compat import SteppedCLI
from bnfree.lightning_modules.training.config.parser import CommandParser, ParseFailure


class Block(nn.Module):
    """A module with arguments of several kinds."""

    def __init__(self, width: int, kind: str = "a", inner: nn.Module | None = None) -> None:
        super().__init__()


def parser():
    parser = CommandParser(allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--number", type=int)
    parser.add_argument("--name", type=str, required=True)
    parser.add_subclass_arguments(nn.Module, "block", required=False)
    return parser


def complaint(*words):
    with pytest.raises(ParseFailure) as caught:
        parser().parse_args(["--name=x", *words] if "--noname" not in words else [])
    return caught.value.message


BLOCK = f"--block={__name__}.Block"


@pytest.mark.parametrize(
    ("pattern", "words", "found"),
    [
        (compat.REQUIRED, ["--noname"], "name"),
        (compat.UNRECOGNIZED, ["--nmber=1"], "--nmber=1"),
        (compat.WITHOUT_VALUE, ["--number"], "--number"),
        (compat.NOT_DOTTED, ["--block=Blok"], "Blok"),
        (compat.NO_ATTRIBUTE, ["--block=torch.nn.Conv"], "torch.nn"),
        (compat.NO_MODULE, ["--block=torsch.nn.Conv2d"], "torsch"),
        (compat.NO_SUBCLASS, ["--block=torch.optim.Adam"], None),  # another release names the path here
        (compat.UNKNOWN_INIT_ARGUMENT, [BLOCK, "--block.widht=3"], "widht"),
        (compat.EXPECTED_TYPE, ["--number=one"], "int"),
        (compat.GIVEN_VALUE, ["--number=one"], "one"),
        (compat.PARSER_KEY, [BLOCK, "--block.width=one"], "block"),
    ],
)
def test_complaints_of_the_parser_are_recognised(pattern, words, found):
    match = pattern.search(complaint(*words))
    assert match is not None, complaint(*words)
    assert (match[1] and match[1].strip("'\"")) == found


def test_complaints_about_a_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("numbr: 3\n")
    command = CommandParser()
    command.add_subcommands().add_subcommand("fit", parser())
    with pytest.raises(ParseFailure) as caught:
        command.parse_args(["fit", "--name=x", f"--config={file}"])
    assert compat.UNKNOWN_KEY.search(caught.value.message)[1] == "numbr"
    file.write_text("number: [\n")
    assert complaint(f"--config={file}").startswith(compat.NO_CONFIG)


def test_names_and_help_of_arguments():
    parsing = parser()
    assert {"--number", "-c", "--config"} <= set(compat.option_strings(parsing))
    assert {"number", "block"} <= set(compat.argument_names(parsing))
    assert "--number" in parsing.format_help()
    compat.hide(parsing, lambda name: name == "number")
    assert "--number" not in parsing.format_help()


def test_an_integer_stays_one_in_whatever_order_a_union_is_kept():
    fraction_first = Optional[Union[float, int]]  # noqa: UP007, UP045 - unions of typing are kept, others are not
    parsing = CommandParser()
    parsing.add_argument("--share", type=fraction_first)
    compat.integers_first(parsing)
    for text, value in (("1", 1), ("0.5", 0.5), ("1.0", 1.0), ("null", None)):
        share = parsing.parse_args([f"--share={text}"]).share
        assert (share, type(share)) == (value, type(value))


def test_the_steps_of_the_command_line_are_called_in_order(monkeypatch):
    class Steps(SteppedCLI):
        steps: list[str] = []

        def read_checkpoint(self):
            self.steps.append(f"checkpoint of {self.config.subcommand}")

        def seed(self):
            self.steps.append("seed")

        def instantiate_classes(self):
            self.steps.append("build")

        def run_subcommand(self, subcommand):
            assert subcommand in self.subcommand_parsers
            self.steps.append(f"run {subcommand}")

    monkeypatch.setattr("sys.argv", ["bnfree"])
    Steps(LightningModule, save_config_callback=None, args=["test"])
    assert Steps.steps == ["checkpoint of test", "seed", "build", "run test"]


def test_metrics_of_an_earlier_run_are_kept(tmp_path):
    (tmp_path / "other.txt").write_text("kept")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer = compat.KeepingWriter(str(tmp_path))
    writer.start_with([{"step": "3", "loss": "0.5"}])
    writer.log_metrics({"loss": 0.25}, step=4)
    writer.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["loss,step", "0.5,3", "0.25,4"]
    writer.start_with([])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt"]


class Stateful(Callback):
    def state_dict(self):
        return {}


@pytest.mark.parametrize(
    ("provoke", "text"),
    [
        (lambda: nn.Linear(2, 2).load_state_dict({}), compat.WRONG_STATE_DICT),
        (lambda: Trainer(callbacks=[Stateful(), Stateful()], accelerator="cpu", logger=False), "Stateful"),
        (lambda: Trainer(accelerator="cpux"), "accelerator"),
        (lambda: Trainer(accelerator="cpu", strategy="ddpx"), "strategy"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_texts_of_lightning_and_torch(provoke, text):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        provoke()
    message = " ".join(str(caught.value).split())
    match = compat.WRONG_ACCELERATOR_OR_STRATEGY.search(message) or compat.CALLBACK_TWICE.search(message)
    assert message.startswith(text) or (match is not None and match[1] == text)


def test_a_message_that_is_left_out_is_one_of_lightnings(tmp_path):
    state = {"dirpath": "elsewhere", "best_model_path": "", "best_model_score": torch.tensor(0.0)}
    with pytest.warns(UserWarning, match="The dirpath has changed from"):
        ModelCheckpoint(tmp_path).load_state_dict(state)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        compat.leave_out_messages("test")
        ModelCheckpoint(tmp_path).load_state_dict(state)
    assert [str(warning.message) for warning in shown] == []
