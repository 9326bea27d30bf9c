"""`bnfree lottery run`: what is refused before anything is written, and its manuals."""

import subprocess
import sys

import pytest
import yaml
from small_lottery import write_lottery

from bnfree.lightning_modules.experiments.lottery.settings import LotterySettings


@pytest.fixture
def lottery(project):
    write_lottery(project)
    return project / "runs" / "lottery"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lottery.score=hessian"], "score='hessian' is not known"),
        (["--lottery.scope=network"], "scope='network' is not known"),
        (["--lottery.rewind=late"], "lottery.rewind='late' is not known"),
        (["--lottery.rewind_point=late"], "rewind_point='late' is not known"),
        (["--lottery.rewind=none", "--lottery.rewind_point=1ep"], "rewind_point=1ep has no meaning with rewind: none"),
        (["--lottery.rewind_point=2ep"], "rewind_point=2ep must lie before the end"),
        (["--lottery.densities=[0.2, 0.5]"], "must fall from level to level"),
        (["--lottery.densities=[0.5, 0]"], "must be above 0"),
        (["--lottery.densities=dense"], "lottery.densities=['dense'] must be a list of numbers"),
        (["--lottery.rate=1.5", "--lottery.levels=2"], "rate=1.5 must be between 0 and 1"),
        (["--lottery.rate=0.5"], "neither target_density nor levels is given"),
        (["--lottery.densities=[0.5, 0.001]"], "density 0.001 is less than ReActNet18 can have here"),
        (["--lottery.exclude=[nothing.*]"], "exclude='nothing.*' fits no convolution"),
        (["--lottery.densitys=[0.5]"], "lottery.densitys is not known; did you mean 'densities'"),
        (["--lottery.controls=reinit"], "--lottery.controls is no option of bnfree lottery run: give --controls"),
        (["--lottery.find_in=step2"], "lottery.find_in='step2' is not known"),
        (["--seeds=0,0"], "lottery.seeds=[0, 0] must be different integers"),
        (["--seeds=a"], "lottery.seeds=['a'] must be a list of integers"),
        (["--seeds"], "--seeds needs a value"),
        (["--seed_everything=3"], "--seed_everything is no option of bnfree lottery run: give --seeds"),
        (["--ckpt_path=x.ckpt"], "goes on by itself"),
        (["--trainer.max_epoch=3"], "trainer.max_epoch"),
        (["--model.backbone.width=0"], "width=0"),
        (["--trainer.fast_dev_run=true"], "trainer.fast_dev_run=True leaves no checkpoint"),
        (["--trainer.strategy=fsdp"], "trainer.strategy=fsdp splits parameters"),
        (["--trainer.callbacks=bnfree.callbacks.LotteryTicket"], "which bnfree lottery adds by itself"),
        (["--last_checkpoint.filename=final"], "last_checkpoint is changed"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(lottery, complaint, options, said):
    assert said in complaint("lottery", "run", "lottery.yaml", *options)
    assert not lottery.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"lottery": {"densities": [0.5]}}, "names no config"),
        ({"config": "netwrok.yaml"}, "'netwrok.yaml', which does not exist; did you mean 'network.yaml'"),
        ({"config": "network.yaml"}, "neither densities nor rate"),
        ({"config": "network.yaml", "option": {}}, "key 'option' of the lottery file 'lottery.yaml' is not known"),
        ({"config": "network.yaml", "options": [1]}, "must map dotted names"),
        ({"config": "network.yaml", "lottery": [1]}, "must map settings to values"),
        ({"config": "network.yaml", "lottery": {"densities": [0.5], "rate": 0.1}}, "both densities and rate"),
        ({"config": "network.yaml", "lottery": {"densities": [0.5], "score": 1}}, "lottery.score=1 is of the wrong"),
        ({"config": "network.yaml", "lottery": {"densities": [0.5], "step1_options": {}}}, None),
        ({"config": "network.yaml", "lottery": {"densities": [0.5], "step1_options": {"a": 1}}}, "find_in: step1"),
    ],
)
def test_mistakes_in_the_file(lottery, project, complaint, content, said):
    (project / "lottery.yaml").write_text(yaml.safe_dump(content))
    if said is None:
        assert LotterySettings.read("lottery.yaml").densities == [0.5]
        return
    assert said in complaint("lottery", "run", "lottery.yaml")
    assert not lottery.exists()


