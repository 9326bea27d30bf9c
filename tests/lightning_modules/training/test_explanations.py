"""Each mistake in what the user typed is answered in one sentence with the remedy."""

import pytest
from torch.nn import Linear

from bnfree.lightning_modules.training.config.explanations import explain_runtime_error
from bnfree.lightning_modules.training.config.value_types import explain_value

CALLBACK = "- class_path: toy_project.ToyCallback"
# What is replaced in toy.yaml, by what, and what the answer must hold.
CONFIGS = [
    ("toy_project.ToyCallback", "toy_project.ToyCalback", ["trainer.callbacks='toy_project.ToyCalback'", "line 14",
                                                           "did you mean 'toy_project.ToyCallback'?"]),
    ("toy_project.ToyCallback", "AdaptiveGradientCliping", ["trainer.callbacks='AdaptiveGradientCliping'",
                                                            "did you mean 'AdaptiveGradientClipping'?"]),
    (CALLBACK, CALLBACK + "\n      init_args: {facter: 2}", ["trainer.callbacks.facter (toy.yaml, line 15)",
                                                             "ToyCallback", "did you mean 'factor'?"]),
    (CALLBACK, CALLBACK + "\n      init_args: {factor: two}", ["trainer.callbacks.factor='two'", "give a number"]),
    ("toy_project.ToyNet", "bnfree.backbones.ReActNet19", ["model.backbone='bnfree.backbones.ReActNet19'",
                                                           "did you mean 'bnfree.backbones.ReActNet18'?"]),
    ("toy_project.ToyNet", "ReactNet19", ["model.backbone='ReactNet19'", "did you mean 'ReActNet18'?"]),
    ("toy_project.ToyNet", "toy_projekt.ToyNet", ["toy_projekt.ToyNet", "did you mean 'toy_project'?"]),
    ("toy_project.ToyNet", "bnfree.backbone.ReActNet18", ["did you mean 'bnfree.backbones'?"]),
    ("toy_project.ToyData", "DigtsDataModule", ["data='DigtsDataModule'", "did you mean 'DigitsDataModule'?"]),
    ("toy_project.ToyData", "bnfree.datamodules.CIFAR10", ["data='bnfree.datamodules.CIFAR10'", "CIFAR10"]),
    ("toy_project.ToyModule", "toy_project.ToyNet", ["model='toy_project.ToyNet' is no LightningModule"]),
    ("{width: 4}", "{widht: 4}", ["model.backbone.widht", "ToyNet", "did you mean 'width'?"]),
    ("{width: 4}", "{width: wide}", ["model.backbone.width='wide'", "line 4", "give an integer"]),
    ("optimizer:", "optimiser:", ["model.optimiser", "ToyModule", "did you mean 'optimizer'?"]),
    ("torch.optim.Adam", "torch.optim.Adm", ["model.optimizer='torch.optim.Adm'", "did you mean 'torch.optim.Adam'?"]),
    ("lr: 0.05", "learning_rate: 0.05", ["model.optimizer.learning_rate", "Adam", "it takes lr, betas"]),
    ("lr: 0.05", "lr: fast", ["model.optimizer.lr='fast'", "give a number"]),
    ("init_args:\n", "int_args:\n", ["'int_args'", "did you mean 'init_args'?"]),
    ("max_epochs", "max_epoch", ["'trainer.max_epoch' (toy.yaml, line 9)", "did you mean 'trainer.max_epochs'?"]),
    ("max_epochs: 2", "max_epochs: two", ["trainer.max_epochs='two' (toy.yaml, line 9)", "give an integer or null"]),
    ("data:", "dta:", ["key 'dta' (toy.yaml, line 6)", "did you mean 'data'?"]),
    ("data:", "data: [", ["config='toy.yaml', line 8, column 8", "not YAML"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), CONFIGS, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes_in_a_config(project, complaint, old, new, said):
    config = project / "toy.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    message = complaint("fit", "--config", "toy.yaml")
    for part in said:
        assert part in message
    assert not (project / "runs").exists()


ARGUMENTS = [
    ("--trainer.max_epoch=3", ["'--trainer.max_epoch=3'", "did you mean '--trainer.max_epochs'?"]),
    ("--trainer.max_ep=3", ["'--trainer.max_ep=3'", "did you mean '--trainer.max_epochs'?"]),
    ("--run_dri=x", ["did you mean '--run_dir'?"]),
    ("--best_checkpoint.monitr=x", ["did you mean '--best_checkpoint.monitor'?"]),
    ("extra.yaml", ["argument 'extra.yaml' is not expected", "--config extra.yaml"]),
    ("--model.backbone=ReActNt18", ["model.backbone='ReActNt18'", "did you mean 'ReActNet18'?"]),
    ("--model.backbone.widht=3", ["model.backbone.widht", "did you mean 'width'?"]),
    ("--model.smoothing=x", ["model.smoothing='x'", "give a number"]),
    ("--model=ToyModul", ["model='ToyModul'", "did you mean 'ToyModule'?"]),
    ("--data.batch_siz=3", ["data.batch_siz", "ToyData", "did you mean 'batch_size'?"]),
    ("--trainer.callbacks+=WeightStandardisationCheck", ["did you mean 'WeightStandardizationCheck'?"]),
    ("--trainer.logger=TensorBordLogger", ["trainer.logger=", "did you mean 'TensorBoardLogger'?"]),
    ("--trainer.max_epochs=two", ["trainer.max_epochs='two'", "give an integer or null."]),
    ("--trainer.precision=bf16-mixd", ["trainer.precision='bf16-mixd'", "did you mean 'bf16-mixed'?"]),
    ("--trainer.accelerator=gpuu", ["trainer.accelerator='gpuu'", "did you mean 'gpu'?"]),
    ("--trainer.strategy=dpp", ["trainer.strategy='dpp'", "did you mean 'ddp'?"]),
    ("--trainer.devices=0", ["devices"]),
    ("--test_after_fit=maybe", ["test_after_fit='maybe'", "choose from auto, true, false."]),
    ("--model.smoothing=2", ["smoothing=2.0 must be at most 1."]),
    ("--config=tov.yaml", ["config='tov.yaml' does not exist", "did you mean 'toy.yaml'?"]),
    ("--config", ["--config is given without a value"]),
]


@pytest.mark.parametrize(("argument", "said"), ARGUMENTS, ids=[argument for argument, _ in ARGUMENTS])
def test_mistakes_on_the_command_line(project, complaint, argument, said):
    message = complaint("fit", "--config", "toy.yaml", argument)
    for part in said:
        assert part in message
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no keys such as model, data and trainer"),
        ("only words\n", "holds no keys such as model, data and trainer"),
        ("fit:\n  trainer: {max_epochs: 1}\n", "key 'fit' (other.yaml, line 1) is not expected in a config; move"),
        ("a: b: c\n", "config='other.yaml', line 1, column 5: this is not YAML"),
        ("\0\1", "config='other.yaml' is not a text file in YAML"),
    ],
)
def test_files_that_are_no_config(project, complaint, content, said):
    (project / "other.yaml").write_text(content)
    assert said in complaint("fit", "--config", "toy.yaml", "--config", "other.yaml")


