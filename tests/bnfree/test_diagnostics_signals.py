import pytest
import torch
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate
from bnfree.diagnostics import measure_signals, plot_signals, render
from bnfree.errors import InputError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def signals_by_hand(network, images):
    """The same figures from the inputs of the units, one channel after the other."""
    inputs = {}
    units = [u for stage in network.body for u in stage]
    hooks = [u.register_forward_hook(lambda u, args, _: inputs.__setitem__(u, args[0].detach())) for u in units]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    figures = []
    for unit in units:
        x = inputs[unit].double()
        beta = 1.0 if unit.beta is None else unit.beta.item()
        channels = []
        for c in range(x.shape[1]):
            values = x[:, c].flatten()
            presign = beta * values + unit.rsign.shift[c].item()
            balance = abs(2 * (presign >= 0).double().mean().item() - 1)
            std = values.std(correction=0).item()
            mean = abs(values.mean().item())
            channels.append([mean, mean / std, std**2, balance, (presign.abs() < 1).double().mean().item()])
        table = torch.tensor(channels)
        figures.append([*table.mean(0).tolist(), table[:, 3].max().item(), beta])
    return figures


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm", "none"])
def test_signals_equal_a_computation_by_hand(norm):
    network = ReActNet18(width=4, norm=norm).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() == 1 else None
    images = torch.randn(4, 3, 16, 16)
    signals = measure_signals(network, images)
    assert [s.name for s in signals] == [f"body.{stage}.{unit}" for stage in range(4) for unit in range(4)]
    for signal, (mean, drift, variance, balance, window, worst, beta) in zip(
        signals, signals_by_hand(network, images), strict=True
    ):
        assert signal.mean == pytest.approx(mean, rel=1e-4)
        assert signal.drift == pytest.approx(drift, rel=1e-4)
        assert signal.variance == pytest.approx(variance, rel=1e-4)
        assert signal.imbalance == pytest.approx(balance, abs=1e-2)
        assert signal.worst_imbalance == pytest.approx(worst, abs=5e-2)
        assert signal.window == pytest.approx(window, abs=1e-2)
        if norm == "bn_free":
            assert signal.expected_variance == pytest.approx(beta**-2, rel=1e-5)
        else:
            assert signal.expected_variance is None


def test_measuring_changes_nothing():
    network = ReActNet18(width=4, norm="batch_norm").train()
    network.body[1].eval()
    modes = [module.training for module in network.modules()]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    measure_signals(network, torch.randn(2, 3, 16, 16, requires_grad=True))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(RuntimeError):
        measure_signals(network, torch.randn(2, 5, 16, 16))
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_calibration_shows_in_the_signals():
    network, images = ReActNet18(width=8), torch.randn(16, 3, 16, 16)
    before = measure_signals(network, images)
    assert before[-1].variance < 0.3 * before[-1].expected_variance
    calibrate(network, images)
    for signal in measure_signals(network, images):
        assert signal.variance == pytest.approx(signal.expected_variance, rel=0.3)
        assert signal.window == pytest.approx(0.68, abs=0.15)


def test_compiled_network_is_measured_in_its_plain_form():
    network, images = ReActNet18(width=4), torch.randn(2, 3, 16, 16)

    def refuse(graph, inputs):
        raise AssertionError("compiled")

    expected = measure_signals(network, images)
    assert measure_signals(torch.compile(network, backend=refuse), images) == expected
    network.compile(backend=refuse)
    assert measure_signals(network, images) == expected


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (nn.Linear(3, 3), (2, 3, 8, 8), "network=Linear has no ResidualUnit"),
        (ReActNet18(width=4), (3, 8, 8), r"images has shape \(3, 8, 8\)"),
        (ReActNet18(width=4), (0, 3, 8, 8), r"images has shape \(0, 3, 8, 8\)"),
    ],
)
def test_what_cannot_be_measured_is_said(network, shape, words):
    with pytest.raises(InputError, match=words):
        measure_signals(network, torch.zeros(shape))


@pytest.mark.parametrize("norm", ["bn_free", "none"])
def test_figure_shows_every_unit(norm):
    import matplotlib

    backend = matplotlib.rcParams._get_backend_or_none()
    signals = measure_signals(ReActNet18(width=4, norm=norm), torch.randn(2, 3, 16, 16))
    figure = plot_signals(signals, "epoch 3")
    assert figure.get_suptitle() == "epoch 3"
    variance, *_, window = figure.axes
    assert [label.get_text() for label in window.get_xticklabels()] == [s.name.removeprefix("body.") for s in signals]
    assert list(variance.lines[0].get_ydata()) == [s.variance for s in signals]
    assert len(variance.lines) == (2 if norm == "bn_free" else 1)
    assert all(axes.get_ylabel() for axes in figure.axes)
    pixels = render(figure)
    assert pixels.dtype == "uint8"
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.std() > 0
    assert matplotlib.rcParams._get_backend_or_none() == backend
