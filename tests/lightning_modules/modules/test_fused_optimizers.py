import copy
from functools import partial

import pytest
import torch
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AdaptiveGradientClipping
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.modules.fused_optimizers import prefer_fused

ADAM = partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2)
ADAMW = partial(torch.optim.AdamW, lr=1e-2)
SGD = partial(torch.optim.SGD, lr=1e-1, momentum=0.9, nesterov=True, weight_decay=1e-2)


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((7, 5, 3, 3), (40,), (1, 9, 1, 1))]


def kernels(optimizer):
    return {group["fused"] for group in optimizer.param_groups}


@pytest.mark.parametrize("make", [ADAM, ADAMW, SGD], ids=["Adam", "AdamW", "SGD"])
def test_the_fused_step_is_that_of_the_optimizer(make):
    fused, plain = parameters(), parameters()
    optimizers = [make(fused), make(plain, foreach=False)]
    for optimizer in optimizers:
        prefer_fused(optimizer)
    assert [kernels(optimizer) for optimizer in optimizers] == [{True}, {None}]
    for step in range(5):
        for a, b in zip(fused, plain, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            # What a mask leaves out has no gradient, and stays where it is.
            a.grad.view(-1)[::3] = 0
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(fused, plain, parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.equal(a, start)


def test_a_pruned_latent_weight_stays_zero():
    weight = nn.Parameter(torch.randn(50))
    weight.data[::2] = 0
    optimizer = ADAM([weight])
    prefer_fused(optimizer)
    for _ in range(3):
        weight.grad = torch.randn(50)
        weight.grad[::2] = 0
        optimizer.step()
    assert not weight[::2].any()
    assert weight[1::2].all()


class OwnAdam(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (partial(torch.optim.Adam, fused=False), {False}),
        (partial(torch.optim.Adam, foreach=True), {None}),
        (partial(torch.optim.SGD, foreach=False), {None}),
        (partial(torch.optim.AdamW, differentiable=True), {None}),
        (OwnAdam, {None}),
    ],
    ids=["fused=False", "foreach=True", "foreach=False", "differentiable", "a subclass"],
)
def test_what_the_user_says_wins(make, kept):
    optimizer = make(parameters())
    prefer_fused(optimizer)
    assert kernels(optimizer) == kept


def test_optimizers_without_a_fused_kernel_are_left_alone():
    optimizer = torch.optim.RMSprop(parameters())
    before = copy.deepcopy(optimizer.state_dict())
    prefer_fused(optimizer)
    assert optimizer.state_dict() == before
    on_meta = ADAM([nn.Parameter(torch.zeros(3, device="meta"))])
    prefer_fused(on_meta)
    assert kernels(on_meta) == {None}


def test_a_run_uses_it_by_default_with_clipping_and_scaled_gradients(corners, make_trainer):
    from lightning.pytorch.plugins import MixedPrecision

    module = ImageClassifier(ReActNet18(4, width=4))
    clipping = AdaptiveGradientClipping(clip_factor=1000.0, eps=1.0)
    trainer = make_trainer(callbacks=[clipping], plugins=[MixedPrecision("16-mixed", "cpu")], log_every_n_steps=1)
    trainer.fit(module, corners)
    (optimizer,) = trainer.optimizers
    assert kernels(optimizer) == {True}
    # No gradient is a thousand times as long as its weight, unless it is still multiplied by the scale.
    assert trainer.callback_metrics["agc/clipped_fraction"] == 0
    assert trainer.precision_plugin.scaler.get_scale() > 10_000
