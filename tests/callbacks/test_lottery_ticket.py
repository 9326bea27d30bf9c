"""LotteryTicket in real fits: what stays zero, what training starts from, and what it leaves for the next level."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping, LotteryTicket
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.tickets import Ticket, apply, prunable_layers, prune, save_ticket, take_snapshot


class Small(nn.Module):
    """Two binary convolutions: quick, and with everything a ticket is about."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.first, self.second = BinaryConv2d(3, 8, 3, padding=1), BinaryConv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 10)

    def forward(self, images):
        return self.classifier(self.second(torch.tanh(self.first(images))).mean((2, 3)))


@pytest.fixture
def ticket(tmp_path):
    """Writes a ticket of a network; its rewind weights are others than those it was found with."""

    def make(density=0.2, network=None, name="ticket.pt", **options):
        network = Small() if network is None else network
        start = take_snapshot(network)
        found = {key: value + 0.1 if value.is_floating_point() else value for key, value in start.items()}
        apply(network, prune(network, density, **options))
        ticket = Ticket.of(network, rewind=start, score="standardized", scope="global", density=density)
        ticket = Ticket(**{**vars(ticket), "state_dict": {**ticket.state_dict, **found}})
        save_ticket(ticket, tmp_path / name)
        return ticket

    make.path = str(tmp_path / "ticket.pt")
    return make


class First(Callback):
    """Remembers the weights before a step, as another callback sees them."""

    def __init__(self, step=0):
        self.step, self.state = step, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and not self.state:
            self.state = {name: value.clone() for name, value in pl_module.backbone.state_dict().items()}


