import dataclasses
import itertools

import pytest
import torch

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.variance import normalizer_free_betas
from bnfree.calibration import calibrate
from bnfree.errors import InputError
from bnfree.tickets import (
    Ticket,
    apply,
    load_ticket,
    mask_statistics,
    prune,
    save_ticket,
    squeeze,
    stretch,
    take_snapshot,
)

SHALLOW, DEEP = [2, 3, 1, 3], [3, 5, 1, 3]


def network(*depth, kind=ReActNet18, seed=0, **options):
    options = {"blocks_per_stage": list(depth)} | options if kind is ReActNet18 else options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        result = kind(num_classes=3, width=4, stem="cifar", **options)
        with torch.no_grad():
            # Every parameter gets values of its own, as after training.
            for parameter in result.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return result


def ticket_of(source, density=0.5, rewind=None, **found):
    apply(source, prune(source, density))
    start = take_snapshot(network(*DEEP) if rewind is None else rewind)
    return Ticket.of(source, rewind=start, score="standardized", scope="global", density=density, **found)


def assert_same_tensors(first, second):
    for ours, theirs in ((first.state_dict, second.state_dict), (first.rewind, second.rewind)):
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name
    assert first.checksum == second.checksum


@pytest.fixture
def shallow():
    source = network(*SHALLOW)
    return ticket_of(source, rewind=network(*SHALLOW, seed=1), details={"rate": 0.2})


@pytest.mark.parametrize("order", ["append", "interpolate"])
def test_squeezing_undoes_stretching_bit_for_bit(shallow, order, tmp_path):
    stretched = stretch(shallow, network(*DEEP, seed=5), order)
    fresh = network(*DEEP, seed=6)
    fresh.load_state_dict(stretched.start(), strict=True)
    assert fresh(torch.randn(2, 3, 8, 8)).isfinite().all()
    save_ticket(stretched, tmp_path / "ticket.pt")
    back = squeeze(load_ticket(tmp_path / "ticket.pt"), network(*SHALLOW, seed=7), order)
    assert_same_tensors(back, shallow)


def test_measured_betas_come_back_too_and_over_several_steps():
    """Betas without a common factor, so that scaling shifts there and back rounds."""
    nets = {}
    for depth in (2, 3, 5):
        nets[depth] = network(depth, depth, 2, 2, seed=depth)
        images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(depth))
        calibrate(nets[depth], images)
    start = network(2, 2, 2, 2, seed=8)
    start.load_state_dict(nets[2].state_dict())
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(1.01)
    ticket = ticket_of(nets[2], rewind=start)
    there = stretch(stretch(ticket, nets[3], "interpolate"), nets[5], "interpolate")
    halfway = squeeze(there, nets[3], "interpolate")
    assert_same_tensors(halfway, stretch(ticket, nets[3], "interpolate"))
    assert_same_tensors(squeeze(halfway, nets[2], "interpolate"), ticket)
    # Without the record a rounding would stay somewhere, so the test above tests something.
    lost = dataclasses.replace(there, details={**there.details, "unscaled_shifts": {}})
    plain = squeeze(lost, nets[2], "interpolate")
    differing = [name for name, tensor in ticket.state_dict.items() if not torch.equal(tensor, plain.state_dict[name])]
    assert differing
    assert all(name.endswith("rsign.shift") for name in differing)


def test_shifts_that_were_trained_meanwhile_are_not_replaced_by_the_record(shallow):
    stretched = stretch(shallow, network(*DEEP))
    name = "body.1.0.rsign.shift"
    stretched.state_dict[name] = stretched.state_dict[name] + 1
    back = squeeze(stretched, network(*SHALLOW))
    ratio = shallow.state_dict["body.1.0.beta"] / stretched.state_dict["body.1.0.beta"]
    assert ratio != 1
    assert torch.allclose(back.state_dict[name], shallow.state_dict[name] + ratio, rtol=1e-5)


@pytest.mark.parametrize("order", ["append", "interpolate"])
def test_every_block_is_a_copy_with_its_mask_and_thresholds(shallow, order):
    target = network(*DEEP, seed=3)
    stretched = stretch(shallow, target, order)
    second_stage = [0, 1, 2, 1, 2] if order == "append" else [0, 1, 1, 2, 2]
    expected = [[0, 1, 1], second_stage, [0], [0, 1, 2]]
    transitions = [stage > 0 and block == 0 for stage, blocks in enumerate(DEEP) for block in range(blocks)]
    betas = iter(normalizer_free_betas(transitions, alpha=0.5))
    for stage, sources in enumerate(expected):
        for place, source in enumerate(sources):
            beta = next(betas)
            new, old = f"body.{stage}.{place}", f"body.{stage}.{source}"
            for state, before in ((stretched.state_dict, shallow.state_dict), (stretched.rewind, shallow.rewind)):
                assert state[f"{new}.beta"].item() == pytest.approx(beta, rel=1e-6)
                for part in ("convolution.weight", "convolution.gain", "rprelu.slope", "rprelu.shift_in"):
                    assert torch.equal(state[f"{new}.{part}"], before[f"{old}.{part}"])
                thresholds = [s[f"{n}.rsign.shift"] / s[f"{n}.beta"] for s, n in ((state, new), (before, old))]
                assert torch.allclose(*thresholds, rtol=1e-6)
            assert torch.equal(stretched.masks[f"{new}.convolution"], shallow.masks[f"{old}.convolution"])
    for name in ("stem.convolution.weight", "classifier.bias"):
        assert torch.equal(stretched.state_dict[name], shallow.state_dict[name])
        assert stretched.state_dict[name].data_ptr() != shallow.state_dict[name].data_ptr()
    kept = stretch(shallow, target, order, rescale_shifts=False)
    name = "body.1.0.rsign.shift"
    assert torch.equal(kept.state_dict[name], shallow.state_dict[name])
    assert not torch.equal(stretched.state_dict[name], shallow.state_dict[name])


