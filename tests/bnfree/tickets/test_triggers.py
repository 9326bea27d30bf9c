"""Trigger images of a key, and the claim by a network's answers."""

import hashlib
import hmac
import math

import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets.triggers import claim, trigger_images, triggers_of_batch

KEY = "0123456789abcdef" * 4


def test_an_image_is_what_the_key_says():
    images, classes = trigger_images(KEY, "me", 3, (2, 8, 8), 10)
    secret = hmac.new(KEY.encode(), b"bnfree trigger:2:me:1", hashlib.sha256).digest()
    values = list(hashlib.shake_256(secret + b"pattern").digest(2 * 64))
    expected = torch.tensor([(v - 127.5) / math.sqrt(65535 / 12) for v in values]).view(2, 8, 8)
    torch.testing.assert_close(images[1], expected)
    assert classes[1] == int.from_bytes(hashlib.shake_256(secret + b"class").digest(8), "little") % 10


def test_images_are_those_of_one_key_and_message_at_every_size():
    images, classes = trigger_images(KEY, "", 300, (3, 8, 8), 4)
    assert images.mean().abs() < 0.02
    assert images.var() == pytest.approx(1, abs=0.02)
    # Each class by chance, four standard deviations.
    assert all(abs((classes == c).sum() - 75) < 4 * (300 * 0.25 * 0.75) ** 0.5 for c in range(4))
    larger, same = trigger_images(KEY, "", 300, (3, 24, 40), 4)
    assert larger.shape == (300, 3, 24, 40)
    assert torch.equal(same, classes)
    # The middle of each cell is a middle of the larger image, too.
    torch.testing.assert_close(larger[:, :, 1::3, 2::5], images)
    for key, message in ((KEY[::-1], ""), (KEY, "mine")):
        others, other_classes = trigger_images(key, message, 300, (3, 8, 8), 4)
        assert (others - images).abs().mean() > 0.5
        assert 0.1 < (other_classes == classes).double().mean() < 0.4
    with pytest.raises(InputError, match="could be guessed"):
        trigger_images("short", "", 1, (3, 8, 8), 4)


def test_a_batch_has_different_triggers_that_follow_from_its_place():
    def drawn(**place):
        return triggers_of_batch(KEY, 20, 3, **{"epoch": 0, "batch": 0, "rank": 0, **place}).tolist()

    assert drawn() == drawn()
    assert len(set(drawn())) == 3
    assert all(drawn(**{name: 1}) != drawn() for name in ("epoch", "batch", "rank"))
    assert set().union(*(drawn(batch=i) for i in range(60))) == set(range(20))


@pytest.mark.parametrize(("agreeing", "num_classes"), [(0, 10), (3, 10), (17, 2), (20, 10)])
def test_the_p_value_is_the_binomial_tail(agreeing, num_classes):
    classes = torch.arange(20) % num_classes
    answers = torch.where(torch.arange(20) < agreeing, classes, (classes + 1) % num_classes)
    found = claim(answers, classes, num_classes)
    tail = sum(math.comb(20, k) * (num_classes - 1) ** (20 - k) for k in range(agreeing, 21)) / num_classes**20
    assert found.p_value == pytest.approx(tail, rel=1e-9)
    assert found.accuracy == agreeing / 20


def test_foreign_keys_have_no_small_p_value_even_if_a_network_always_says_the_same():
    answers, below = torch.zeros(40, dtype=torch.long), 0
    for number in range(300):
        _, classes = trigger_images(f"foreign key {number:06d}", "", 40, (1, 8, 8), 5)
        below += claim(answers, classes, 5).p_value < 0.05
    # 15 are expected; four standard deviations.
    assert below < 15 + 4 * 15**0.5
