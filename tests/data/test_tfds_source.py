import dataclasses
import pathlib

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data.builders.scenes import prepare_scenes
from msg_jax.data.scenes import CLASS_NAMES, make_scene
from msg_jax.data.tfds_source import TfdsSource
from msg_jax.errors import UserError

SIZES = {"train": 5, "validation": 2, "test": 3}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return prepare_scenes(str(tmp_path_factory.mktemp("data")), TINY, 4, SIZES)


@pytest.mark.parametrize("split", SIZES)
def test_returns_the_scenes_as_made(built, split):
    source = TfdsSource(built, TINY, split)
    assert len(source) == SIZES[split] and source.class_names == CLASS_NAMES and source.split == split
    for index in (0, SIZES[split] - 1):
        expected = make_scene(4, split, index, TINY)
        record = source[index]
        assert set(record) == set(expected)
        # int16 rounds the waveform to half a step
        np.testing.assert_allclose(record["waveform"], expected.pop("waveform"), atol=0.5001 / 32767)
        assert record["waveform"].dtype == np.float32
        for name, value in expected.items():
            np.testing.assert_array_equal(record[name], value)


def test_is_built_once_and_in_a_folder_of_its_parameters(built):
    data_dir = pathlib.Path(built).parents[2]
    written = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.array_record*")}
    assert prepare_scenes(str(data_dir), TINY, 4, SIZES) == built
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.array_record*")} == written
    other = prepare_scenes(str(data_dir), dataclasses.replace(TINY, video_px=16), 4, dict.fromkeys(SIZES, 1))
    assert other != built
    assert prepare_scenes(str(data_dir), TINY, 5, dict.fromkeys(SIZES, 1)) not in (built, other)


def test_parallel_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr("msg_jax.data.builders.scenes._SHARD", 4)
    path = prepare_scenes(str(tmp_path), TINY, 4, SIZES | {"train": 10})
    assert len(list(pathlib.Path(path).glob("scenes-train.array_record-*-of-00003"))) == 3
    source = TfdsSource(path, TINY, "train")
    assert [source[index]["id"] for index in range(10)] == [f"scenes-4-train-{index:06d}" for index in range(10)]
    np.testing.assert_array_equal(source[9]["video"], make_scene(4, "train", 9, TINY)["video"])


def test_an_interrupted_build_is_repeated(tmp_path, monkeypatch):
    def fails_at_three(seed, split, index, clip):
        if index == 3:
            raise KeyboardInterrupt
        return make_scene(seed, split, index, clip)

    with monkeypatch.context() as patched:
        patched.setattr("msg_jax.data.builders.scenes.make_scene", fails_at_three)
        with pytest.raises(KeyboardInterrupt):
            prepare_scenes(str(tmp_path), TINY, 4, SIZES)
    assert len(TfdsSource(prepare_scenes(str(tmp_path), TINY, 4, SIZES), TINY, "train")) == SIZES["train"]


def test_refuses_a_data_set_that_disagrees(built, tmp_path):
    with pytest.raises(UserError, match=r"video has shape \(80, 24, 24, 3\) but .* asks for \(80, 32, 32, 3\)"):
        TfdsSource(built, dataclasses.replace(TINY, video_px=32), "train")
    with pytest.raises(UserError, match="no split 'valid', only"):
        TfdsSource(built, TINY, "valid")
    with pytest.raises(UserError, match="neither a folder"):
        TfdsSource(str(tmp_path / "nothing"), TINY, "train")
    features = pathlib.Path(built) / "features.json"
    text = features.read_text()
    try:
        features.write_text(text.replace('"caption"', '"title"'))
        with pytest.raises(UserError, match="has no feature 'caption'"):
            TfdsSource(built, TINY, "train")
    finally:
        features.write_text(text)
