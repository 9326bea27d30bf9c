"""Forgetting events of a training against a count by hand."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from bnfree.backbones import ReActNet18
from bnfree.callbacks import ForgettingScores
from bnfree.datamodules import DigitsDataModule
from bnfree.datamodules.score_subsets import read_scores
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier


class ByHand(Callback):
    """The answers of every step, by asking the network again."""

    def __init__(self):
        self.answers = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            right = pl_module.backbone(batch[0]).argmax(1) == batch[1]
        places = trainer.datamodule.training_places()[torch.from_numpy(trainer.datamodule.positions)]
        for place, one in zip(places.tolist(), right.tolist(), strict=True):
            self.answers.setdefault(place, []).append(one)


def fit(tmp_path, *callbacks, **options):
    torch.manual_seed(0)
    module = ImageClassifier(ReActNet18(num_classes=10, in_channels=1, width=4), calibration_images=8)
    data = DigitsDataModule(batch_size=16, val_split=0, limit_train=48, **options)
    Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=list(callbacks),
    ).fit(module, datamodule=data)  # fmt: skip
    return data


@pytest.mark.slow
def test_it_counts_what_a_count_by_hand_does(tmp_path):
    by_hand = ByHand()
    data = fit(tmp_path, by_hand, ForgettingScores())
    scores = read_scores(tmp_path / "forgetting.csv")
    assert set(scores) == set(data.training_places().tolist()) == set(by_hand.answers)
    events = {p: sum(a and not b for a, b in pairwise(right)) for p, right in by_hand.answers.items()}
    most = max(events.values())
    assert scores == {p: float(n) if any(by_hand.answers[p]) else most + 1.0 for p, n in events.items()}
    assert len(set(scores.values())) > 1


def test_mixed_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="mixup and cutmix show no image alone"):
        fit(tmp_path, ForgettingScores(), mixup=0.2)
