"""The command line: recipes and files, overrides, and mistakes, which are one sentence and exit code 2."""

import subprocess
import sys

from absl import flags as absl_flags
from absl.testing import flagsaver
import pytest

from msg_jax import main, programs
from msg_jax.config.schema import FolderEvaluation
from msg_jax.config.tree import replace
from msg_jax.errors import UserError
from msg_jax.infra import runtime
from msg_jax.methods import AvpRpo
from msg_jax.programs import checks
from msg_jax.recipes import flags, runs
from tests.conftest import ROOT, environment


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line; every call begins without flags."""
    monkeypatch.chdir(ROOT)
    saver = flagsaver.flagsaver()

    def parse(*arguments):
        absl_flags.FLAGS.unparse_flags()
        for name in ("config", "workdir"):
            absl_flags.FLAGS[name].unparse()
        flags.config.cache_clear()
        sys.modules.pop("config_config", None)  # the last config file
        monkeypatch.setattr(sys, "argv", ["main", *arguments])  # ml_collections reads the overrides there
        flags.parse(sys.argv)
        return flags.config()

    with saver:
        yield parse
    flags.config.cache_clear()


# What is parsed


@pytest.mark.parametrize("name", ["avp_rpo", "configs/avp_rpo.py"])
def test_a_recipe_by_name_or_by_file(parse, name):
    assert parse(f"--config={name}:smoke") == runs.avp_rpo("smoke")
    assert flags.workdir() == "runs/smoke"
    assert parse(f"--config={name}", "--workdir=here") == runs.avp_rpo("tiny")
    assert flags.workdir() == "here"


def test_a_recipe_works_from_any_folder(parse, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=avp_rpo:smoke", "--config.base.hidden=64") == replace(runs.avp_rpo("smoke"), base=dict(hidden=64))


@pytest.mark.parametrize("name", sorted(runs.RECIPES))
def test_every_recipe_has_its_file(parse, name):
    assert parse(f"--config=configs/{name}.py") == parse(f"--config={name}") == runs.RECIPES[name]()


def test_overrides_of_every_type(parse):
    config = parse(
        "--config=avp_rpo:smoke", "--config.seeds=(3,4)", "--config.mesh=(1,2,1)", "--config.base.ema_decay=1",
        "--config.base.remat=True", "--config.data.source=folder:videos", "--config.base.optimizer.learning_rate=1e-4",
        "--config.arms.avp_rpo.winner=real", "--config.arms.avp_rpo_midway.shares.avp_rpo=0.25",
        "--config.reward_study.rewards.reward.sf_cavp=a,b", "--config.clip.duration_sec=8",
    )
    smoke = runs.avp_rpo("smoke")
    study = dict(rewards=smoke.reward_study.rewards | {"reward": replace(smoke.reward_study.rewards["reward"], sf_cavp="a,b")})
    assert config == replace(
        smoke, seeds=(3, 4), mesh=(1, 2, 1), data=dict(source="folder:videos"), clip=dict(duration_sec=8.0),
        base=dict(ema_decay=1.0, remat=True, optimizer=dict(learning_rate=1e-4)), reward_study=study,
        arms=smoke.arms | {
            "avp_rpo": AvpRpo(winner="real"),
            "avp_rpo_midway": replace(smoke.arms["avp_rpo_midway"], shares={"avp_rpo": 0.25}),
        },
    )
    assert type(config.base.ema_decay) is type(config.clip.duration_sec) is float


def test_a_base_model_with_diffusion_passes_the_checks(parse):
    config = parse("--config=configs/base.py", "--config.base.objective=diffusion")
    checks.check(config)
    assert config.base.objective == "diffusion"


def test_an_evaluation_of_folders(parse):
    assert parse("--config=evaluate", "--config.generated=out") == FolderEvaluation(generated="out")
    assert flags.workdir() == "runs/evaluation"
    compared = FolderEvaluation(program="compare", preset="compare", runs="a,b")
    assert parse("--config=configs/evaluate.py:compare", "--config.runs=a,b") == compared


def test_a_user_s_own_file(parse, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from msg_jax.config.tree import replace\n"
        "from msg_jax.methods import AvpRpo\n"
        "from msg_jax.recipes import runs\n\n\n"
        "def get_config(winner='real'):\n"
        "    return replace(runs.base('smoke'), arms={'mine': AvpRpo(winner=winner)}, stages=('mine',))\n"
    )
    mine = replace(runs.base("smoke"), arms={"mine": AvpRpo(winner="real")}, stages=("mine",))
    assert parse(f"--config={path}") == mine
    best = parse(f"--config={path}:best_of_n", "--config.arms.mine.start=base")
    assert best == replace(mine, arms={"mine": AvpRpo(winner="best_of_n")})


def test_main_passes_config_workdir_and_observation_flags_on(parse, monkeypatch):
    calls = []
    monkeypatch.setattr(runtime, "start", lambda: None)
    monkeypatch.setattr(programs, "run", lambda *arguments: calls.append(arguments))
    arguments = ["--config=avp_rpo:smoke", "--workdir=here"]
    for more in ([], ["--profile_steps=1:3"], ["--config.log.profile_steps=1:3", "--config.log.explain_sharding=True"]):
        absl_flags.FLAGS["profile_steps"].unparse()
        parse(*arguments, *more)
        main.main(["main"])
    assert [workdir for _, workdir in calls] == ["here"] * 3
    logs = [(config.log.profile_steps, config.log.explain_sharding) for config, _ in calls]
    assert logs == [("", False), ("1:3", False), ("1:3", True)]


# Mistakes


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["--config is required"]),
    (["--config=configs/nowhere.py"], ["configs/nowhere.py", "avp_rpo"]),
    (["--config=avp_rpo:enormous"], ["'enormous'", "tiny", "smoke"]),
    (["--config=configs/vta_ldm.py:small_16k"], ["'small_16k'", "tiny, smoke"]),
    (["--config=evaluate:tiny"], ["'tiny'", "compare"]),
    (["--config=avp_rpo:smoke", "--config.base.hiden=3"], ["hiden", "did you mean", "hidden"]),
    (["--config=avp_rpo:smoke", "--config.bass.hidden=3"], ["bass"]),
    (["--config=avp_rpo:smoke", "--config.base.steps=many"], ["base.steps", "many"]),
    (["--config=avp_rpo:smoke", "--config.base.network=unet"], ["config.base.network='unet'", "'mmdit', 'cross_attention'"]),
    (["--config=avp_rpo:smoke", "--config.arms.avp_rpo.winner=reel"], ["config.arms.avp_rpo.winner='reel'", "'stitched'"]),
    (["--config=avp_rpo:smoke", "--config.arms.avp_rpo.kind=magic"], ["config.arms.avp_rpo.kind='magic'", "sync_dpo"]),
    (["--config=avp_rpo:smoke", "--colour=red"], ["colour"]),
])
def test_a_mistake_in_the_flags_is_one_sentence(parse, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    _one_sentence(stopped.value.code, capsys.readouterr().err, words)


@pytest.mark.parametrize(("content", "words"), [
    ("def get_config():\n    return {}\n", ["mine.py", "get_config must return a msg_jax.config.schema.Config"]),
    ("from msg_jax.recipes import runs\n\n\ndef get_config():\n    return runs.base('huge')\n", ["'huge'", "smoke"]),
    ("def other():\n    pass\n", ["get_config"]),
])
def test_a_mistake_in_a_user_s_own_file_is_one_sentence(parse, capsys, tmp_path, content, words):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        parse(f"--config={tmp_path}/mine.py")
    _one_sentence(stopped.value.code, capsys.readouterr().err, words)


def test_a_stray_argument_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["main", "stray"])
    _one_sentence(stopped.value.code, capsys.readouterr().err, ["'stray'", "--config.FIELD=VALUE"])


@pytest.mark.parametrize(("arguments", "words"), [
    (["--config=avp_rpo:smoke", "--config.data.source=cloud"], ["cloud", "folder:PATH"]),
    (["--config=avp_rpo:smoke", "--config.mesh=(3,1,1)"], ["mesh", "devices"]),
    (["--config=avp_rpo:smoke", "--config.stages=('bass',)"], ["config.stages names 'bass'", "base"]),
    (["--config=evaluate"], ["config.generated", "--config.generated=FOLDER"]),
])
def test_a_mistake_in_the_settings_is_one_sentence(parse, tmp_path, arguments, words):
    with pytest.raises(UserError) as error:
        programs.run(parse(*arguments), tmp_path)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--config.base.hiden=3"], ["hiden", "hidden"]),
    (["--config.data.source=folder:/nowhere", "--workdir={tmp}"], ["/nowhere"]),
])
def test_the_command_ends_with_that_sentence_and_exit_code_2(tmp_path, arguments, words):
    """Once for a mistake in the flags, once for one that the run finds."""
    command = [sys.executable, "-m", "msg_jax.main", "--config=configs/avp_rpo.py:smoke"]
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    done = subprocess.run([*command, *arguments], env=environment(), cwd=ROOT, capture_output=True, text=True)
    _one_sentence(done.returncode, done.stderr, words)


def _one_sentence(code, text, words):
    assert code == 2, text
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in text, text
    for word in words:
        assert word in lines[0]
