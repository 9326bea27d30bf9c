"""Every command and every Python block of the README and docs/ works as it is printed; none is left out in silence.

Of commands that train, configs and options are parsed: test_configs.py trains by each config's own command, shortened.
The others that a run and images suffice for are run. Of the rest the options are looked up in the manuals.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from small_data import write_cifar, write_fashion_mnist, write_image
from small_digits import train_digits

from bnfree import lightning_modules
from bnfree.backbones import ReActNet18
from bnfree.lightning_modules import LotterySettings
from bnfree.lightning_modules.cli import main
from bnfree.lightning_modules.command.recipe import words_by_stage
from bnfree.lightning_modules.command.subcommands import SUBCOMMANDS
from bnfree.lightning_modules.experiments.recipe_file import read_recipe
from bnfree.lightning_modules.experiments.stage_results import StageResult
from bnfree.lightning_modules.experiments.sweep import SweepResult, SweepRun
from bnfree.lightning_modules.training.config.parser import CommandParser
from bnfree.lightning_modules.training.config.sources import complete_arguments
from bnfree.lightning_modules.training.network import add_network_arguments
from bnfree.tickets import Ticket, prune, rewind, save_ticket, take_snapshot

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "pretrained" / "README.md"]
# Environments are made by .ci/run, TensorBoard serves until it is stopped, test_own_project.py runs what is own_*, and
# the tests of the C export compile it.
ELSEWHERE = re.compile(
    r"python3 -m venv |(\.venv/bin/)?(pip|pytest|tensorboard) |(mkdir|cp) |python own_|make |device/|.*timm\.yaml"
)
VARIABLES = {"norm": "bn_free", "seed": "0", "rate": "5e-3"}
PLACES = {"DIR": "data", "RUN": "run", "STEP1": "run", "TEACHER": "run", "CONFIG": "quickstart", "NAME": "cutout"}
TRAIN = ("fit", "recipe", "sweep", "lottery run", "lottery early-bird")
LOOK = ("test", "predict", "summary", "export", "report", "configs")
# What experiments have beside the options of a fit.
OWN = ("--over", "--run_dir", "--seeds", "--stages", "--carry", "--controls", "--density")


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def printed(document):
    """The words of each command of a document, in order, with names that are there in place of the capitals."""
    indented = re.findall(r"^    bnfree .*\n(?:^ {4,}.*\n)*", document.read_text(), re.MULTILINE)
    text = "\n".join([*blocks(document, "bash"), *indented]).replace("\\\n", " ").replace(".venv/bin/bnfree", "bnfree")
    text = re.sub(r"^ {4}", "", text, flags=re.MULTILINE)
    text = re.sub(r"for \w+ in [^;]*; do|\bdone;?", "", text)
    text = re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], text)
    text = re.sub(rf"\b({'|'.join(PLACES)})\b", lambda found: PLACES[found[1]], text)
    for command in re.split(r"\n| && ", text):
        words = shlex.split(command, comments=True)
        if words and not ELSEWHERE.match(" ".join([*words, ""])):
            yield words


def action_of(words):
    return " ".join(words[1:3] if words[1] in ("lottery", "ticket") else words[1:2])


ALL = [(document.name, words) for document in DOCUMENTS for words in printed(document)]
COMMANDS = [(name, words, action_of(words)) for name, words in ALL if words[0] == "bnfree"]


@pytest.fixture(scope="module")
def working_directory(tmp_path_factory):
    """A directory with a run, data, a ticket and pictures under the names that the documents have for them."""
    place = tmp_path_factory.mktemp("printed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train_digits("run", "--test_after_fit=true")
        for folder in (place, place / "data"):
            write_cifar(folder, 10)
        write_fashion_mnist(place / "data")
        for picture in ("cat.png", "cat.jpg", "image.png", "photos/a.png"):
            write_image(place / picture, 32, 32, 0)
        for label in range(2):
            write_image(place / "data" / "train" / f"class{label}" / "0.png", 32, 32, label)
        network = ReActNet18(num_classes=10, width=4)
        start = take_snapshot(network)
        rewind(network, start, prune(network, density=0.5, score="standardized", scope="global"))
        ticket = Ticket.of(network, rewind=start, score="standardized", scope="global", density=0.5)
        save_ticket(ticket, place / "ticket.pt")
        for name in ("signed.pt", "small.ckpt"):
            (place / name).write_bytes((place / "run" / "checkpoints" / "last.ckpt").read_bytes())
        (callback,) = [code for code in blocks(DOCUMENTS[0], "python") if code.startswith("# my_callbacks.py")]
        (place / "my_callbacks.py").write_text(callback)
    return place


@pytest.fixture
def here(working_directory, monkeypatch):
    monkeypatch.chdir(working_directory)
    monkeypatch.setattr(sys, "path", [str(working_directory), *sys.path])
    return working_directory


def test_every_command_is_known_and_scripts_have_the_options_that_are_printed():
    assert len(COMMANDS) > 40
    assert {words[1] for _, words, _ in COMMANDS} <= set(SUBCOMMANDS)
    for name, words in ALL:
        if words[0] != "bnfree":
            assert words[0] == "python", (name, words)
            own = words[: words.index("--")] if "--" in words else words
            script = (ROOT / words[1]).read_text()
            assert not [word for word in own if word.startswith("--") and f'"{word}"' not in script], (name, words)


def options_in_manual(action, capsys):
    with contextlib.suppress(SystemExit):
        main([*action.split(), "--help"])
    return set(re.findall(r"--[A-Za-z][\w-]*", capsys.readouterr().out))


def test_other_commands_have_the_options_that_are_printed(capsys, monkeypatch):
    for name, words, action in COMMANDS:
        if action not in (*TRAIN, *LOOK):
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert options <= options_in_manual(action, capsys), (name, words)


def fits_of(action, words):
    """The options of each training that a command would make."""
    if action == "fit":
        return [words]
    file, *words = words
    given = zip(words, ["", *words], strict=False)
    words = [word for word, before in given if before not in OWN and word.partition("=")[0] not in OWN]
    if action == "recipe":
        stages = read_recipe(file)
        shared, alone = words_by_stage(words, [stage.name for stage in stages])
        return [[*(f"--config={config}" for config in s.configs), *shared, *alone[s.name]] for s in stages]
    configs = [file] if action == "sweep" else LotterySettings.read(file).fit.configs
    return [[*(f"--config={config}" for config in configs), *words]]


@pytest.mark.slow
def test_commands_that_train_are_parsed_with_all_they_name(here):
    parser = CommandParser()
    add_network_arguments(parser)
    count = 0
    for name, words, action in COMMANDS:
        if action in TRAIN:
            for options in fits_of(action, words[1 + len(action.split()) :]):
                try:
                    parser.parse_args(complete_arguments(["fit", *options])[1:])
                except BaseException as error:
                    raise AssertionError(f"{name}: {shlex.join(words)}: {error}") from error
                count += 1
    assert count > 20


@pytest.mark.slow
def test_commands_that_look_at_a_run_are_run(here, capsys):
    run: list[list[str]] = []
    for name, words, action in COMMANDS:
        if action not in LOOK or words in run or any(word.startswith("runs/") for word in words):
            continue
        if "qonnx" in " ".join(words) and importlib.util.find_spec("qonnx") is None:
            continue
        for file in here.glob("run/checkpoints/*.safetensors"):
            if action == "export" and "--format" not in words:
                file.unlink()
        if "--register" in words:
            # Two ways to register one network are printed.
            (Path(os.environ["XDG_CONFIG_HOME"]) / "bnfree" / "registry.json").unlink(missing_ok=True)
        assert main(words[1:]) == 0, f"{name}: {shlex.join(words)}: {capsys.readouterr().err}"
        run.append(words)
    assert len(run) > 10


def execute(code, **names):
    exec(compile(code, "<printed>", "exec"), {"__name__": "printed", **names})


def block(document, beginning):
    (code,) = [code for code in blocks(ROOT / document, "python") if beginning in code]
    return code


@pytest.mark.slow
def test_packed_networks_in_python(here, monkeypatch, capsys):
    execute(block("README.md", "network.predict("))
    assert len(capsys.readouterr().out.splitlines()) == 3
    execute(block("README.md", "packed.save"), torch=torch, network=ReActNet18(num_classes=10, width=8))
    assert (here / "network.safetensors").is_file()
    execute(block("pretrained/README.md", "network.info"))
    execute(block("docs/packing.md", "pixels = "))
    execute(block("docs/packing.md", "class Constants"))
    # Timing is a test of its own.
    monkeypatch.setattr(lightning_modules, "bench", _Anything(), raising=False)
    (here / "run" / "checkpoints" / "best.safetensors").unlink(missing_ok=True)
    execute(block("docs/packing.md", "bench(").replace("RUN", "run"))


class _Anything:
    """Stands for a function, its result, and all that is in it."""

    def __call__(self, *arguments):
        return self

    def __getitem__(self, key):
        return self

    def __getattr__(self, name):
        return self


@pytest.mark.slow
def test_tickets_in_python(here):
    code = block("docs/elastic_and_owned_tickets.md", "sign_ticket")
    execute(code.replace("num_classes=10,", "num_classes=10, width=4,").replace("=100)", "=100, width=4)"))


@pytest.mark.slow
def test_a_step_that_diverged_in_python(here, capsys):
    short = ["--trainer.limit_train_batches=4", "--model.backbone.width=4", "--data.image_size=8"]
    assert main(["fit", "--config=quickstart", *short, "--model.optimizer.lr=1e30", "--run_dir=diverged"]) == 3
    capsys.readouterr()
    execute(block("docs/reliability.md", "replay(").replace("RUN", "diverged"))
    assert capsys.readouterr().out.strip() != "None"


def test_a_sweep_in_python(monkeypatch, capsys):
    given = []

    def sweep(settings):
        given.append(settings)
        runs = [
            SweepRun(values, Path(), StageResult(1, 0.5, 0.6, {"test/acc": 0.7})) for values in settings.combinations()
        ]
        return SweepResult(Path("runs"), runs)

    monkeypatch.setattr(lightning_modules, "run_sweep", sweep, raising=False)
    execute(block("docs/sweeps.md", "run_sweep("))
    assert given[0].fit.configs == "quickstart"
    assert capsys.readouterr().out.splitlines()[0] == "{'model.optimizer.lr': '0.001'} [0.6, 0.6] [0.7, 0.7]"


@pytest.mark.slow
def test_a_search_with_optuna(here, capsys):
    pytest.importorskip("optuna_integration")
    short = (
        "limit_train_batches=2, limit_val_batches=1, enable_progress_bar=False, enable_model_summary=False, max_epochs"
    )
    code = block("docs/sweeps.md", "optuna").replace("n_trials=20", "n_trials=2").replace("max_epochs", short)
    execute(code.replace("width=8", "width=4"))
    assert "clip_factor" in capsys.readouterr().out
    assert (here / "search.db").is_file()


def test_yaml_is_what_it_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (recipe,) = [text for text in blocks(ROOT / "README.md", "yaml") if text.startswith("stages:")]
    Path("mine.yaml").write_text(recipe)
    first, second = read_recipe("mine.yaml")
    assert (first.init_from, second.init_from, second.options) == (None, "step1", {"trainer.max_epochs": 100})
    (ticket,) = blocks(ROOT / "docs" / "lottery.md", "yaml")
    Path("ticket.yaml").write_text(ticket)
    parser = CommandParser()
    add_network_arguments(parser)
    parsed = parser.parse_args(complete_arguments(["fit", "--config=quickstart", "--config=ticket.yaml"])[1:])
    assert parsed.trainer.callbacks[-1].class_path == "bnfree.callbacks.LotteryTicket"


def test_every_block_is_run_somewhere():
    run_here = {"packing.md": 3, "elastic_and_owned_tickets.md": 1, "reliability.md": 1, "sweeps.md": 2}
    # Four in test_readme.py, two here, the callback in test_documentation.py, the last in test_reference.py.
    run_here |= {"README.md": 8}
    # What is fed to hls4ml needs hls4ml, which is in no extra.
    run_here |= {"devices.md": 1}
    others = [path.read_text() for path in ROOT.glob("tests/**/test_*.py") if path != Path(__file__)]
    for document in DOCUMENTS[:-1]:
        count = len(blocks(document, "python"))
        if count != run_here.get(document.name, 0):
            assert any(document.name in text for text in others), f"the Python of {document.name} is run by no test"
