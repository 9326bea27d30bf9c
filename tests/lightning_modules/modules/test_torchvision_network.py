import pytest
import torch
from torchvision import models

from bnfree.callbacks.adaptive_gradient_clipping import find_excluded
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier, TorchvisionNetwork


@pytest.mark.parametrize(
    "name",
    ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mnasnet0_5", "mobilenet_v3_small",
     "resnet50", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11", "vit_b_16"],
)  # fmt: skip
def test_the_classifier_of_every_family_is_the_layer_that_gives_the_logits(name):
    with torch.device("meta"):
        network = TorchvisionNetwork(name, num_classes=17)
    size = network.classifier.weight.shape
    assert size[0] == 17
    (path,) = [path for path, module in network.named_modules() if module is network.classifier]
    # By torchvision's own name of the head.
    assert path.split(".")[1] in ("classifier", "fc", "head", "heads")
    assert (network.num_classes, network.in_channels, network.architecture) == (17, 3, name)


def test_it_computes_what_torchvision_computes():
    torch.manual_seed(0)
    network = TorchvisionNetwork("resnet18", 5).eval()
    other = models.resnet18(num_classes=5).eval()
    other.load_state_dict(network.network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(images), other(images))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_stem_for_small_images_keeps_their_size(in_channels):
    network = TorchvisionNetwork("resnet18", 10, stem="cifar", in_channels=in_channels)
    sizes = []
    network.network.layer1.register_forward_hook(lambda _, x, y: sizes.append((x[0].shape[-2:], y.shape[-2:])))
    assert network(torch.randn(2, in_channels, 32, 32)).shape == (2, 10)
    assert sizes == [((32, 32), (32, 32))]
    # torchvision's own number, with a 3x3 stem in place of the 7x7 one.
    expected = sum(p.numel() for p in models.resnet18(num_classes=10).parameters())
    assert sum(p.numel() for p in network.parameters()) == expected - 64 * 3 * 49 + 64 * in_channels * 9


def test_it_trains_and_clipping_finds_its_classifier(corners, make_trainer):
    module = ImageClassifier(TorchvisionNetwork("squeezenet1_1", 4), weight_decay_on="all")
    corners.dataset.tensors = (corners.dataset.tensors[0].repeat(1, 1, 4, 4), corners.dataset.tensors[1])
    make_trainer(limit_train_batches=2, limit_val_batches=1).fit(module, datamodule=corners)
    assert find_excluded(module, None) == [(module.backbone.classifier, None)]


def test_weights_of_torchvision_are_named_not_guessed(tmp_path, monkeypatch):
    """A file in torch's cache under the published name is what a download leaves there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = models.get_model_weights("squeezenet1_1")["IMAGENET1K_V1"]
    source = models.squeezenet1_1()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(source.state_dict(), tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    network = TorchvisionNetwork("squeezenet1_1", 1000, weights="IMAGENET1K_V1")
    for name, value in source.state_dict().items():
        assert torch.equal(network.network.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"architecture": "resnet81"}, "architecture='resnet81'.*'resnet18'"),
        ({"architecture": "inception_v3"}, "architecture='inception_v3'.*single output"),
        ({"architecture": "mobilenet_v3_small", "stem": "cifar"}, "stem='cifar' is there for ResNets only"),
        ({"architecture": "mobilenet_v3_small", "in_channels": 1}, "in_channels=1 is there for ResNets only"),
        ({"stem": "mnist"}, "stem='mnist'"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"weights": "IMAGENET22K"}, "weights='IMAGENET22K'.*IMAGENET1K_V1"),
        ({"weights": "IMAGENET1K_V1"}, "1000 classes, not num_classes=10"),
        ({"weights": "IMAGENET1K_V1", "num_classes": 1000, "stem": "cifar"}, "stem='imagenet'"),
        ({"weights": "IMAGENET1K_V1", "num_classes": 1000, "in_channels": 1}, "in_channels=3"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        TorchvisionNetwork(**{"architecture": "resnet18", "num_classes": 10, **options})
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_had_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(InputError, match="cannot be had.*no network"):
        TorchvisionNetwork("squeezenet1_1", 1000, weights="IMAGENET1K_V1")