def test_shipped_lotteries_and_recipes_are_found_by_name(project, complaint):
    assert "must be above 0" in complaint("lottery", "run", "digits_lottery", "--lottery.densities=[0.5, 0]")
    assert "'step3' is no stage of the recipe" in complaint("recipe", "cifar10_recipe", "--stages=step3")
    (project / "recipe.yaml").write_text("stages: {one: quickstart, two: {config: [quickstart, mine.yaml]}}")
    message = complaint("recipe", "recipe.yaml")
    assert "stage 'two' in 'recipe.yaml' names the config 'mine.yaml', which does not exist" in message
    (project / "mine.yaml").write_text("seed_everything: 1")
    assert "'three' is no stage" in complaint("recipe", "recipe.yaml", "--stages=three")


def test_a_file_that_is_not_there(lottery, complaint):
    assert "'lotery.yaml' does not exist; did you mean 'lottery.yaml'" in complaint("lottery", "run", "lotery.yaml")
    assert "wants the lottery file first" in complaint("lottery", "run", "--seeds=1")


STARTED = {"densities": None, "rate": 0.2, "levels": 3, "score": "standardized", "scope": "layer", "seeds": [0]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--lottery.score=latent"], "lottery.score=latent, not standardized"),
        (["--lottery.scope=global"], "lottery.scope=global, not layer"),
        (["--lottery.rate=0.3", "--lottery.levels=3"], "lottery.rate=0.3, not 0.2"),
        (["--lottery.densities=[0.7, 0.5]"], "lottery.densities=[0.7, 0.5], not [0.8, 0.64"),
        (["--lottery.rewind=sign"], "lottery.rewind=sign, not weights"),
        (["--lottery.rewind_point=1ep"], "lottery.rewind_point=1ep, not init"),
        (["--lottery.exclude=body.0.0.*"], "lottery.exclude=['body.0.0.*'], not None"),
    ],
)
def test_changed_settings_are_refused_by_name(lottery, project, complaint, change, said):
    write_lottery(project, **STARTED)
    lottery.mkdir(parents=True)
    (lottery / "lottery.yaml").write_text(yaml.safe_dump({"lottery": STARTED}))
    message = complaint("lottery", "run", "lottery.yaml", *change)
    assert said in message
    assert "give another --run_dir" in message
    assert [path.name for path in lottery.iterdir()] == ["lottery.yaml"]


def test_a_density_schedule_replaces_the_other_kind(project):
    write_lottery(project)
    by_rate = LotterySettings.read("lottery.yaml", rate=0.5, levels=2)
    assert (by_rate.densities, by_rate.rate, by_rate.levels) == (None, 0.5, 2)
    write_lottery(project, densities=None, rate=0.2, target_density=0.1)
    by_list = LotterySettings.read("lottery.yaml", densities=[0.3])
    assert (by_list.densities, by_list.rate, by_list.target_density) == ([0.3], None, None)


def test_manuals(bnfree):
    for arguments in ([], ["--help"]):
        code, output, _ = bnfree("lottery", *arguments)
        assert code == 0
        assert "run FILE" in output
    for arguments in ([], ["--help"], ["lottery.yaml", "-h"]):
        code, output, _ = bnfree("lottery", "run", *arguments)
        assert code == 0
        for word in ("densities", "rewind_point", "find_in", "learning_rate", "--seeds"):
            assert word in output


def test_unknown_actions(complaint):
    assert "'rnu' of bnfree lottery is not known; did you mean 'run'" in complaint("lottery", "rnu")


def test_manuals_do_without_torch():
    code = (
        "import sys; from bnfree.lightning_modules.cli import main; "
        "[main([*words.split()]) for words in ('lottery', 'lottery run --help', 'lottery controls --help', "
        "'lottery early-bird --help', 'recipe --help')]; print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"
