"""Loggers of one's own beside those of the project, and what all of them are told."""

import csv
import importlib.util

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import (
    STATUS_SUCCESS,
    ColParams,
    Interval,
    ListSessionGroupsRequest,
)
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from bnfree.callbacks.run_files import run_directory
from bnfree.lightning_modules import FitSettings, fit
from bnfree.lightning_modules.training.hyperparameters import flat_hyperparameters
from tests.lightning_modules.conftest import CONFIG, MODULE

LOGGER = """
from lightning.pytorch.loggers import Logger

RECORDS = []


class Service(Logger):
    save_dir, name, version = ".", "service", 0

    def __init__(self, stubborn: bool = False):
        super().__init__()
        self.stubborn, self.hyperparameters, self.metrics = stubborn, {}, {}
        RECORDS.append(self)

    def log_hyperparams(self, params):
        if self.stubborn:
            raise ValueError("Changing param values is not allowed")
        self.hyperparameters.update(params)

    def log_metrics(self, metrics, step=None):
        self.metrics.update(metrics)
"""


@pytest.fixture
def service(project, monkeypatch):
    """A logger class in the project's directory; returns those that were made."""
    (project / "toy_project.py").write_text(MODULE)
    (project / "toy.yaml").write_text(CONFIG)
    (project / "toy_service.py").write_text(LOGGER)
    monkeypatch.syspath_prepend(str(project))
    module = importlib.import_module("toy_service")
    module.RECORDS.clear()
    return module.RECORDS


def last_value(directory, name):
    with (directory / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)][-1]


@pytest.mark.parametrize("sign", ["=", "+="])
def test_a_logger_is_added_to_ours(project, bnfree, sign):
    arguments = ("--config", "toy.yaml", "--run_dir=run", f"--trainer.logger{sign}CSVLogger")
    assert bnfree("fit", *arguments)[0] == 0
    assert list((project / "run").glob("events.out.tfevents.*"))
    own = project / "run" / "lightning_logs" / "version_0"
    assert last_value(own, "val/acc") == last_value(project / "run", "val/acc")
    assert not (project / "lightning_logs").exists()
    # A config serves other runs, wherever they lie.
    (logger,) = _as_list(yaml.safe_load((project / "run" / "config.yaml").read_text())["trainer"]["logger"])
    assert logger["init_args"]["save_dir"] == "RUN_DIR"


def _as_list(value):
    return value if isinstance(value, list) else [value]


def test_every_logger_gets_the_hyperparameters_and_the_last_metrics(service, bnfree, project):
    assert bnfree("fit", "--config", "toy.yaml", "--run_dir=run", "--trainer.logger=toy_service.Service",
                  "--test_after_fit=true", "--model.backbone.width=6")[0] == 0  # fmt: skip
    expected = {
        "seed_everything": 0, "model/class_path": "toy_project.ToyModule", "model/backbone/width": 6,
        "model/optimizer/class_path": "torch.optim.Adam", "model/optimizer/lr": 0.05, "data/batch_size": 8,
        "trainer/max_epochs": 2, "trainer/callbacks/ToyCallback/factor": 1.0, "run_dir": "run",
    }  # fmt: skip
    (logger,) = service
    assert expected.items() <= logger.hyperparameters.items()
    assert expected.items() <= yaml.safe_load((project / "run" / "hparams.yaml").read_text()).items()
    for name in ("val/acc", "train/loss", "test/acc"):
        assert logger.metrics[name] == pytest.approx(last_value(project / "run", name))


def test_the_hparams_page_of_tensorboard_filters_runs(project):
    for width in (3, 5):
        fit(FitSettings("toy.yaml", {"model.backbone.width": width}, run_dir=f"runs/{width}"))
    # As its server reads and filters: one session for each run, with the last value of each metric.
    runs = EventMultiplexer().AddRunsFromDirectory(str(project / "runs"))
    runs.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(project / "runs"))))
    wide = ColParams(hparam="model/backbone/width", filter_interval=Interval(min_value=4, max_value=9))
    both = ColParams(hparam="model/optimizer/class_path")
    for columns, expected in (([wide], {5}), ([both], {3, 5})):
        request = ListSessionGroupsRequest(
            allowed_statuses=[STATUS_SUCCESS], col_params=columns, start_index=0, slice_size=10, include_metrics=True
        )
        response = Handler(RequestContext(), context, "", request).run()
        found = {int(group.hparams["model/backbone/width"].number_value): group for group in response.session_groups}
        assert set(found) == expected
        for width, group in found.items():
            values = {metric.name.tag: metric.value for metric in group.metric_values}
            assert values["val/acc"] == pytest.approx(last_value(project / "runs" / str(width), "val/acc"))


