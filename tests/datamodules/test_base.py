import pytest
import torch
from torch import Tensor

from bnfree.errors import InputError


def epoch_of(module, loader, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader.sampler.set_epoch(epoch)
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


def identities(batches) -> list[int]:
    """Which images batches of the tiny data module hold, by the largest value of the first channel."""
    return [round((0.5 + 0.2 * float(image[0].max())) * 255) for images, _ in batches for image in images]


def images_by_identity(batches) -> dict[int, Tensor]:
    return dict(zip(identities(batches), (image for images, _ in batches for image in images), strict=True))


def test_a_finished_batch_is_normalised_float32_and_int64(tiny):
    module = tiny()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        images, labels = epoch_of(module, loader)[0]
        assert images.dtype == torch.float32
        assert images.shape == (8, 3, 8, 8)
        assert labels.dtype == torch.int64


def test_labels_stay_with_their_images(tiny):
    module = tiny(augment=False)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        batches = epoch_of(module, loader)
        assert [i % 4 for i in identities(batches)] == [int(label) for _, labels in batches for label in labels]


def test_train_and_validation_are_disjoint_and_complete(tiny):
    module = tiny(augment=False, batch_size=1)
    train = identities(epoch_of(module, module.train_dataloader()))
    val = identities(epoch_of(module, module.val_dataloader()))
    assert sorted(train + val) == list(range(60))
    assert len(val) == 12
    assert len(identities(epoch_of(module, module.test_dataloader()))) == 25


def test_split_is_independent_of_the_run_seed(tiny):
    def val(**arguments):
        module = tiny(**arguments)
        return identities(epoch_of(module, module.val_dataloader()))

    assert val(seed=0) == val(seed=7)
    assert val(split_seed=0) != val(split_seed=7)


def test_evaluation_batches_are_the_stored_images_normalised(tiny):
    module = tiny()
    images = torch.cat([images for images, _ in epoch_of(module, module.test_dataloader())])
    raw = module.load("test").images(torch.arange(25)).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (module.mean, module.std))
    torch.testing.assert_close(images.double(), (raw - mean) / std, rtol=1e-5, atol=1e-6)


def test_augmentation_of_an_image_does_not_depend_on_batch_size_ranks_split_or_limit(tiny, on_rank):
    reference = tiny(batch_size=1)
    expected = images_by_identity(epoch_of(reference, reference.train_dataloader(), 3))
    variants = [
        tiny(batch_size=16),
        tiny(split_seed=4),
        tiny(limit_train=20),
        on_rank(tiny(batch_size=4), 3, 2),
    ]
    for module in variants:
        images = images_by_identity(epoch_of(module, module.train_dataloader(), 3))
        shared = images.keys() & expected.keys()
        assert len(shared) > 10
        assert all(torch.equal(images[i], expected[i]) for i in shared)
    for other in (tiny(batch_size=1, seed=1), reference):
        epoch = 3 if other is not reference else 4
        images = images_by_identity(epoch_of(other, other.train_dataloader(), epoch))
        assert sum(torch.equal(images[i], expected[i]) for i in images.keys() & expected.keys()) < 15


def test_two_processes_train_on_what_one_process_with_twice_the_batch_trains_on(tiny, on_rank):
    single = tiny(batch_size=8)
    ranks = [on_rank(tiny(batch_size=4), 2, rank) for rank in range(2)]
    expected = epoch_of(single, single.train_dataloader(), 2)
    parts = [epoch_of(module, module.train_dataloader(), 2) for module in ranks]
    assert len(parts[0]) == len(parts[1]) == len(expected) == 6
    for (images, labels), first, second in zip(expected, *parts, strict=True):
        assert torch.equal(images, torch.cat([first[0], second[0]]))
        assert torch.equal(labels, torch.cat([first[1], second[1]]))


