"""Corruptions: more with each severity, and each what its name says."""

import pytest
import torch

from bnfree.corruptions import CORRUPTIONS, corrupt
from bnfree.errors import InputError


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_severity_changes_more_and_images_stay_images(kind):
    images = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images, (40, 40), mode="bilinear")
    changes = []
    for severity in range(1, 6):
        changed = corrupt(images, kind, severity, torch.Generator().manual_seed(1))
        assert changed.shape == images.shape
        assert changed.min() >= 0
        assert changed.max() <= 1
        again = corrupt(images, kind, severity, torch.Generator().manual_seed(1))
        assert torch.equal(changed, again)
        changes.append(float((changed - images).square().mean()))
    # How areas of pixels fall on the smaller image is not monotone.
    assert changes == sorted(changes) if kind != "pixelate" else changes[4] > changes[1]
    assert changes[0] > 0


def test_what_they_do():
    grey = torch.full((400, 1, 8, 8), 0.5)
    generator = torch.Generator().manual_seed(0)
    assert corrupt(grey, "gaussian_noise", 5, generator).std() == pytest.approx(0.1, rel=0.05)
    assert corrupt(grey, "shot_noise", 5, generator).std() == pytest.approx((0.5 / 50) ** 0.5, rel=0.05)
    struck = corrupt(grey, "impulse_noise", 5, generator)
    assert (struck != 0.5).float().mean() == pytest.approx(0.07, rel=0.1)
    torch.testing.assert_close(corrupt(grey, "brightness", 3), grey + 0.15)
    torch.testing.assert_close(corrupt(grey, "gaussian_blur", 5), grey)
    edge = torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], 3)
    torch.testing.assert_close(corrupt(edge, "contrast", 1), 0.5 + 0.75 * (edge - 0.5))
    with pytest.raises(InputError, match="corruption='fog' is not known"):
        corrupt(grey, "fog", 1)
    with pytest.raises(InputError, match="severity=6 must be 1 to 5"):
        corrupt(grey, "contrast", 6)
