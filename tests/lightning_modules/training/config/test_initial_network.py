"""A config that leaves its network to the file that its weights come from."""

import pytest
import torch

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.lightning_modules import FitSettings
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.lightning_modules.training.config.initial_network import network_behind
from bnfree.lightning_modules.training.parsed_fit import parse_fit
from bnfree.packing import pack

from ....bnfree.public_weights import public_file, randomized


def built(description):
    kinds = {"bnfree.backbones.ReActNet18": ReActNet18, "bnfree.backbones.ReActNetA": ReActNetA}
    return kinds[description["class_path"]](**description["init_args"])


@pytest.mark.parametrize(("architecture", "kind"), [("18", ReActNet18), ("A", ReActNetA)])
@pytest.mark.parametrize("norm", ["bf", "bn"])
def test_a_public_checkpoint_goes_into_the_network_that_it_describes(architecture, kind, norm, tmp_path):
    theirs = randomized(architecture, norm, True, num_classes=7)
    torch.save(public_file(theirs), tmp_path / "model_best.pth.tar")
    network = built(network_behind(str(tmp_path / "model_best.pth.tar"))).eval()
    assert isinstance(network, kind)
    load_initial_weights(network, tmp_path / "model_best.pth.tar")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs.eval()(images), network(images)
    assert (found - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize(
    "network",
    [
        ReActNet18(num_classes=3, width=8, in_channels=1, binary_shortcut=True), ReActNet18(num_classes=3, width=4),
        ReActNet18(num_classes=3, width=4, stem="imagenet"), ReActNetA(num_classes=3, width=4, stem="cifar"),
        ReActNetA(num_classes=3, width=4),
    ],
)  # fmt: skip
def test_a_packed_file_goes_into_the_network_that_it_describes(network, tmp_path):
    pack(network).save(tmp_path / "packed.safetensors")
    other = built(network_behind(str(tmp_path / "packed.safetensors")))
    assert {name: value.shape for name, value in other.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    load_initial_weights(other, tmp_path / "packed.safetensors")


def test_files_that_say_nothing(tmp_path):
    torch.save(ReActNet18(num_classes=3, width=2).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "broken.ckpt").write_text("no checkpoint")
    for name in ("weights.pt", "broken.ckpt", "missing.ckpt"):
        assert network_behind(str(tmp_path / name)) is None


def test_the_network_of_a_pretrained_name_is_in_the_config_with_the_users_options(tmp_path):
    options = {
        "model.init_from": "cifar10_reactnet18_w16",
        "model.backbone.num_classes": 4,
        "data.data_dir": str(tmp_path),
    }
    settings = parse_fit(FitSettings("finetune", options)).settings
    arguments = settings["model"]["init_args"]["backbone"]["init_args"]
    assert (arguments["width"], arguments["num_classes"], arguments["binary_shortcut"]) == (16, 4, True)
    assert settings["model"]["init_args"]["replace_head"] is True
    # A config that has a network of its own keeps it.
    settings = parse_fit(FitSettings("quickstart", {"model.init_from": "cifar10_reactnet18_w16"})).settings
    assert settings["model"]["init_args"]["backbone"]["init_args"]["in_channels"] == 1


def test_without_a_network_it_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="backbone"):
        parse_fit(FitSettings("finetune", {"data.data_dir": str(tmp_path)}))
