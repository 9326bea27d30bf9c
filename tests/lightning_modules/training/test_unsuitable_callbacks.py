"""Callbacks that cannot work here are refused in a sentence before anything is trained."""

import pytest
import torch

CALLBACKS = "--trainer.callbacks+="
SMALL = ("--config=quickstart", "--data.limit_train=320", "--trainer.max_epochs=1", "--model.backbone.width=4")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([f"{CALLBACKS}bnfree.callbacks.WeightDynamics"], "holds WeightDynamics twice"),
        ([f"{CALLBACKS}LearningRateFinder"], "LearningRateFinder changes an attribute lr of the module"),
        ([f"{CALLBACKS}BatchSizeFinder"], "BatchSizeFinder changes the batch size after the learning rate"),
        (
            [f"{CALLBACKS}ModelPruning", "--trainer.callbacks.pruning_fn=l1_unstructured"],
            "prune with bnfree.callbacks.LotteryTicket",
        ),
        (["--model.backbone.num_classes=1"], "num_classes=1 leaves nothing to tell apart"),
    ],
)
def test_it_is_one_sentence_and_leaves_nothing(complaint, project, options, said):
    assert said in complaint("fit", *SMALL, *options, "--run_dir=run")
    assert not (project / "run").exists()


def test_a_missing_package_is_named(complaint, project, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", _Missing())
    assert "wandb, which is missing: pip install wandb" in complaint("fit", *SMALL, "--trainer.logger=WandbLogger")


class _Missing:
    """As Lightning says it where the package is not there."""

    def __bool__(self):
        return False

    def __str__(self):
        return "Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`"


@pytest.mark.slow
def test_a_batch_size_is_found_at_a_constant_rate(project, bnfree):
    finder = (
        f"{CALLBACKS}BatchSizeFinder",
        "--trainer.callbacks.max_trials=2",
        "--trainer.callbacks.steps_per_trial=1",
    )
    assert bnfree("fit", *SMALL, *finder, "--model.lr_scheduler=null", "--run_dir=run")[0] == 0
    last = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    # From 2, doubled twice at most; the whole training part of 320 images.
    assert last["global_step"] in (320 // 4, 320 // 8)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.005
