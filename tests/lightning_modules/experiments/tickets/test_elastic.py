"""`bnfree ticket stretch` and `squeeze`."""

import re

import pytest
import torch
import yaml
from ticket_files import make_ticket, network, remembered

from bnfree.backbones import ReActNetA
from bnfree.calibration import calibrate
from bnfree.datamodules import DigitsDataModule
from bnfree.tickets import Ticket, apply, load_ticket, prune, save_ticket, stretch


@pytest.mark.parametrize("order", ["append", "interpolate"])
def test_squeezing_undoes_stretching_also_with_measured_betas(ticket, act, same, order):
    out = act("stretch", "ticket.pt", "--blocks_per_stage", "3,5,1,4", "--order", order, "--output", "deep.pt")
    assert re.search(r"blocks +2,2,1,2 -> 3,5,1,4", out)
    assert "the ticket's were measured" in out
    act("squeeze", "deep.pt", "--blocks_per_stage=[2,2,1,2]", "--order", order, "--output", "back.pt")
    same("back.pt", ticket)
    act("squeeze", "deep.pt", "--to=ticket.pt", "--order", order, "--output", "again.pt")
    same("again.pt", ticket)
    assert load_ticket("back.pt").config == ticket.config


def test_the_new_ticket_is_that_of_the_library_and_loads_into_its_network(ticket, act, same):
    act("stretch", "ticket.pt", "--blocks_per_stage=3,3,1,2", "--output=deep.pt")
    deep = network(depth=[3, 3, 1, 2], seed=7)
    same("deep.pt", stretch(ticket, deep))
    deep.load_state_dict(load_ticket("deep.pt").start(), strict=True)
    assert "blocks_per_stage=[3,3,1,2]" in act("info", "deep.pt")


def test_a_mapping_as_printed_gives_the_same_ticket(ticket, act, same):
    out = act("stretch", "ticket.pt", "--blocks_per_stage=4,3,1,2", "--order=interpolate", "--output=a.pt")
    mapping = re.search(r'mapping +"(.*)"', out)[1]
    act("stretch", "ticket.pt", "--blocks_per_stage=4,3,1,2", "--mapping", mapping, "--output=b.pt")
    same("a.pt", "b.pt")


def test_equal_blocks_of_reactnet_a(project, act, same):
    def build(count):
        return ReActNetA(num_classes=3, width=2, stem="cifar", repeated_blocks=count)

    small = build(2)
    apply(small, prune(small, 0.5))
    arguments = {"num_classes": 3, "width": 2, "stem": "cifar", "repeated_blocks": 2}
    backbone = {"class_path": "bnfree.backbones.ReActNetA", "init_args": arguments}
    config = {"hyper_parameters": {"_class_path": "bnfree.lightning_modules.ImageClassifier", "backbone": backbone}}
    source = Ticket.of(
        small, rewind=build(2).state_dict(), score="latent", scope="layer", density=0.5, config=config
    )  # fmt: skip
    save_ticket(source, project / "a.pt")
    out = act("stretch", "a.pt", "--repeated_blocks=5", "--output=deep.pt")
    assert '"0:0;1:1,3,5;2:2,4"' in out
    build(5).load_state_dict(load_ticket("deep.pt").start(), strict=True)
    act("squeeze", "deep.pt", "--repeated_blocks", "2", "--output=back.pt")
    same("back.pt", source)


def test_masks_or_signs_alone(ticket, act):
    for copy in ("mask", "signs"):
        act("stretch", "ticket.pt", "--blocks_per_stage=3,2,1,2", f"--copy={copy}", f"--output={copy}.pt", "--seed=3")
    mask, signs = load_ticket("mask.pt"), load_ticket("signs.pt")
    assert mask.checksum == signs.checksum
    fresh = network(depth=[3, 2, 1, 2], seed=3).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in mask.rewind.items())
    kept = ticket.masks["body.0.1.convolution"]
    assert len(signs.rewind["body.0.2.convolution.weight"][kept].abs().unique()) == 1


def test_measured_betas_are_those_of_calibrating_the_stretched_network(ticket, act, project):
    act("stretch", "ticket.pt", "--blocks_per_stage=3,2,1,2", "--calibrate", "--output=deep.pt")
    deep = load_ticket("deep.pt")
    fitting = network(depth=[3, 2, 1, 2])
    fitting.load_state_dict(stretch(ticket, network(depth=[3, 2, 1, 2])).start())
    data = DigitsDataModule(image_size=8)
    data.setup("fit")
    calibrate(fitting, data.calibration_images(256))
    betas = {name: tensor for name, tensor in fitting.state_dict().items() if name.endswith(".beta")}
    assert betas
    for name, beta in betas.items():
        assert torch.equal(deep.rewind[name], beta)
    for part in ("body.0.1", "body.0.2"):
        thresholds = deep.rewind[f"{part}.rsign.shift"] / deep.rewind[f"{part}.beta"]
        before = ticket.rewind["body.0.1.rsign.shift"] / ticket.rewind["body.0.1.beta"]
        assert torch.allclose(thresholds, before, rtol=1e-5)