class Drifting(torch.optim.SGD):
    """Moves every weight, with or without a gradient."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        return loss


OPTIMIZERS = {
    "momentum": lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=0.1),
    "adamw": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True),
    "drifting": lambda module: Drifting(module.parameters(), lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["global", "filter"])
def test_zeros_are_exact_after_fifty_steps(ticket, classifier, make_trainer, make_loader, optimizer, scope):
    masks = ticket(0.2, scope=scope).masks
    module = classifier(Small(), OPTIMIZERS[optimizer])
    trainer = make_trainer(LotteryTicket(ticket.path), max_epochs=25)
    trainer.fit(module, make_loader())
    assert trainer.global_step == 50
    for name, layer in prunable_layers(module.backbone).items():
        assert torch.equal(layer.effective_weight() != 0, masks[name])
        assert not layer.weight[~masks[name]].any()
        for value in trainer.optimizers[0].state[layer.weight].values():
            if value is not None and value.shape == layer.weight.shape:
                assert not value[~masks[name]].any()
                assert value[masks[name]].any()
    kept, weights = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert trainer.callback_metrics["ticket/density"] == pytest.approx(kept / weights, abs=1e-7)


def test_latent_weights_at_the_clipping_limit_are_pruned_to_the_weight(ticket, classifier, make_trainer, make_loader):
    network = Small()
    with torch.no_grad():
        for layer in prunable_layers(network).values():
            layer.weight.copy_(torch.where(layer.weight >= 0, 1.0, -1.0))
    masks = ticket(0.3, network, score="latent").masks
    module = classifier(Small())
    make_trainer(LotteryTicket(ticket.path), max_steps=3).fit(module, make_loader())
    weights = sum(mask.numel() for mask in masks.values())
    effective = [layer.effective_weight() for layer in prunable_layers(module.backbone).values()]
    assert sum(int(weight.count_nonzero()) for weight in effective) == round(0.3 * weights)


@pytest.mark.parametrize("start", ["weights", "mask"])
def test_start(ticket, classifier, make_trainer, make_loader, start):
    given = ticket()
    module, first = classifier(Small()), First()
    before = take_snapshot(module.backbone)
    make_trainer(LotteryTicket(ticket.path, start), first, max_steps=1).fit(module, make_loader())
    expected = dict(given.rewind if start == "weights" else before)
    for name, mask in given.masks.items():
        expected[f"{name}.weight"] = expected[f"{name}.weight"] * mask
        expected[f"{name}.mask"] = mask
    assert first.state.keys() == expected.keys()
    assert all(torch.equal(first.state[name], value) for name, value in expected.items())


def test_resumed_run_ends_as_the_uninterrupted_one(ticket, classifier, make_trainer, make_loader, tmp_path):
    ticket()
    saved = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, resumed = (classifier(Small(), OPTIMIZERS["adam"]) for _ in range(2))
    options = {"max_epochs": 3, "enable_checkpointing": True}
    make_trainer(LotteryTicket(ticket.path), saved, **options).fit(whole, make_loader())
    path = tmp_path / "epoch=0.ckpt"
    torch.load(path, weights_only=True)
    make_trainer(LotteryTicket(ticket.path), **{**options, "enable_checkpointing": False}).fit(
        resumed, make_loader(), ckpt_path=path
    )
    one, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    ticket(0.5, name="other.pt")
    with pytest.raises(InputError, match="other masks than the checkpoint"):
        make_trainer(LotteryTicket(str(tmp_path / "other.pt")), max_epochs=3).fit(
            classifier(Small()), make_loader(), ckpt_path=path
        )


@pytest.mark.parametrize(
    ("point", "step", "options"),
    [("init", 0, {}), ("3it", 3, {}), ("1ep", 2, {}), ("50%", 4, {}), ("1ep", 1, {"accumulate_grad_batches": 2})],
)
def test_rewind_point_is_the_state_before_its_step(
    classifier, make_trainer, make_loader, tmp_path, point, step, options
):
    module, first = classifier(Small(), OPTIMIZERS["adam"]), First(step)
    trainer = make_trainer(LotteryTicket(rewind_point=point), first, max_epochs=4, **options)
    trainer.fit(module, make_loader())
    content = torch.load(tmp_path / "rewind.pt", weights_only=True)
    assert content["step"] == step
    assert content["state_dict"].keys() == first.state.keys()
    assert all(torch.equal(content["state_dict"][name], value) for name, value in first.state.items())
    assert (content["checkpoint"] is None) == (step == 0)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"max_epochs": -1, "max_steps": 7}])
def test_training_goes_on_from_the_rewind_point_to_the_bit(classifier, make_trainer, make_loader, tmp_path, options):
    options = {"max_epochs": 4, **options}
    whole, again = (classifier(Small(), OPTIMIZERS["adam"]) for _ in range(2))
    data = make_loader(12), make_loader(4)
    trainer = make_trainer(LotteryTicket(rewind_point="1ep"), **options)
    trainer.fit(whole, *data)
    torch.save(torch.load(tmp_path / "rewind.pt", weights_only=True)["checkpoint"], tmp_path / "start.ckpt")
    second = make_trainer(**options)
    second.fit(again, *data, ckpt_path=tmp_path / "start.ckpt")
    assert (second.global_step, second.current_epoch) == (trainer.global_step, trainer.current_epoch)
    one, other = whole.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_flips_of_the_second_half_are_in_the_checkpoint(classifier, make_trainer, make_loader, tmp_path):
    signs = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            signs.append(pl_module.backbone.second.effective_weight().detach().sign())

        def on_train_end(self, trainer, pl_module):
            signs.append(pl_module.backbone.second.effective_weight().detach().sign())

    module = classifier(Small(), lambda module: torch.optim.SGD(module.parameters(), lr=5.0))
    saved = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    trainer = make_trainer(LotteryTicket(score="flip"), Watch(), saved, max_epochs=4, enable_checkpointing=True)
    trainer.fit(module, make_loader())
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    flips = next(state["flips"] for name, state in states.items() if name.startswith("LotteryTicket"))
    expected = sum((a * b < 0).int() for a, b in pairwise(signs[4:]))
    assert flips["intervals"] == 4
    assert expected.sum() > 0
    assert torch.equal(flips["counts"]["second"], expected)


def test_gradients_for_snip_are_means_over_the_training_images(classifier, make_trainer, make_loader, tmp_path):
    module = classifier(Small())
    make_trainer(LotteryTicket(score="snip"), max_epochs=1).fit(module, make_loader(12))
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    # The effective weight is gain * s, so that dL/dgain is the sum over a filter of dL/dw * w / gain.
    images, labels = next(iter(make_loader(12, 12)))
    module.zero_grad()
    F.cross_entropy(module(images), labels).backward()
    for name, layer in prunable_layers(module.backbone).items():
        by_filter = (gradients[name] * layer.effective_weight() / layer.gain).sum((1, 2, 3), keepdim=True)
        torch.testing.assert_close(by_filter, layer.gain.grad, rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_masked_too(ticket, classifier, make_trainer, make_loader):
    masks = ticket().masks
    average = EMAWeightAveraging(decay=0.5)
    module = classifier(Small())
    make_trainer(average, LotteryTicket(ticket.path), max_epochs=2).fit(module, make_loader())
    for network in (average._average_model.module.backbone, module.backbone):
        for name, layer in prunable_layers(network).items():
            assert torch.equal(layer.mask, masks[name])
            assert not layer.weight[~masks[name]].any()


@pytest.mark.parametrize("start", ["weights", "mask"])
def test_a_ticket_of_a_network_that_has_lost_rows(ticket, classifier, make_trainer, make_loader, start):
    smaller = Small()
    smaller.first.keep_rows(torch.tensor([1, 4, 6]))
    masks = ticket(network=smaller).masks
    average = EMAWeightAveraging(use_buffers=False)
    module = classifier(Small())
    make_trainer(average, LotteryTicket(ticket.path, start=start)).fit(module, make_loader())
    assert module.backbone.first.kept_rows.tolist() == [1, 4, 6]
    assert torch.equal(module.backbone.first.mask, masks["first"])


def test_average_that_cannot_hold_masks_is_refused(ticket, classifier, make_trainer, make_loader):
    ticket()
    with pytest.raises(InputError, match="use_buffers to false"):
        make_trainer(WeightAveraging(), LotteryTicket(ticket.path)).fit(classifier(Small()), make_loader())
    module = classifier(Small())
    make_trainer(WeightAveraging(use_buffers=False), LotteryTicket(ticket.path)).fit(module, make_loader())
    assert module.backbone.first.mask is not None


def test_clipping_sees_the_norm_of_the_survivors(ticket, classifier, make_trainer, make_loader):
    network = Small()
    masks = ticket(0.2, network).masks
    ratios = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for name, mask in masks.items():
                weight = getattr(pl_module.backbone, name).weight.detach()
                gradient = getattr(pl_module.backbone, name).weight.grad
                survivors = (weight * mask).flatten(1).norm(dim=1)
                ratios.append(gradient.flatten(1).norm(dim=1) / survivors)

    # Latent weights that are pruned and far longer than the survivors.
    content = Ticket(**{**vars(Ticket.of(network, rewind=None, score="", scope="", density=0.2))})
    long = {f"{name}.weight": content.state_dict[f"{name}.weight"] + 100.0 * ~mask for name, mask in masks.items()}
    save_ticket(Ticket(**{**vars(content), "rewind": {**_without_masks(content.state_dict), **long}}), ticket.path)
    callbacks = [AdaptiveGradientClipping(1e-4), LotteryTicket(ticket.path), Watch()]
    make_trainer(*callbacks, max_epochs=2).fit(classifier(Small()), make_loader())
    assert float(torch.cat(ratios).max()) == pytest.approx(1e-4, rel=1e-4)


def _without_masks(state):
    return {name: value for name, value in state.items() if not name.endswith(".mask")}


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(ticket, classifier, make_trainer, make_loader, precision):
    masks = ticket().masks
    module = classifier(Small())
    make_trainer(LotteryTicket(ticket.path), max_steps=4, precision=precision).fit(module, make_loader())
    for name, layer in prunable_layers(module.backbone).items():
        assert torch.equal(layer.effective_weight() != 0, masks[name])


@pytest.mark.slow
def test_compiled_network(ticket, classifier, make_trainer, make_loader):
    masks = ticket().masks
    plain, compiled = classifier(Small()), classifier(Small())
    compiled.backbone.compile(backend="eager", fullgraph=True)
    for module in (plain, compiled):
        make_trainer(LotteryTicket(ticket.path), max_epochs=2).fit(module, make_loader())
    for name, layer in prunable_layers(compiled.backbone).items():
        assert torch.equal(layer.effective_weight() != 0, masks[name])
        torch.testing.assert_close(layer.weight, getattr(plain.backbone, name).weight)


def test_dense_run_has_density_one(classifier, make_trainer, make_loader):
    trainer = make_trainer(LotteryTicket())
    trainer.fit(classifier(ReActNet18(width=2)), make_loader())
    assert trainer.callback_metrics["ticket/density"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "signs"}, "start='signs' is not known"),
        ({"rewind_point": "late"}, "rewind_point='late' is not known"),
        ({"score": "hessian"}, "score='hessian' is not known"),
        ({"ticket": "nowhere.pt"}, "nowhere.pt"),
        ({"rewind_point": "2ep"}, "does not lie before the end of training"),
        ({"exclude": ["third"]}, "exclude='third' fits no convolution"),
    ],
)
def test_mistakes(classifier, make_trainer, make_loader, options, said):
    with pytest.raises(InputError, match=said):
        make_trainer(LotteryTicket(**options), max_epochs=2).fit(classifier(Small()), make_loader())


def test_two_starts_contradict_each_other(ticket, classifier, make_trainer, make_loader):
    ticket()
    module = classifier(Small())
    module.init_from = "other.ckpt"
    with pytest.raises(InputError, match="both say what training starts"):
        make_trainer(LotteryTicket(ticket.path)).fit(module, make_loader())


def test_ticket_of_another_network_is_refused(ticket, classifier, make_trainer, make_loader):
    ticket(0.5, ReActNet18(width=2))
    with pytest.raises(InputError, match="no convolution of Small"):
        make_trainer(LotteryTicket(ticket.path)).fit(classifier(Small()), make_loader())


def test_split_parameters_are_refused(ticket, classifier):
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(InputError, match="FSDPStrategy splits parameters among processes, and LotteryTicket"):
        LotteryTicket().setup(trainer, classifier(Small()), "fit")
