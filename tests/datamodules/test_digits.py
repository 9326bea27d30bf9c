import pytest
import torch
from sklearn.datasets import load_digits

from bnfree.datamodules import DigitsDataModule
from bnfree.errors import InputError


def collect(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*((batch.images, batch.targets) for batch in loader), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_parts_are_disjoint_stratified_and_cover_the_1797_digits():
    module = DigitsDataModule(batch_size=1)
    module.setup()
    parts = [
        collect(loader) for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    ]
    assert sum(len(images) for images, _ in parts) == 1797
    assert len(parts[2][0]) == 360
    shares = [torch.bincount(labels, minlength=10) / len(labels) for _, labels in parts]
    assert max((share - shares[0]).abs().max() for share in shares) < 0.01
    stored = sorted(map(tuple, load_digits().images.reshape(1797, -1).astype(int).tolist()))
    levels = torch.cat([images[:, 0, ::2, ::2] for images, _ in parts]).double() * 16 / 255
    assert sorted(map(tuple, levels.round().int().flatten(1).tolist())) == stored


def test_test_set_is_the_same_for_everyone():
    reference = collect(DigitsDataModule().test_dataloader())
    other = collect(DigitsDataModule(split_seed=5, seed=5, val_split=0.3).test_dataloader())
    assert torch.equal(reference[0], other[0])
    assert torch.equal(reference[1], other[1])


def test_shape_follows_image_size_and_digits_are_never_mirrored():
    module = DigitsDataModule(image_size=24, batch_size=32)
    assert (module.num_classes, module.image_shape) == (10, (1, 24, 24))
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (32, 1, 24, 24)
    assert not batch.flips.any()
    assert batch.offsets.max() == 6
    assert module.class_names == [str(i) for i in range(10)]


def test_mean_and_std_describe_the_data():
    module = DigitsDataModule()
    images = module.calibration_images(1200)
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


def test_too_small_an_image_size_is_refused():
    with pytest.raises(InputError, match="image_size=7"):
        DigitsDataModule(image_size=7)
