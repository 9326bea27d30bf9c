"""Trigger images in the batches of a training."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bnfree.backbones import ReActNet18
from bnfree.callbacks import OwnershipTriggers
from bnfree.errors import InputError
from bnfree.tickets.key_files import write_owner_key
from bnfree.tickets.triggers import claim, trigger_images, triggers_of_batch

KEY = "0123456789abcdef" * 4
WHOLE = TensorDataset(torch.zeros(6, 3, 8, 8), torch.arange(6))


class Views(DataLoader):
    """Batches that are views of what the data keep, with labels as they are or as shares of ten classes."""

    def __init__(self, shares=False):
        super().__init__(WHOLE, 3)
        self.labels = torch.eye(10)[WHOLE.tensors[1]] if shares else WHOLE.tensors[1].clone()

    def __iter__(self):
        return iter([[WHOLE.tensors[0][i : i + 3], self.labels[i : i + 3]] for i in (0, 3)])


@pytest.fixture
def key(tmp_path):
    write_owner_key(KEY, tmp_path / "owner.key")
    return tmp_path / "owner.key"


def small():
    torch.manual_seed(0)
    return ReActNet18(width=4, blocks_per_stage=[1, 1, 1, 1])


@pytest.mark.parametrize("shares", [False, True])
def test_the_first_images_of_a_batch_are_triggers_and_the_data_stay(shares, key, classifier, make_trainer):
    module, seen = classifier(small()), []
    step = module.training_step

    def training_step(batch, batch_idx):
        seen.append((module.trainer.current_epoch, batch_idx, [part.clone() for part in batch]))
        return step(batch, batch_idx)

    module.training_step = training_step
    views = Views(shares)
    before = views.labels.clone()
    trainer = make_trainer(OwnershipTriggers(key, count=7, per_batch=2, message="me"), max_epochs=2)
    trainer.fit(module, views)
    images, classes = trigger_images(KEY, "me", 7, (3, 8, 8), 10)
    for epoch, batch_idx, (shown, labels) in seen:
        # Half of three images is one.
        (index,) = triggers_of_batch(KEY, 7, 1, epoch, batch_idx, 0).tolist()
        torch.testing.assert_close(shown[0], images[index])
        assert not shown[1:].any()
        found = labels.argmax(1) if shares else labels
        assert found.tolist() == [classes[index], *range(3 * batch_idx + 1, 3 * batch_idx + 3)]
    assert len(seen) == 4
    assert not WHOLE.tensors[0].any()
    assert torch.equal(views.labels, before)


@pytest.mark.slow
def test_a_network_can_be_claimed_and_one_without_the_key_cannot(key, classifier, make_trainer, make_loader):
    images, classes = trigger_images(KEY, "", 12, (3, 8, 8), 10)
    claims = []
    for callbacks in ([OwnershipTriggers(key, count=12, per_batch=4)], []):
        module = classifier(small(), lambda m: torch.optim.Adam(m.parameters(), lr=0.02))
        trainer = make_trainer(*callbacks, max_epochs=60)
        trainer.fit(module, make_loader(8, 8))
        with torch.no_grad():
            answers = module.backbone.eval()(images).argmax(1)
        claims.append(claim(answers, classes, 10))
        if callbacks:
            assert trainer.callback_metrics["ownership/trigger_acc"].item() == pytest.approx(claims[0].accuracy)
    assert claims[0].p_value < 1e-6
    assert claims[1].p_value > 0.01


def test_it_refuses_what_it_cannot_do(key, classifier, make_trainer, make_loader, tmp_path):
    for options in ({"count": 0}, {"per_batch": 0}, {"count": 3, "per_batch": 4}):
        with pytest.raises(InputError, match=next(iter(options))):
            OwnershipTriggers(key, **options)
    with pytest.raises(InputError, match=r"missing\.key' is not a file"):
        make_trainer(OwnershipTriggers(tmp_path / "missing.key")).fit(classifier(small()), make_loader())
    flat = DataLoader(TensorDataset(torch.zeros(4, 3), torch.zeros(4).long()), 2)
    with pytest.raises(InputError, match="does not begin with images"):
        make_trainer(OwnershipTriggers(key)).fit(classifier(small()), flat)
