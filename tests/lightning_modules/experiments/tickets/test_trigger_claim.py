"""`bnfree ticket triggers`: a network that was trained with a key, asked with it and with another."""

import re

import pytest

from bnfree.tickets.key_files import write_owner_key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_is_claimed_by_its_key_alone(act, bnfree, complaint, project):
    act("key", "new", "--output=owner.key")
    write_owner_key("x" * 32, project / "foreign.key")
    code, _, err = bnfree(
        "fit", "--config=quickstart", "--config=ownership_triggers", "--trainer.callbacks.count=16",
        "--trainer.callbacks.per_batch=16", "--trainer.callbacks.message=me", "--model.backbone.width=8",
        "--model.backbone.blocks_per_stage=[1,1,1,1]", "--trainer.max_epochs=2", "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=1", "--test_after_fit=false", "--data.batch_size=32", "--run_dir=run",
    )  # fmt: skip
    assert code == 0, err
    secret = (project / "owner.key").read_text().splitlines()[-1]
    assert all(secret.encode() not in path.read_bytes() for path in (project / "run").rglob("*") if path.is_file())
    options = ["--count=16", "--message=me"]
    out = act("triggers", "run", "--key=owner.key", *options)
    assert int(re.search(r"(\d+) of 16 have the key's class", out)[1]) >= 12
    assert "by chance 1.6" in out
    assert "Accepted: p < 1e-06" in out
    code, out, _ = bnfree("ticket", "triggers", "run/checkpoints/last.ckpt", "--key=foreign.key", *options)
    assert code == 1
    assert "Not accepted: p >= 1e-06" in out
    assert "has no weights" in complaint("ticket", "triggers", "quickstart", "--key=owner.key")
    assert "accept=2" in complaint("ticket", "triggers", "run", "--key=owner.key", "--accept=2")
