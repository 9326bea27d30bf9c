"""MaskSparsity: which rows are marked, pulled and cut."""

import pytest
import torch

from bnfree.compression.mask_sparsity import Phases, add_sparsity_gradient_, mark_rows, rows_to_cut
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


def layer(*gains):
    made = BinaryConv2d(3, len(gains), 3)
    made.gain.data = torch.tensor(gains).view(-1, 1, 1, 1)
    return made


def test_phases_by_epochs():
    phases = Phases.of_run(20, 2, 3, 4, None)
    assert [phases.of(epoch) for epoch in range(10)] == ["dense"] * 2 + ["mask"] * 3 + ["regularise"] * 4 + ["finetune"]
    assert (phases.mark_at, phases.cut_at) == (5, 9)
    assert Phases.of_run(20, None, None, None, 0.3) == (8, 0, 6)
    assert Phases.of_run(20, None, None, None, None) == (8, 2, 6)
    with pytest.raises(InputError, match=r"dense_epochs=2, .* leave none of the 6 epochs of the run to fine-tune in"):
        Phases.of_run(6, 2, 0, 4, 0.3)
    for given in ((50, None, None), (None, 50, None), (None, None, 50)):
        with pytest.raises(InputError, match="leave none of the 20 epochs"):
            Phases.of_run(20, *given, None)
    with pytest.raises(InputError, match="max_epochs=-1 gives MaskSparsity no phases"):
        Phases.of_run(-1, None, None, None, 0.3)


def test_marked_rows():
    layers = {"a": layer(1.0, -0.2, 0.005, 3.0, -0.004), "b": layer(-0.5, 2.0)}
    found = mark_rows(layers, 0.5, 0.01)
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [2, 4], "b": [0]}
    assert mark_rows(layers, None, 0.25)["a"].tolist() == [1, 2, 4]
    assert mark_rows(layers, None, 0.25)["b"].tolist() == []
    cut = rows_to_cut(layers, {"a": torch.tensor([1, 4]), "b": torch.tensor([0])}, 0.01)
    assert {name: rows.tolist() for name, rows in cut.items()} == {"a": [4], "b": []}


def test_marked_rows_of_a_layer_that_has_lost_some_are_output_channels():
    small = layer(1.0, 0.002, 0.003, 3.0)
    small.keep_rows(torch.tensor([0, 2, 3]))
    assert mark_rows({"a": small}, None, 0.01)["a"].tolist() == [2]
    small.gain.grad = torch.zeros_like(small.gain)
    add_sparsity_gradient_(small, 0.5, torch.tensor([2]))
    assert small.gain.grad.flatten().tolist() == [0, 0.5, 0]


def test_unmarked_gains_get_no_gradient():
    made = layer(1.0, -0.2, 0.0, -3.0)
    made(torch.randn(2, 3, 5, 5)).square().sum().backward()
    before = made.gain.grad.clone()
    add_sparsity_gradient_(made, 5e-4, torch.tensor([1, 2]))
    torch.testing.assert_close((made.gain.grad - before).flatten(), torch.tensor([0.0, -5e-4, 0, 0]), rtol=0, atol=1e-5)
    assert torch.equal((made.gain.grad - before).flatten() != 0, torch.tensor([False, True, False, False]))
    add_sparsity_gradient_(made, 1.0)
    torch.testing.assert_close((made.gain.grad - before).flatten(), torch.tensor([1.0, -1.0005, 0, -1]))
