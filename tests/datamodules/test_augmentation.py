import math
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop

from bnfree.datamodules.augmentation import crop_and_flip, normalize, pca_lighting, random_resized_crop_box
from bnfree.datamodules.batches import RawBatch, finish_batch


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16], ids=["by slicing", "by gathering"])
@pytest.mark.parametrize(
    ("channels", "height", "width", "padding"), [(3, 32, 32, 4), (1, 5, 9, 2), (2, 4, 3, 0), (3, 2, 3, 5)]
)
def test_crop_and_flip_equals_slicing_each_padded_image(channels, height, width, padding, dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, channels, height, width), generator=generator).to(dtype)
    offsets = torch.randint(0, 2 * padding + 1, (40, 2), generator=generator)
    flips = torch.rand(40, generator=generator) < 0.5
    result = crop_and_flip(images, offsets, flips, padding)
    assert result.dtype == dtype
    for image, (row, column), flip, got in zip(images, offsets.tolist(), flips, result, strict=True):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=dtype)
        padded[:, padding : padding + height, padding : padding + width] = image
        expected = padded[:, row : row + height, column : column + width]
        assert torch.equal(got, expected.flip(-1) if flip else expected)


def test_crop_and_flip_equals_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = ImageOps.expand(Image.fromarray(pixels), 4).crop((7, 1, 39, 33)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    result = crop_and_flip(batch, torch.tensor([[1, 7]]), torch.tensor([True]), 4)
    assert np.array_equal(result[0].permute(1, 2, 0).numpy(), np.array(image))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_works_on_floats_and_strided_views(dtype):
    images = (255 * torch.rand(6, 4, 4, 3)).to(dtype).permute(0, 3, 1, 2)
    offsets, flips = torch.full((6, 2), 2), torch.zeros(6, dtype=torch.bool)
    assert torch.equal(crop_and_flip(images, offsets, flips, 2), images)


def test_normalize_is_exact_to_float32_rounding():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    shape = (1, 3, 1, 1)
    expected = (images.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(
        shape
    )
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


def test_lighting_equals_alexnet_formula_on_images_scaled_to_one():
    alphas = torch.randn(5, 3, dtype=torch.float64) * 0.1
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    values = np.array([0.2175, 0.0188, 0.0045])
    for alpha, shift in zip(alphas.numpy(), pca_lighting(alphas).numpy(), strict=True):
        expected = sum(alpha[k] * values[k] * vectors[:, k] for k in range(3))
        np.testing.assert_allclose(shift, expected, rtol=1e-12)


def test_lighting_of_a_finished_batch_moves_pixels_by_the_right_number_of_grey_levels():
    # One standard deviation of the first component is 0.1 * 0.2175 of the range: 5.5 of 255 levels, near the same
    # in R, G and B. Applied to 0..255 values unscaled it would be 0.02 levels.
    alphas = torch.tensor([[0.1, 0.0, 0.0]])
    images = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    result, _ = finish_batch(RawBatch(images, torch.zeros(1), color_shift=pca_lighting(alphas)), 0, mean, std)
    levels = (result[0, :, 0, 0].double() * torch.tensor(std).double() + torch.tensor(mean).double()) * 255 - 100
    expected = 255 * 0.1 * 0.2175 * np.array([-0.5675, -0.5808, -0.5836])
    np.testing.assert_allclose(levels.numpy(), expected, atol=1e-3)


def test_random_resized_crop_boxes_have_the_asked_area_and_ratio():
    random = Random(0)
    areas, ratios, references = [], [], []
    torch.manual_seed(0)
    for _ in range(2000):
        left, top, right, bottom = random_resized_crop_box(300, 400, random)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / (300 * 400))
        ratios.append((right - left) / (bottom - top))
    assert 0.078 < min(areas) < 0.09
    assert max(areas) > 0.95
    assert 0.74 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.35
    for _ in range(2000):
        _, _, height, width = RandomResizedCrop.get_params(torch.empty(3, 300, 400), (0.08, 1.0), (3 / 4, 4 / 3))
        references.append((height * width / (300 * 400), math.log(width / height)))
    ours = np.array([areas, np.log(ratios)]).T
    np.testing.assert_allclose(ours.mean(0), np.mean(references, 0), atol=0.025)
    np.testing.assert_allclose(ours.std(0), np.std(references, 0), atol=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 3)])
def test_random_resized_crop_of_extreme_shapes_stays_inside(height, width):
    for seed in range(30):
        left, top, right, bottom = random_resized_crop_box(height, width, Random(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
