import pytest
import torch

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ResidualUnit
from bnfree.calibration import calibrate
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.gradient_windows import measure_signal_widths, rescale_gradient_windows


def trained_like(network):
    """In float64, calibrated, then with every parameter and beta moved; its images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, network.in_channels, 32, 32, generator=generator, dtype=torch.float64)
    network = network.double().eval()
    calibrate(network, images, full=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for unit in units(network):
            unit.beta.mul_(3.0)
    return network, images


def units(network):
    return [m for m in network.modules() if isinstance(m, ResidualUnit)]


def sign_inputs(network, images):
    """In front of every sign, in order, computed here from what enters the unit."""
    found = []
    hooks = [
        unit.register_forward_pre_hook(
            lambda unit, x: found.append(x[0] * unit.beta + unit.rsign.shift.view(1, -1, 1, 1))
        )
        for unit in units(network)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return found


NETWORKS = {
    "cifar": lambda: ReActNet18(num_classes=5, width=4),
    "imagenet stem": lambda: ReActNet18(num_classes=5, width=4, stem="imagenet"),
    "step 1": lambda: ReActNet18(num_classes=5, width=4, binary_weights=False),
    "binary shortcuts": lambda: ReActNet18(num_classes=5, width=4, binary_shortcut=True),
    "modules": lambda: ReActNet18(num_classes=5, width=4, lean=False),
    "no projections": lambda: ReActNetA(num_classes=5, width=8, stem="cifar"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_are_as_wide_as_the_signal_and_the_network_computes_the_same(name):
    network, images = trained_like(NETWORKS[name]())
    with torch.no_grad():
        before = network(images)
    found = measure_signal_widths(network, images)
    rescale_gradient_windows(network, found, width=1.3)
    with torch.no_grad():
        after = network(images)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    widths = dict(
        zip(
            [n for n, m in network.named_modules() if isinstance(m, ResidualUnit)],
            sign_inputs(network, images),
            strict=True,
        )
    )
    assert found.keys() == {n for n in widths if name != "no projections" or network.get_submodule(n).stride == 1}
    for unit in found:
        assert widths[unit].std(dim=(0, 2, 3), correction=0).mean().item() == pytest.approx(1.3, rel=1e-6)


def test_masks_stay(tmp_path):
    network, images = trained_like(ReActNet18(num_classes=5, width=4))
    for layer in network.modules():
        if isinstance(layer, BinaryConv2d) and layer.binary_weights:
            layer.set_mask(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    with torch.no_grad():
        before = network(images)
        rescale_gradient_windows(network, measure_signal_widths(network, images))
        torch.testing.assert_close(network(images), before, rtol=1e-9, atol=1e-12)


def test_more_values_have_a_gradient():
    network, images = trained_like(ReActNet18(num_classes=5, width=4))

    def in_window():
        return sum((x.abs() < 1).double().mean().item() for x in sign_inputs(network, images))

    before = in_window()
    rescale_gradient_windows(network, measure_signal_widths(network, images))
    assert in_window() > 1.5 * before


def test_says_what_the_widths_were():
    network, images = trained_like(ReActNet18(num_classes=5, width=4))
    expected = [x.std(dim=(0, 2, 3), correction=0).mean().item() for x in sign_inputs(network, images)]
    assert list(measure_signal_widths(network, images).values()) == pytest.approx(expected)


def test_a_constant_signal_is_left_alone():
    network, _ = trained_like(ReActNet18(num_classes=5, width=4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rescale_gradient_windows(network, {"body.0.0": 0.0})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_refuses_networks_without_windows_no_images_and_no_width():
    images = torch.randn(2, 3, 32, 32)
    for call in (measure_signal_widths, rescale_gradient_windows):
        with pytest.raises(InputError, match="norm='bn_free'"):
            call(ReActNet18(width=4, norm="batch_norm"), {} if call is rescale_gradient_windows else images)
    with pytest.raises(InputError, match="N > 0"):
        measure_signal_widths(ReActNet18(width=4), images[:0])
    with pytest.raises(InputError, match="width=0.0"):
        rescale_gradient_windows(ReActNet18(width=4), {}, 0.0)
