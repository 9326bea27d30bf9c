"""Augmentation that is switched on: each kind against its definition, and all as functions of seed, epoch and image."""

from random import Random

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandAugment

from bnfree.datamodules.augmentation import crop_and_flip
from bnfree.datamodules.extra_augmentation import Draws, ExtraAugmentation, cutout
from bnfree.datamodules.rand_augment import OPERATIONS, apply_operation, rand_augment
from bnfree.errors import InputError

EVERYTHING = {
    "padding_mode": "reflect",
    "flips": "alternating",
    "cutout": 3,
    "rand_augment": 1,
    "mixup": 0.5,
    "cutmix": 1.0,
}


def shown(module, epoch, first_image=0):
    """What training shows in an epoch, by the image's place in the training part."""
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    if first_image:
        loader.load_state_dict({"epoch": epoch, "images": first_image})
    result = {}
    for raw in loader:
        images, labels = module.on_after_batch_transfer(raw, 0)
        assert len(module.positions) == len(images)
        result.update(zip(module.positions.tolist(), zip(images, labels, strict=True), strict=True))
    return result


def same(one, other):
    return all(torch.equal(a, b) for place in one for a, b in zip(one[place], other[place], strict=True))


def test_padding_reflects():
    images = torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8)
    offsets, flips = torch.tensor([[0, 0], [4, 4], [2, 2], [1, 3], [4, 0], [0, 3]]), torch.arange(6) % 2 == 0
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="reflect")
    for i, result in enumerate(crop_and_flip(images, offsets, flips, 2, reflect=True)):
        row, column = offsets[i].tolist()
        crop = padded[i, :, row : row + 5, column : column + 7].to(torch.uint8)
        assert torch.equal(result, crop.flip(2) if flips[i] else crop)


def test_flips_alternate():
    extra, draws = ExtraAugmentation(flips="alternating"), Draws(0, 0, list(range(200)), 10)
    first, second = extra.flips_of(draws), extra.flips_of(draws._replace(epoch=1))
    assert 70 < first.sum() < 130
    assert torch.equal(first, ~second)
    assert torch.equal(first, extra.flips_of(draws._replace(epoch=4)))
    assert not torch.equal(first, extra.flips_of(draws._replace(seed=1)))


