"""Every mistake on the command line is one sentence and exit code 2."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["--config is required"]),
    (["--config=configs/nowhere.py"], ["configs/nowhere.py"]),
    (["--config=configs/avp_rpo.py:enormous"], ["'enormous'", "tiny", "smoke"]),
    (["--config=configs/avp_rpo.py:smoke", "--config.base.hiden=3"], ["hiden", "hidden"]),
    (["--config=configs/avp_rpo.py:smoke", "--config.base.steps=many"], ["base.steps", "many"]),
    (["--config=configs/avp_rpo.py:smoke", "--colour=red"], ["colour"]),
    (["--config=configs/avp_rpo.py:smoke", "stray"], ["'stray'", "--config.FIELD=VALUE"]),
    (["--config=configs/avp_rpo.py:smoke", "--config.data.source=folder:/nowhere", "--workdir={tmp}"], ["/nowhere"]),
    (["--config=configs/avp_rpo.py:smoke", "--config.data.source=cloud", "--workdir={tmp}"], ["cloud", "folder:PATH"]),
    (["--config=configs/avp_rpo.py:smoke", "--config.mesh=(3,1,1)", "--workdir={tmp}"], ["mesh", "devices"]),
    (["--config=configs/evaluate.py", "--workdir={tmp}"], ["config.generated", "--config.generated=FOLDER"]),
])
def test_a_mistake_is_one_sentence(tmp_path, arguments, words):
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    done = subprocess.run([sys.executable, "-m", "msg_jax.main", *arguments], env=environment(), cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0]
