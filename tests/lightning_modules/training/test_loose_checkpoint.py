"""A checkpoint alone, away from its run, says which network and which data it is of."""

import csv
import shutil

import pytest
import torch
from printed import shown_accuracy
from small_digits import train_digits

from bnfree.datamodules import DigitsDataModule


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("loose") / "run")


@pytest.mark.slow
def test_it_is_tested_and_predicts_on_its_own_data(run, bnfree, project):
    shutil.copy(run / "checkpoints" / "best.ckpt", project / "loose.ckpt")
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    code, out, err = bnfree("test", "--ckpt_path=loose.ckpt", *quiet)
    assert code == 0, err
    shown = shown_accuracy(out)
    code, _, err = bnfree("predict", "--ckpt_path=loose.ckpt", "--run_dir=said", *quiet)
    assert code == 0, err
    with (project / "said" / "predictions.csv").open() as file:
        said = [int(row["class"]) for row in csv.DictReader(file)]
    data = DigitsDataModule(image_size=8)
    labels = torch.cat([labels for _, labels in data.test_batches(360)])
    assert shown == pytest.approx((torch.tensor(said) == labels).float().mean().item(), abs=5.1e-5)


@pytest.mark.parametrize("checkpoint_first", [True, False])
def test_a_checkpoint_beats_the_config_of_its_run_in_any_order(run, bnfree, project, checkpoint_first):
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["state_dict"]["backbone.classifier.weight"].zero_()
    content["state_dict"]["backbone.classifier.bias"] = torch.arange(10.0)
    torch.save(content, project / "nine.ckpt")
    words = ["--ckpt_path=nine.ckpt", f"--config={run / 'config.yaml'}"]
    words = words if checkpoint_first else words[::-1]
    code, out, err = bnfree("test", *words, "--trainer.accelerator=cpu", "--trainer.limit_test_batches=1.0")
    assert code == 0, err
    data = DigitsDataModule(image_size=8)
    nines = sum(int((labels == 9).sum()) for _, labels in data.test_batches(360))
    assert shown_accuracy(out) == pytest.approx(nines / 360, abs=5.1e-5)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.limit_tran=3", "did you mean 'limit_train'?"),
        ("--data.batch_size=abc", "batch_size='abc' is of the wrong type; give an integer"),
        ("--model.backbone=ReActNet19", "did you mean 'ReActNet18'?"),
        ("--trainer.callbacks+=nope.Nope", "nope"),
        ("--model=Foo", "names no known class"),
    ],
)
def test_a_mistake_beside_it_is_one_sentence(run, complaint, project, option, said):
    shutil.copy(run / "checkpoints" / "best.ckpt", project / "loose.ckpt")
    assert said in complaint("test", "--ckpt_path=loose.ckpt", option)