def test_cutout_is_a_square_cut_off_at_the_border():
    image = torch.ones(3, 2, 6, 6)
    result = cutout(image, torch.tensor([[3, 3], [0, 5], [0, 0]]), 4)
    expected = torch.ones(3, 2, 6, 6)
    expected[0, :, 1:5, 1:5] = 0
    expected[1, :, :2, 3:] = 0
    expected[2, :, :2, :2] = 0
    assert torch.equal(result, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_are_torchvisions(channels):
    ours_and_theirs = RandAugment()
    space = ours_and_theirs._augmentation_space(31, (12, 10))
    assert set(space) == set(OPERATIONS)
    from torchvision.transforms.autoaugment import _apply_op
    from torchvision.transforms.functional import InterpolationMode

    image = torch.randint(0, 256, (channels, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name, (magnitudes, signed) in space.items():
        for level in (0, 9, 30):
            for negative in (False, True) if signed else (False,):
                value = float(magnitudes[level]) if magnitudes.ndim else 0.0
                theirs = _apply_op(image, name, -value if negative else value, InterpolationMode.NEAREST, None)
                ours = apply_operation(image, name, level, negative)
                # Its factors have been rounded to float32.
                assert (ours.int() - theirs.int()).abs().max() <= 1, (name, level, negative)


def test_rand_augment_draws_from_its_source_alone():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    before = torch.get_rng_state()
    results = [rand_augment(image, Random(str(seed)), 2) for seed in range(8)]
    assert torch.equal(results[3], rand_augment(image, Random("3"), 2))
    assert len({tuple(result.flatten().tolist()) for result in results}) > 3
    assert torch.get_rng_state().equal(before)


def mixed_with(extra, tiny, epoch=0):
    """Each image as it is shown without and with `extra`, and its partner without; by place."""
    plain, mixed = tiny(**PLAIN), tiny(**PLAIN, **extra)
    loader = mixed.train_dataloader()
    loader.sampler.set_epoch(epoch)
    partners = {}
    for raw in loader:
        half = len(raw.positions) // 2
        partners.update(zip(raw.positions[:half].tolist(), raw.positions[half:].tolist(), strict=True))
    # Every image is a partner once.
    assert sorted(partners.values()) == sorted(partners)
    return shown(plain, epoch), shown(mixed, epoch), partners


PLAIN = {"val_split": 0, "num_train": 64}


def test_mixup_mixes_images_and_labels_alike(tiny):
    plain, mixed, partners = mixed_with({"mixup": 0.5}, tiny)
    shares = []
    for place, (image, label) in mixed.items():
        (own, own_class), (other, other_class) = plain[place], plain[partners[place]]
        share = torch.linalg.vecdot((image - other).flatten(), (own - other).flatten()) / (own - other).square().sum()
        torch.testing.assert_close(image, share * own + (1 - share) * other, rtol=1e-4, atol=1e-4)
        expected = share * F.one_hot(own_class, 4) + (1 - share) * F.one_hot(other_class, 4)
        torch.testing.assert_close(label, expected, rtol=1e-4, atol=1e-4)
        shares.append(float(share))
    # Beta(0.5, 0.5) has the mean 1/2 and the variance 1/8.
    assert torch.tensor(shares).mean() == pytest.approx(0.5, abs=0.15)
    assert torch.tensor(shares).var() == pytest.approx(0.125, abs=0.05)


def test_cutmix_labels_share_as_the_areas_do(tiny):
    plain, mixed, partners = mixed_with({"cutmix": 1.0}, tiny)
    for place, (image, label) in mixed.items():
        (own, own_class), (other, other_class) = plain[place], plain[partners[place]]
        if place == partners[place]:
            continue
        theirs = (image != own).any(0)
        assert torch.equal(image[:, theirs], other[:, theirs])
        rows, columns = theirs.any(1).nonzero().flatten(), theirs.any(0).nonzero().flatten()
        if own_class != other_class and len(rows):
            area = label[other_class] * 64
            assert theirs.sum() <= area + 1e-4
            assert len(rows) * len(columns) <= area + 1e-4


def test_it_is_the_same_on_several_processes_and_after_resuming(tiny, on_rank):
    alone = shown(tiny(**PLAIN, **EVERYTHING), 3)
    together = {}
    for rank in range(4):
        together |= shown(on_rank(tiny(**PLAIN, **EVERYTHING, batch_size=2), 4, rank), 3)
    assert set(alone) == set(together)
    assert same(alone, together)
    rest = shown(tiny(**PLAIN, **EVERYTHING), 3, first_image=24)
    assert len(rest) == 40
    assert same(rest, alone)
    assert not same(alone, shown(tiny(**PLAIN, **EVERYTHING), 4))


def test_evaluation_and_training_without_augmentation_are_left_alone(tiny):
    plain, extra = tiny(augment=False), tiny(augment=False, **EVERYTHING)
    assert same(shown(plain, 0), shown(extra, 0))
    batches = [[m.on_after_batch_transfer(b, 0) for b in m.val_dataloader()] for m in (tiny(), tiny(**EVERYTHING))]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(*batches, strict=True))


def test_stored_answers_know_the_augmentation(tiny):
    assert tiny().variant_settings() == tiny(mixup=0.0).variant_settings()
    assert tiny(cutout=2).variant_settings() != tiny().variant_settings()
    with pytest.raises(InputError, match="mixup and cutmix make images that are seen once"):
        tiny(mixup=0.2).variant_settings()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"padding_mode": "wrap"}, "padding_mode='wrap' is not known; choose zeros or reflect"),
        ({"cutout": -1}, "cutout=-1 must be"),
        ({"rand_augment_magnitude": 31}, "rand_augment_magnitude=31 must be at most 30"),
        ({"mixup": -0.1}, "mixup=-0.1 must be"),
        ({"flips": "alternating", "flip": False}, "flips='alternating' has no use for TinyDataModule"),
    ],
)
def test_mistakes(tiny, options, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**options).setup("fit")


def test_the_box_of_cutmix_has_the_area_of_its_share():
    """Of 20x20 pixels, around a drawn pixel, cut off at the border; from ones and zeros."""
    count = 40
    draws = Draws(0, 3, list(range(2 * count)), 2)
    images = torch.cat([torch.ones(count, 1, 20, 20), torch.zeros(count, 1, 20, 20)])
    mixed, labels = ExtraAugmentation(cutmix=1.0).change_values(images, torch.arange(2 * count) // count, draws)
    whole = 0
    for i, image in enumerate(mixed):
        random = Random(f"mix/0/3/{i}")
        side = (20 * (1 - random.betavariate(1.0, 1.0)) ** 0.5).__round__()
        row, column = random.randrange(20), random.randrange(20)
        inside = all(side // 2 <= place <= 20 - side + side // 2 for place in (row, column))
        whole += inside
        cut = 400 - int(image.sum())
        assert cut == side**2 if inside else cut < side**2 or side == 0
        assert labels[i].tolist() == pytest.approx([1 - cut / 400, cut / 400])
    assert 5 < whole < count


def test_draws_differ_with_seed_epoch_and_image_alone():
    """For what is drawn image by image, apart from crops, flips and partners."""

    def shown_squares(**changes):
        draws = Draws(**{"seed": 0, "epoch": 0, "images": list(range(30)), "num_classes": 2, **changes})
        return ExtraAugmentation(cutout=2).change_values(torch.ones(30, 1, 9, 9), torch.zeros(30).long(), draws)[0]

    first = shown_squares()
    assert torch.equal(first, shown_squares())
    for changes in ({"seed": 1}, {"epoch": 1}, {"images": list(range(30, 60))}):
        assert (shown_squares(**changes) != first).flatten(1).any(1).sum() > 20
    assert torch.equal(shown_squares(images=list(range(29, -1, -1))), first.flip(0))