def test_no_global_randomness_is_used(tiny):
    module = tiny()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module.setup()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.predict_dataloader()):
        epoch_of(module, loader)
    module.calibration_images(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_augment_false_only_shuffles(tiny):
    module = tiny(augment=False, batch_size=1)
    raw = module.load("train").images(torch.arange(60))
    for i, image in images_by_identity(epoch_of(module, module.train_dataloader())).items():
        restored = (image * torch.tensor(module.std).view(3, 1, 1) + torch.tensor(module.mean).view(3, 1, 1)) * 255
        assert torch.equal(restored.round().to(torch.uint8), raw[i])


def test_limit_train_takes_the_first_images_of_the_shuffled_part(tiny):
    def train(**arguments):
        module = tiny(batch_size=1, augment=False, **arguments)
        return set(identities(epoch_of(module, module.train_dataloader())))

    assert len(train(limit_train=10)) == 10
    assert train(limit_train=10) == train(limit_train=10, seed=9) <= train(limit_train=20) <= train()


def test_calibration_images_are_the_first_training_images_unaugmented_on_every_rank(tiny, on_rank):
    calibration = tiny().calibration_images(10)
    assert calibration.shape == (10, 3, 8, 8)
    assert calibration.dtype == torch.float32
    assert torch.equal(calibration, on_rank(tiny(seed=3), 2, 1).calibration_images(10))
    module = tiny(augment=False, limit_train=10, batch_size=1)
    plain = images_by_identity(epoch_of(module, module.train_dataloader()))
    assert all(torch.equal(image, plain[i]) for i, image in images_by_identity([(calibration, None)]).items())
    assert torch.equal(tiny().calibration_images(1000)[:10], calibration)
    for n in (0, 2.5):
        with pytest.raises(InputError, match=f"n={n}"):
            tiny().calibration_images(n)


def test_validation_batches_are_evenly_spread_and_disturb_no_loader(tiny, on_rank):
    module = tiny(batch_size=4)
    loader = module.val_dataloader()
    images, labels = (torch.cat(parts) for parts in zip(*epoch_of(module, loader), strict=True))
    before = loader.state_dict(), torch.get_rng_state()
    for n, places in ((5, [0, 2, 4, 7, 9]), (12, list(range(12))), (1000, list(range(12)))):
        batches = list(on_rank(tiny(batch_size=4), 2, 1).validation_batches(n))
        assert all(len(part) <= 4 for part, _ in batches)
        assert torch.equal(torch.cat([part for part, _ in batches]), images[places])
        assert torch.equal(torch.cat([part for _, part in batches]), labels[places])
    assert len(list(module.validation_batches(5))) == 2
    assert loader.state_dict() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert list(tiny(val_split=0).validation_batches(5)) == []


def test_prediction_gives_places_in_the_list_of_names_on_every_rank(tiny, on_rank):
    places = []
    for rank in range(2):
        module = on_rank(tiny(), 2, rank)
        places += [int(i) for _, targets in epoch_of(module, module.predict_dataloader()) for i in targets]
    assert sorted(places) == list(range(25))
    assert tiny().predict_image_names[12] == "test/00012"
    assert len(tiny().predict_image_names) == 25


def test_overfit_batches_repeats_the_same_images(tiny, on_rank):
    module = on_rank(tiny(), 1, 0)
    module.trainer.overfit_batches = 2
    loader = module.train_dataloader()
    first, second = epoch_of(module, loader, 0), epoch_of(module, loader, 1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_setup_loads_only_what_the_stage_needs_and_only_once(tiny):
    module = tiny()
    calls = []
    load = module.load
    module.load = lambda part: (calls.append(part), load(part))[1]
    for stage in ("fit", "validate", "fit"):
        module.setup(stage)
    assert calls == ["train", "val"]
    module.setup("test")
    module.setup("predict")
    assert calls == ["train", "val", "test"]


def test_a_fraction_is_a_fraction_of_the_training_images(tiny):
    module = tiny(val_split=0.25)
    assert len(identities(epoch_of(module, module.val_dataloader()))) == 15


def test_no_validation_part_gives_no_loader(tiny):
    module = tiny(val_split=0)
    assert module.val_dataloader() == []
    with pytest.raises(InputError, match="val_split=0"):
        module.setup("validate")


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("batch_size", [0, -1, 2.5, True, "8"]),
        ("val_split", [-1, -0.1, 1.0, 1.5, True, float("nan"), "a"]),
        ("split_seed", [-1, 0.5]),
        ("seed", [-1, None]),
        ("limit_train", [0, -3, 1.5]),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(tiny, argument, values):
    for value in values:
        with pytest.raises(InputError, match=f"{argument}={value!r}".replace(".", r"\.")):
            tiny(**{argument: value})


@pytest.mark.parametrize(
    "arguments", [{"val_split": 60}, {"val_split": 0.999}, {"val_split": 0.001}, {"limit_train": 49}]
)
def test_splits_that_do_not_fit_the_images_are_refused(tiny, arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(InputError, match=f"{name}={value}"):
        tiny(**arguments).setup("fit")


def test_a_batch_of_another_kind_passes_untouched(tiny):
    batch = {"images": torch.zeros(2)}
    assert tiny().on_after_batch_transfer(batch, 0) is batch