def test_files_of_callbacks_go_to_the_run_whatever_the_logger(service, tmp_path):
    ours = CSVLogger(tmp_path / "logs", name="", version="")
    elsewhere = importlib.import_module("toy_service").Service()
    options = {"default_root_dir": tmp_path / "root", "accelerator": "cpu"}
    assert run_directory(Trainer(logger=elsewhere, **options)) == tmp_path / "root"
    assert run_directory(Trainer(logger=[elsewhere, ours], **options)) == tmp_path / "logs"


def test_a_logger_that_refuses_them_does_not_end_the_training(service, project):
    logger = {"class_path": "toy_service.Service", "init_args": {"stubborn": True}}
    with pytest.warns(UserWarning, match="Service has not taken the hyperparameters .Changing param values"):
        assert fit(FitSettings("toy.yaml", {"trainer.logger": logger, "trainer.max_epochs": 1})).finished


def test_an_evaluation_opens_no_logger_of_the_training(service, bnfree, project):
    fit(FitSettings("toy.yaml", {"trainer.logger": "toy_service.Service", "trainer.max_epochs": 1}, run_dir="run"))
    assert bnfree("test", "--ckpt_path", "run/checkpoints/last.ckpt")[0] == 0
    assert len(service) == 1
    assert bnfree("test", "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.logger=toy_service.Service")[0] == 0
    assert "test/acc" in service[1].metrics


def test_a_recipe_looks_for_the_packages_of_all_its_stages_first(complaint, project, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    (project / "recipe.yaml").write_text(
        "stages:\n  one: {config: toy.yaml}\n  two: {config: [toy.yaml, logger.yaml]}\n"
    )
    (project / "logger.yaml").write_text("trainer: {logger: {class_path: MLFlowLogger}}\n")
    said = complaint("recipe", "recipe.yaml", "--run_dir=run")
    assert "trainer.logger=MLFlowLogger needs mlflow, which is missing: pip install mlflow." in said
    assert not (project / "run" / "one").exists()


def test_callbacks_of_one_class_are_numbered_and_lists_are_texts():
    callbacks = [{"class_path": "a.B", "init_args": {"x": value}} for value in (1, 2)]
    model = {"class_path": "a.M", "init_args": {"betas": [0.9, 0.99], "alpha": None, "deep": {"y": True}}}
    assert flat_hyperparameters({"trainer": {"callbacks": callbacks, "precision": None}, "model": model}) == {
        "model/class_path": "a.M", "model/betas": "[0.9, 0.99]", "model/alpha": "None", "model/deep/y": True,
        "trainer/callbacks/B/class_path": "a.B", "trainer/callbacks/B/x": 1,
        "trainer/callbacks/B-2/class_path": "a.B", "trainer/callbacks/B-2/x": 2,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline_gives_each_training_a_run_of_its_own(project, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = {"class_path": "WandbLogger", "init_args": {"save_dir": "RUN_DIR", "project": "toys"}}
    for name in ("one", "two"):
        fit(FitSettings("toy.yaml", {"trainer.logger": logger, "trainer.max_epochs": 1}, run_dir=f"run/{name}"))
    for stage in ("one", "two"):
        assert len(list((project / "run" / stage / "wandb").glob("offline-run-*"))) == 1
        assert (project / "run" / stage / "metrics.csv").is_file()
    assert not (project / "wandb").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_on_a_file_store_holds_parameters_and_metrics(project, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": f"file:{project / 'store'}"}}
    fit(FitSettings("toy.yaml", {"trainer.logger": logger, "test_after_fit": True}, run_dir="run"))
    client = mlflow.tracking.MlflowClient(f"file:{project / 'store'}")
    (experiment,) = client.search_experiments(filter_string="name = 'lightning_logs'")
    (run,) = client.search_runs([experiment.experiment_id], "params.`model/backbone/width` = '4'")
    assert run.data.metrics["test/acc"] == pytest.approx(last_value(project / "run", "test/acc"))
    assert run.info.status == "FINISHED"
