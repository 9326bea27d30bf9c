import pytest
import torch

from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.tickets import layer_choices, prunable_layers

BODY = [f"body.{i}.convolution" for i in range(3)]


@pytest.mark.parametrize("options", [{}, {"binary_weights": False}, {"norm": "batch_norm"}, {"binary_shortcut": True}])
def test_by_default_the_convolutions_of_the_body_in_either_step(small_net, options):
    network = small_net(**options)
    assert list(prunable_layers(network)) == BODY
    # As torch.compile names what it wraps.
    assert list(prunable_layers(torch.nn.ModuleDict({"_orig_mod": network}))) == BODY


@pytest.mark.parametrize(
    ("build", "count"), [(lambda: ReActNet18(width=2), 16), (lambda: ReActNetA(2, width=2), 26)], ids=["18", "A"]
)
def test_of_the_published_networks_every_residual_unit(build, count):
    layers = prunable_layers(build())
    assert len(layers) == count
    assert all(name.endswith(".convolution") and layer.binary_weights for name, layer in layers.items())


def test_without_residual_units_every_convolution():
    network = NFResNet18(width=2)
    assert next(iter(prunable_layers(network))) == "stem.0"
    assert "stem.0" not in prunable_layers(network, exclude=["stem.*"])


def test_names_and_patterns(small_net):
    network = small_net()
    everything = ["stem.convolution", BODY[0], BODY[1], "body.1.projection", BODY[2]]
    assert list(prunable_layers(network, include=["*"])) == everything
    assert list(prunable_layers(network, include=["body.?.convolution"], exclude=["body.1.*"])) == [BODY[0], BODY[2]]
    assert list(prunable_layers(network, exclude=[BODY[0]])) == BODY[1:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": ["bdy.*"]}, "include='bdy.*' fits no convolution of SmallNet; its convolutions are called 'stem"),
        ({"exclude": ["classifier"]}, "exclude='classifier' fits no convolution"),
        ({"exclude": "body.*"}, "exclude='body.*' must be a list of names"),
        ({"exclude": ["body.*"]}, "leaves no layer of SmallNet to prune"),
    ],
)
def test_patterns_that_cannot_be_meant(small_net, options, said):
    with pytest.raises(InputError) as caught:
        prunable_layers(small_net(), **options)
    assert said in str(caught.value)


def test_a_network_without_such_convolutions():
    with pytest.raises(InputError, match="network=Linear has no BinaryConv2d"):
        prunable_layers(torch.nn.Linear(2, 2))


def test_the_list_names_every_layer_and_says_why(small_net):
    network = small_net()
    rows = {row.name: row for row in layer_choices(network, exclude=[BODY[2]])}
    assert {name for name, row in rows.items() if row.pruned} == set(BODY[:2])
    assert rows[BODY[1]].shape == (8, 4, 3, 3)
    assert rows[BODY[1]].weights == 8 * 4 * 9
    reasons = {name: row.reason for name, row in rows.items()}
    assert reasons == {
        "stem.convolution": "stem or shortcut", BODY[0]: "convolution of the body", BODY[1]: "convolution of the body",
        "body.1.projection": "stem or shortcut", BODY[2]: "excluded", "classifier": "no BinaryConv2d",
    }  # fmt: skip
    assert {row.reason for row in layer_choices(network, include=["stem.*"])} == {
        "included", "not included", "no BinaryConv2d",
    }  # fmt: skip
