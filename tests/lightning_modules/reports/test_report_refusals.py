"""What `bnfree report` cannot report is said in one sentence."""

import pytest
from small_runs import write_run


def test_what_is_no_run(project, complaint):
    write_run("runs/a")
    assert complaint("report") == "RUN is required and not given; name one or several run directories of bnfree fit."
    assert complaint("report", "nowhere").startswith("RUN='nowhere' does not exist;")
    assert complaint("report", "toy.yaml").startswith("RUN='toy.yaml' is a file;")
    assert complaint("report", "runs").endswith("it holds runs, such as 'runs/a'.")
    assert complaint("report", ".").startswith("RUN='.' is no run directory, for it has no config.yaml;")
    assert complaint("report", "runs/a", "--outputs=x").endswith("did you mean '--output'?")
    assert "expected one argument" in complaint("report", "runs/a", "--title")
    (project / "file").touch()
    assert complaint("report", "runs/a", "--output", "file").startswith("output='file' cannot be written to (")
    (project / "recipe").mkdir()
    (project / "recipe" / "recipe.yaml").write_text("stages: 3\n")
    assert "names no stages" in complaint("report", "recipe")
    (project / "recipe" / "recipe.yaml").write_text("stages: {step1: {}, step2: {}}\n")
    assert "no finished epoch in any of its stages (step1, step2)" in complaint("report", "recipe")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", None, "has no finished epoch in its metrics.csv"),
        ("metrics.csv", "", "has no finished epoch in its metrics.csv"),
        ("metrics.csv", "step,lr-Adam\n4,0.1\n", "has no finished epoch in its metrics.csv"),
        ("metrics.csv", "epoch,step,val/acc\n0,9,high\n", "holds something other than numbers"),
        ("metrics.csv", b"\xff\xfe\x00", "cannot be read"),
        ("metrics.csv", "epoch,step,val/top\n0,9,0.5\n", "has logged nothing that a report shows"),
        ("config.yaml", "a: [\n", "cannot be read"),
        ("config.yaml", "just words\n", "holds no settings"),
        ("weight_dynamics.csv", "epoch,layer,gain\nx,a,1\n", "is not what bnfree.callbacks.WeightDynamics writes"),
    ],
)
def test_damaged_runs(project, complaint, name, content, said):
    run = write_run("a")
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in complaint("report", run)
    assert not (run / "report").exists()
