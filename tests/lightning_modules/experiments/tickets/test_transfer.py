"""`bnfree ticket transfer`."""

import pytest
import torch
import yaml
from ticket_files import network, remembered

from bnfree.tickets import load_ticket, transfer


def write_config(project, **options):
    settings = remembered(**options)["hyper_parameters"]
    model = {"class_path": settings.pop("_class_path"), "init_args": settings}
    data = {"class_path": "bnfree.datamodules.DigitsDataModule", "init_args": {"image_size": 8}}
    (project / "target.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"max_epochs": 1}}))


def test_other_classes_and_channels(ticket, act, same, project):
    write_config(project, num_classes=7, in_channels=3)
    out = act("transfer", "ticket.pt", "--to=target.yaml", "--seed=4", "--output=new.pt")
    target = network(seed=4, num_classes=7, in_channels=3)
    same("new.pt", transfer(ticket, target))
    lines = {line.split("  ")[0].strip(): line for line in map(str.strip, out.splitlines())}
    assert "drawn fresh" in lines["stem"]
    assert "drawn fresh" in lines["classifier"]
    assert "carried over" in lines["body"]
    assert lines["body"].split()[-1] == str(len(ticket.masks))
    assert "(10, 64) -> (7, 64)" in lines["classifier.weight"]
    assert "(8, 1, 3, 3) -> (8, 3, 3, 3)" in lines["stem.convolution.weight"]
    target.load_state_dict(load_ticket("new.pt").start(), strict=True)
    out = act("info", "new.pt")
    assert "num_classes=7, in_channels=3" in out or "in_channels=3" in out
    assert "drawn fresh: classifier, stem" in out


def test_options_beat_the_config_and_calibration_touches_betas_and_shifts_alone(ticket, act, project):
    write_config(project, num_classes=7, width=16)
    arguments = (
        "transfer",
        "ticket.pt",
        "--to=target.yaml",
        "--model.backbone.width=8",
        "--model.backbone.num_classes=10",
    )
    act(*arguments, "--keep_classifier", "--output=plain.pt")
    plain = load_ticket("plain.pt")
    assert all(torch.equal(tensor, ticket.rewind[name]) for name, tensor in plain.rewind.items())
    act(*arguments, "--keep_classifier", "--calibrate", "--output=measured.pt")
    measured = load_ticket("measured.pt")
    changed = {name for name, tensor in measured.rewind.items() if not torch.equal(tensor, ticket.rewind[name])}
    assert changed
    assert all(name.endswith((".beta", ".rsign.shift")) for name in changed)
    assert all(torch.equal(tensor, ticket.state_dict[name]) for name, tensor in measured.state_dict.items())


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ({"width": 16}, [], "and pruned parts are not drawn anew; give a network of the same width"),
        ({"blocks_per_stage": [3, 2, 1, 2]}, [], "the ticket has no 'body.0.2.beta'; give a network of the same kind"),
        ({"num_classes": 7}, ["--keep_classifier"], "keep_classifier: 'classifier.bias' has shape (10,) in the ticket"),
        ({}, ["--to=nothing.yaml"], "to='nothing.yaml' is not a file"),
    ],
)
def test_mistakes_write_nothing(ticket, project, complaint, options, arguments, said):
    write_config(project, **options)
    assert said in complaint("ticket", "transfer", "ticket.pt", "--to=target.yaml", "--output=x.pt", *arguments)
    assert not (project / "x.pt").exists()
    assert "--to must be given" in complaint("ticket", "transfer", "ticket.pt", "--output=x.pt")