def test_a_ticket_remembers_where_it_comes_from(shallow):
    shallow = dataclasses.replace(
        shallow,
        config={"hyper_parameters": {"lr": 0.1, "backbone": {"class_path": "ReActNet18", "init_args": {"width": 4}}}},
    )
    stretched = stretch(shallow, network(*DEEP))
    back = squeeze(stretched, network(*SHALLOW))
    steps = back.details["elastic"]
    assert back.details["rate"] == 0.2
    assert [step["source_checksum"] for step in steps] == [shallow.checksum, stretched.checksum]
    assert steps[0]["mapping"] == "0:0;1:1,2|0:0;1:1,3;2:2,4|0:0|0:0;1:1;2:2"
    assert (steps[0]["from"], steps[0]["to"]) == (SHALLOW, DEEP)
    assert "elastic" not in shallow.details
    built = stretched.config["hyper_parameters"]
    assert built["backbone"]["init_args"] == {"width": 4, "blocks_per_stage": DEEP}
    assert built["lr"] == 0.1
    assert shallow.config["hyper_parameters"]["backbone"]["init_args"] == {"width": 4}


def test_equal_copies_keep_the_density_of_what_is_copied(shallow):
    def density(ticket, stage, blocks):
        masks = {n: m for n, m in ticket.masks.items() if n.split(".")[1] == stage and n.split(".")[2] in blocks}
        return mask_statistics(masks).total.density

    stretched = stretch(shallow, network(*DEEP))
    assert density(stretched, "1", "1234") == density(shallow, "1", "12")
    uneven = stretch(shallow, network(*DEEP), mapping="0:0;1:1,2|0:0;1:1,2,3;2:4|0:0|0:0;1:1;2:2")
    assert density(uneven, "1", "1234") != density(shallow, "1", "12")


def test_only_the_equal_blocks_of_reactnet_a_are_copied():
    small, large = (network(kind=ReActNetA, repeated_blocks=count, seed=count) for count in (2, 5))
    ticket = ticket_of(small, rewind=network(kind=ReActNetA, repeated_blocks=2, seed=9))
    stretched = stretch(ticket, large)
    sources = [*range(6), 6, 7, 6, 7, 6, 8, 9]
    for place, source in enumerate(sources):
        for part in ("0.convolution", "1.convolution"):
            assert torch.equal(stretched.masks[f"body.{place}.{part}"], ticket.masks[f"body.{source}.{part}"])
    large.load_state_dict(stretched.state_dict, strict=True)
    assert stretched.details["elastic"][0]["mapping"] == "0:0;1:1,3,5;2:2,4"
    assert_same_tensors(squeeze(stretched, network(kind=ReActNetA, repeated_blocks=2)), ticket)


def test_batch_norm_moves_with_its_block():
    source, target = (network(*depth, norm="batch_norm") for depth in ((2, 2, 1, 1), (3, 2, 1, 1)))
    source(torch.randn(8, 3, 8, 8))
    ticket = ticket_of(source, rewind=network(2, 2, 1, 1, norm="batch_norm", seed=2))
    stretched = stretch(ticket, target)
    for place, block in ((1, 1), (2, 1)):
        for part in ("batch_norm.running_var", "rsign.shift"):
            moved, before = stretched.state_dict[f"body.0.{place}.{part}"], ticket.state_dict[f"body.0.{block}.{part}"]
            assert torch.equal(moved, before)
    assert_same_tensors(squeeze(stretched, source), ticket)


def test_mistakes(shallow):
    deep = network(*DEEP)
    for change, arguments, said in (
        (stretch, (network(1, 3, 1, 3),), "stretch cannot turn a ticket with stages of [2, 3, 1, 3] blocks into a "),
        (squeeze, (deep,), "which has more somewhere; use stretch"),
        (stretch, (network(2, 3, 2, 3),), "a stage of 1 block cannot become one of 2"),
        (stretch, (network(*DEEP, norm="batch_norm"),), "it lacks 'body.0.0.batch_norm.bias'"),
        (stretch, (network(*DEEP, in_channels=1),), "in another shape 'stem.convolution.weight'"),
        (stretch, (torch.nn.Linear(1, 1),), "target=Linear has no stages of blocks to stretch"),
        (stretch, (network(kind=ReActNetA),), "the ticket is not of a ReActNetA"),
        (stretch, (deep, "append", "0:0;1:1"), "leaves 'body.0.2' uncovered"),
    ):
        with pytest.raises(InputError) as caught:
            change(shallow, *arguments)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_depths_of_the_networks():
    for depth in itertools.product((1, 2), repeat=4):
        net = network(*depth)
        assert [len(stage) for stage in net.body] == list(depth)
    with torch.device("meta"):
        default, explicit = ReActNet18(), ReActNet18(blocks_per_stage=[4, 4, 4, 4])
        assert list(default.state_dict()) == list(explicit.state_dict())
        assert len(ReActNetA().body) == 13
    for depth in ([4, 4, 4], [4, 4, 0, 4], [4, 4, 4, 4.0], [True, 1, 1, 1]):
        with pytest.raises(InputError, match="must be four whole numbers of at least 1, such as"):
            ReActNet18(blocks_per_stage=depth)
    with pytest.raises(InputError, match="repeated_blocks=0 must be at least 1"):
        ReActNetA(repeated_blocks=0)
