"""Training images that come again: what they look like, which they are, and what they depend on."""

import pytest
import torch

from bnfree.datamodules import ImageFolderDataModule
from bnfree.errors import InputError


def shown(module, epoch):
    """Images of an epoch of training by their position in the training part."""
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    result = {}
    for raw in loader:
        images, _ = module.on_after_batch_transfer(raw, 0)
        result.update(zip(module.positions.tolist(), images, strict=True))
    return result


def folder_module(root, **options):
    return ImageFolderDataModule(str(root), **{"batch_size": 4, **options}, val_split=0, image_size=16, num_workers=0)


@pytest.fixture(params=["in memory", "from files"])
def module(request, tiny, image_folder):
    """Makes a data module of one of the two kinds."""
    if request.param == "in memory":
        return tiny
    root = image_folder({"train": 4})
    return lambda **options: folder_module(root, **options)


def test_the_augmentation_comes_again_after_a_cycle_and_the_order_does_not(module):
    cycled = module(augmentation_cycle=2)
    epochs = [shown(cycled, epoch) for epoch in range(3)]
    assert list(epochs[0]) != list(epochs[2])
    for position, image in epochs[2].items():
        if position in epochs[0]:
            assert torch.equal(image, epochs[0][position])
    different = [not torch.equal(epochs[1][p], image) for p, image in epochs[0].items() if p in epochs[1]]
    assert sum(different) > len(different) / 2
    free = shown(module(), 1)
    assert all(torch.equal(free[p], image) for p, image in epochs[1].items())


@pytest.mark.parametrize("augment", [True, False])
def test_a_variant_is_each_training_image_once_as_training_shows_it(module, augment):
    data = module(augmentation_cycle=3, augment=augment)
    assert data.variants == (3 if augment else 1)
    for variant in range(data.variants):
        images = {}
        for raw in data.variant_batches(variant):
            batch, positions = data.on_after_batch_transfer(raw, 0)
            images.update(zip(positions.tolist(), batch, strict=True))
        seen = shown(data, variant + 3)
        assert len(images) >= len(seen)
        assert set(images) == set(range(len(images)))
        assert all(torch.equal(images[position], image) for position, image in seen.items())


def test_processes_share_a_variant(tiny, on_rank):
    parts = []
    for rank in range(3):
        data = on_rank(tiny(augmentation_cycle=2), 3, rank)
        parts.append({p for raw in data.variant_batches(1) for p in raw.targets.tolist()})
    assert set.union(*parts) == set(range(48))
    assert sum(map(len, parts)) == 48


def test_without_a_cycle_there_is_no_number_of_variants(tiny):
    assert tiny().variants is None
    assert tiny(augment=False).variants == 1


def test_settings_change_with_what_the_images_depend_on(module):
    settings = module(augmentation_cycle=2).variant_settings()
    assert settings == module(augmentation_cycle=9, batch_size=2).variant_settings()
    for options in ({"seed": 1}, {"split_seed": 1, "limit_train": 9}, {"limit_train": 8}, {"augment": False}):
        assert module(**options).variant_settings() != settings, options
    # Without augmentation the seed has no part in it.
    plain = module(augment=False).variant_settings()
    assert plain == module(augment=False, seed=1).variant_settings()


def test_settings_change_with_the_files(image_folder):
    root = image_folder({"train": 4})
    before = folder_module(root).variant_settings()
    assert folder_module(root, lighting=0.2).variant_settings() != before
    path = root / "train" / "cat" / "000.png"
    path.write_bytes((root / "train" / "cat" / "001.png").read_bytes())
    assert folder_module(root).variant_settings() != before


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_cycle_is_a_number_of_epochs(tiny, value):
    with pytest.raises(InputError, match="augmentation_cycle="):
        tiny(augmentation_cycle=value)
