import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bnfree.callbacks import AdaptiveGradientClipping, NonFiniteStop, non_finite_stop
from bnfree.callbacks.non_finite_step import Step, replay, where
from bnfree.diagnostics import NonFinite
from bnfree.errors import InputError, NonFiniteError

BAD = 1e30


def loader(bad=(), batches=6, size=2, value=BAD):
    """Batches of finite numbers, in which some are so large that the head below overflows."""
    images = torch.randn(batches * size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for index in bad:
        images[index * size] = value
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), size)


class Overflow(nn.Module):
    """1e30 becomes infinite in the middle; ordinary images stay what they are."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 6)
        self.middle = nn.Identity()
        self.classifier = nn.Linear(6, 10)

    def forward(self, images):
        x = self.first(images.flatten(1))
        return self.classifier(self.middle(x) * x.square())


def adam(**options):
    return lambda module: torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=0.1, **options)


def sgd(**options):
    return lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1, **options)


@pytest.fixture
def delayed(monkeypatch):
    """Answers one step later, as on a GPU."""
    monkeypatch.setattr(non_finite_stop, "_waits_not", lambda flag, optimizer, scaler: bool(optimizer.state))
    monkeypatch.setattr(non_finite_stop, "_start_copy", lambda flag: (flag.clone(), None))


def states(module, optimizer):
    moments = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return [value.clone() for value in (*module.state_dict().values(), *moments) if isinstance(value, torch.Tensor)]


class Record(Callback):
    """State before and after each step."""

    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(states(pl_module, trainer.optimizers[0]))


def test_a_step_that_is_not_finite_is_not_taken_and_named(classifier, make_trainer, tmp_path):
    record, module = Record(), classifier(Overflow(), adam())
    trainer = make_trainer(record, NonFiniteStop())
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(module, loader(bad=[3, 5]))
    said = str(caught.value)
    assert "diverged at step 3 (epoch 0, batch 3; loss nan)" in said
    assert "backbone.classifier" in said
    assert "there is no checkpoint yet; lower the learning rate (it was 0.01)" in said
    assert str(tmp_path / "non_finite.pt") in said
    assert len(record.after) == 3
    assert all(map(torch.equal, record.after[-1], states(module, trainer.optimizers[0])))


def test_it_is_replayed(classifier, make_trainer, tmp_path):
    module = classifier(Overflow(), adam())
    with pytest.raises(NonFiniteError):
        make_trainer(NonFiniteStop()).fit(module, loader(bad=[3]))
    kept = torch.load(tmp_path / "non_finite.pt", weights_only=True)
    assert kept["step"] == 3
    assert [entry["index"] for entry in kept["batches"]] == [3]
    assert torch.equal(kept["batches"][0]["batch"][0], list(loader(bad=[3]))[3][0])
    assert all(map(torch.equal, kept["state_dict"].values(), module.state_dict().values()))
    assert kept["optimizer_states"][0]["state"][0]["step"] == 3
    again = classifier(Overflow(), adam())
    assert replay(tmp_path / "non_finite.pt", again) == NonFinite("output", "backbone.classifier")
    # A change that helps: what overflowed is bounded.
    again.backbone.middle = nn.Hardtanh()
    again.backbone.first.register_forward_hook(lambda layer, inputs, output: output.clamp(-1, 1))
    assert replay(tmp_path / "non_finite.pt", again) is None
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="is no record of a step"):
        replay(tmp_path / "other.pt", again)


def test_randomness_of_the_step_comes_back(classifier, make_trainer, tmp_path):
    class Unlucky(Overflow):
        def forward(self, images):
            # One step in some is bad, which the random state alone decides.
            return super().forward(images) * (torch.inf if torch.rand(()) < 0.3 else 1)

    torch.manual_seed(1)
    with pytest.raises(NonFiniteError, match="step"):
        make_trainer(NonFiniteStop(), max_epochs=10).fit(classifier(Unlucky()), loader())
    assert replay(tmp_path / "non_finite.pt", classifier(Unlucky())) == NonFinite("output", "backbone")


@pytest.mark.parametrize("make", [adam(), adam(fused=True), adam(foreach=True), sgd(), sgd(fused=True)])
@pytest.mark.parametrize("late", [False, True])
def test_skipped_steps_leave_weights_and_moments_alone(classifier, make_trainer, make, late, request):
    if late:
        if not make(nn.Linear(1, 1)).param_groups[0]["fused"]:
            pytest.skip("only fused kernels leave steps out on the device")
        request.getfixturevalue("delayed")
    record, callback = Record(), NonFiniteStop(action="skip")
    module = classifier(Overflow(), make)
    start = copy.deepcopy(module)
    trainer = make_trainer(record, callback)
    with pytest.warns(UserWarning, match="diverged at step 2 .*left out"):
        trainer.fit(module, loader(bad=[2, 4]))
    for bad in (2, 4):
        assert all(map(torch.equal, record.after[bad], record.after[bad - 1]))
    assert not all(map(torch.equal, record.after[3], record.after[2]))
    assert callback.skipped == 2
    # As if the batches had not been there.
    kept = DataLoader([image for index, image in enumerate(loader().dataset) if index // 2 not in (2, 4)], 2)
    make_trainer().fit(start, kept)
    assert all(map(torch.equal, start.state_dict().values(), module.state_dict().values()))


@pytest.mark.parametrize("late", [False, True])
def test_skipping_for_good_stops(classifier, make_trainer, late, request):
    if late:
        request.getfixturevalue("delayed")
    trainer = make_trainer(NonFiniteStop("skip", most_skips=2), max_epochs=3)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(NonFiniteError, match="3 steps in a row were left out"),
    ):
        trainer.fit(classifier(Overflow(), adam(fused=True)), loader(bad=[1, 3, 4, 5]))


def test_a_late_answer_comes_before_validation_and_checkpoints(classifier, make_trainer, delayed, tmp_path):
    class Validated(Callback):
        ran = False

        def on_validation_epoch_end(self, trainer, pl_module):
            Validated.ran = True

    module = classifier(Overflow(), adam(fused=True))
    record = Record()
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    trainer = make_trainer(record, Validated(), NonFiniteStop(), checkpoint, enable_checkpointing=True)
    with pytest.raises(NonFiniteError, match="step 5"):
        trainer.fit(module, loader(bad=[5]), loader())
    assert not Validated.ran
    assert not list(tmp_path.glob("*.ckpt"))
    assert all(map(torch.equal, record.after[4], states(module, trainer.optimizers[0])))
    assert replay(tmp_path / "non_finite.pt", module) == NonFinite("output", "backbone.classifier")


def test_accumulated_batches_make_one_step(classifier, make_trainer, tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 1 \(epoch 0, batch 3;"):
        make_trainer(NonFiniteStop(), accumulate_grad_batches=3).fit(classifier(Overflow()), loader(bad=[3]))
    kept = torch.load(tmp_path / "non_finite.pt", weights_only=True)
    assert [entry["index"] for entry in kept["batches"]] == [3, 4, 5]


def test_only_gradients_are_wrong(classifier, make_trainer):
    class Root(Overflow):
        def forward(self, images):
            x = self.first(images.flatten(1))
            # sqrt(0) is 0, and its derivative infinite.
            return self.classifier(self.middle(x * 0).sqrt())

    with pytest.raises(NonFiniteError, match="loss 2.*gradient that is not is backbone.middle"):
        make_trainer(NonFiniteStop()).fit(classifier(Root()), loader())


def test_images_that_are_not_finite(classifier, make_trainer):
    with pytest.raises(NonFiniteError, match="step 2 .*the batch itself holds values that are not finite"):
        make_trainer(NonFiniteStop()).fit(classifier(Overflow()), loader(bad=[2], value=torch.nan))


def test_clipping_before_it_hides_nothing(classifier, make_trainer):
    for callbacks in ((AdaptiveGradientClipping(), NonFiniteStop()), (NonFiniteStop(), AdaptiveGradientClipping())):
        with pytest.raises(NonFiniteError) as caught:
            make_trainer(*callbacks).fit(classifier(Overflow()), loader(bad=[2]))
        assert "AdaptiveGradientClipping" not in str(caught.value)


def logged(base, values):
    """A module whose validations give these values."""

    class Module(base):
        def validation_step(self, batch, batch_idx):
            self.log("val/acc", values[self.trainer.current_epoch], batch_size=2)

    return Module(Overflow(), adam())


def checkpoints(tmp_path, mode):
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/acc", mode=mode, enable_version_counter=False)
    return best, ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_metric_that_is_nan_is_never_the_best(classifier, make_trainer, tmp_path, mode):
    values = [torch.tensor(v) for v in (torch.nan, 0.5, torch.nan, 0.5)]
    best, last = checkpoints(tmp_path, mode)
    trainer = make_trainer(NonFiniteStop("skip"), best, last, enable_checkpointing=True, max_epochs=4)
    trainer.fit(logged(classifier, values), loader(), loader())
    assert best.best_model_score == 0.5
    assert torch.load(tmp_path / "best.ckpt", weights_only=False)["epoch"] == 1
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["epoch"] == 3
    # Without a single finite metric there is no best one.
    best, last = checkpoints(tmp_path / "other", mode)
    trainer = make_trainer(NonFiniteStop("skip"), best, last, enable_checkpointing=True, max_epochs=1)
    trainer.fit(logged(classifier, values), loader(), loader())
    assert best.best_model_path == ""
    assert not (tmp_path / "other" / "best.ckpt").exists()


def test_a_validation_that_is_not_finite_stops_before_it_is_kept(classifier, make_trainer, tmp_path):
    values = [torch.tensor(0.5), torch.tensor(torch.inf)]
    best, last = checkpoints(tmp_path, "max")
    trainer = make_trainer(NonFiniteStop(), best, last, enable_checkpointing=True, max_epochs=4)
    with pytest.raises(
        NonFiniteError, match=r"^val/acc is not finite after step 12 .epoch 1.*last checkpoint is .*ckpt"
    ):
        trainer.fit(logged(classifier, values), loader(), loader())
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["epoch"] == 0
    assert torch.load(tmp_path / "best.ckpt", weights_only=False)["epoch"] == 0


def test_weights_that_are_not_finite_are_not_saved(classifier, make_trainer, tmp_path):
    class Spoil(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch:
                pl_module.backbone.first.bias.data[0] = torch.inf

    _, last = checkpoints(tmp_path, "max")
    trainer = make_trainer(Spoil(), NonFiniteStop(), last, enable_checkpointing=True, max_epochs=4)
    with pytest.raises(NonFiniteError, match=r"weights of backbone.first.bias are not finite after step 12"):
        trainer.fit(classifier(Overflow(), adam()), loader())
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["epoch"] == 0


def test_a_scaler_may_leave_steps_out_until_its_scale_is_gone(make_trainer):
    class Scaler:
        _scale = torch.tensor(65536.0)

    trainer = make_trainer()
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.full((2,), torch.inf)
    assert non_finite_stop._flag(trainer, optimizer, [], None) == 1
    assert non_finite_stop._flag(trainer, optimizer, [torch.tensor(torch.nan)], Scaler()) == 0
    Scaler._scale = torch.tensor(2.0**-9)
    assert non_finite_stop._flag(trainer, optimizer, [], Scaler()) == 1


def test_manual_optimisation_stops_too(classifier, make_trainer):
    class Manual(classifier):
        def __init__(self, *args):
            super().__init__(*args)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    with pytest.raises(NonFiniteError, match="step 3 "):
        make_trainer(NonFiniteStop()).fit(Manual(Overflow()), loader(bad=[3]))


def test_sound_trainings_are_left_alone(classifier, make_trainer):
    modules = []
    for callbacks in ((), (NonFiniteStop(),), (NonFiniteStop("off"),)):
        torch.manual_seed(0)
        modules.append(classifier(None, adam()))
        make_trainer(*callbacks).fit(modules[-1], loader(), loader())
    for other in modules[1:]:
        assert all(map(torch.equal, modules[0].state_dict().values(), other.state_dict().values()))


def test_the_place_is_found_without_the_other_processes(classifier, make_trainer, tmp_path):
    """They may have another place or none, and wait for nobody: batch norm takes this process's statistics alone."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.SyncBatchNorm(6), nn.Linear(6, 10))
    network[3].weight.data.fill_(3e38)
    module, step = classifier(network), Step(0)
    step.add(module, loader().dataset[:4], 0, 0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        # Synchronised batch norm refuses a CPU where it would ask the others.
        with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
            network(torch.zeros(4, 3, 8, 8))
        place, batch = where(make_trainer(), module, step)
        with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
            network(torch.zeros(4, 3, 8, 8))
    finally:
        torch.distributed.destroy_process_group()
    assert place == NonFinite("output", "backbone.3")
    assert batch is step.batches[0]


def test_mistakes():
    with pytest.raises(InputError, match="action='warn' is not known; choose 'stop', 'skip' or 'off'"):
        NonFiniteStop(action="warn")
    with pytest.raises(InputError, match="most_skips=0 must be at least 1"):
        NonFiniteStop(most_skips=0)