def test_what_is_required(project, complaint):
    assert "model is required and not given; add --config FILE" in complaint("fit")
    assert "model.backbone is required by ImageClassifier" in complaint("fit", "--model=ImageClassifier")


def test_a_mistake_that_shows_during_the_fit_leaves_no_directory(project, complaint):
    said = complaint("fit", "--config", "toy.yaml", "--trainer.callbacks=toy_project.ToyCallback",
                     "--trainer.callbacks.fail=true")  # fmt: skip
    assert said == "fail=True does not do."
    assert not (project / "runs").exists()


def test_the_users_own_errors_keep_their_traceback(project, bnfree):
    with pytest.raises(ValueError, match="^a mistake in the user's own code$"):
        bnfree("fit", "--config", "toy.yaml", "--data.broken=true")


def test_traceback_on_request(project, bnfree, monkeypatch):
    monkeypatch.setenv("BNFREE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="max_epochs='two'"):
        bnfree("fit", "--config", "toy.yaml", "--trainer.max_epochs=two")


def test_weights_of_another_width_are_one_sentence():
    with pytest.raises(RuntimeError) as caught:
        Linear(2, 1).load_state_dict(Linear(3, 1).state_dict())
    said = explain_runtime_error(caught.value)
    assert said.startswith("the checkpoint's weights do not fit Linear (size mismatch for weight: ")
    assert said.endswith(
        "torch.Size([1, 2])); leave out what you changed in the model, or give a checkpoint of this model."
    )


def test_a_complaint_without_a_value_is_left_to_others():
    assert explain_value("a", "something unforeseen") is None