def test_a_target_from_a_config_and_a_ticket_that_remembers_nothing(act, complaint, project):
    bare = make_ticket()
    save_ticket(Ticket(**{**vars(bare), "config": {}}), project / "bare.pt")
    assert "does not say which network it is of; give a config as --to" in complaint(
        "ticket", "stretch", "bare.pt", "--blocks_per_stage=3,2,1,2", "--output=x.pt"
    )
    settings = remembered(blocks_per_stage=[3, 2, 1, 2])["hyper_parameters"]
    model = {"class_path": settings.pop("_class_path"), "init_args": settings}
    data = {"class_path": "bnfree.datamodules.DigitsDataModule", "init_args": {"image_size": 8}}
    (project / "deep.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"max_epochs": 1}}))
    act("stretch", "bare.pt", "--to=deep.yaml", "--output=deep.pt")
    assert "blocks_per_stage=[3,2,1,2]" in act("info", "deep.pt")
    assert "DigitsDataModule" in act("info", "deep.pt")


def test_files_are_never_overwritten_unasked(ticket, act, complaint, project):
    arguments = ("ticket", "stretch", "ticket.pt", "--blocks_per_stage=3,2,1,2")
    (project / "deep.pt").write_bytes(b"precious")
    assert "output='deep.pt' exists; give another file, or add --overwrite" in complaint(*arguments, "--output=deep.pt")
    assert (project / "deep.pt").read_bytes() == b"precious"
    assert "is the file that is read" in complaint(*arguments, "--output=./ticket.pt", "--overwrite")
    act(*arguments[1:], "--output=deep.pt", "--overwrite")
    assert load_ticket("deep.pt").masks
    assert not [path for path in project.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output=x.pt"], "the new depth is not given; add --blocks_per_stage, --repeated_blocks or --to"),
        (["--blocks_per_stage=3,2,1,2"], "--output must be given"),
        (["--blocks_per_stage=3,2", "--output=x.pt"], "blocks_per_stage=[3, 2] must be four whole numbers"),
        (["--blocks_per_stage=a", "--output=x.pt"], "blocks_per_stage='a' must be four integers, such as 6,6,6,6"),
        (["--blocks_per_stage=1,2,1,2", "--output=x.pt"], "which has fewer somewhere; use squeeze"),
        (["--blocks_per_stage=2,2,2,2", "--output=x.pt"], "a stage of 1 block cannot become one of 2"),
        (["--repeated_blocks=3", "--output=x.pt"], "model.backbone.repeated_blocks is not an argument of ReActNet18"),
        (["--blocks_per_stage=3,2,1,2", "--output=x.pt", "--mapping=0:0;1:1"], "leaves 'body.0.2' uncovered"),
        (["--blocks_per_stage=4,2,1,2", "--output=x.pt", "--mapping=0:0;1:1,2|0:0;1:1|0:0|0:0;1:1"],
         "leaves 'body.0.3' uncovered"),
        (["--blocks_per_stage=3,2,1,2", "--output=x.pt", "--order=apend"], "invalid choice: 'apend'"),
        (["--to=nothing.yaml", "--output=x.pt"], "to='nothing.yaml' is not a file"),
        (["--to=empty", "--output=x.pt"], "to='empty' is a directory without config.yaml"),
        (["--blocks_per_stage=3,2,1,2", "--output=empty"], "output='empty' is a directory"),
        (["--blocks_per_stage=3,2,1,2", "--output=x.pt", "--model.backbone.width", "8"], "needs its value after a ="),
        (["--blocks_per_stage=3,2,1,2", "--output=x.pt", "--model.backbone.width=9"], "in another shape"),
        (["--blocks_per_stage=3,2,1,2", "--output=x.pt", "--mapin=x"], "did you mean '--mapping'?"),
    ],
)  # fmt: skip
def test_mistakes_write_nothing(ticket, project, complaint, arguments, said):
    (project / "empty").mkdir()
    assert said in complaint("ticket", "stretch", "ticket.pt", *arguments)
    assert not (project / "x.pt").exists()
