"""The workdir is a folder."""

import pathlib

import pytest

from msg_jax import programs
from msg_jax.config.schema import Config, FolderEvaluation
from msg_jax.errors import UserError


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "s3://bucket/run", pathlib.Path("gs://bucket/run")])
@pytest.mark.parametrize("config", [Config(), FolderEvaluation()])
def test_a_url_is_refused_before_anything_is_written(config, workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = r"^--workdir=\w+:/.*bucket/run is a URL.*launch/gke.sh.*mount BUCKET at /workdir"
    with pytest.raises(UserError, match=sentence) as error:
        programs.run(config, workdir)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
