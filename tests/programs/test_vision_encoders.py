"""V-JEPA 2 as the condition encoder of a run, at toy widths: from its file to the features that the generator sees."""

import shutil

from golden_files import load, vjepa2_config, weights
import numpy as np
import pytest
from safetensors.numpy import save_file

from msg_jax import networks, programs
from msg_jax.clip import TINY
from msg_jax.config.tree import replace
from msg_jax.convert import from_torch
from msg_jax.convert.bundle import VARIANTS, VISION, Bundle, Network
from msg_jax.data.features import FeatureSource
from msg_jax.errors import UserError
from msg_jax.inference import loading
from msg_jax.programs import checks
from msg_jax.recipes import runs
from msg_jax.run.run import Run

FILE = VISION["vjepa2"].file.name


@pytest.fixture(scope="module")
def toy():
    """The checkpoint's tensors, and the entry of `VISION` that fits them."""
    arrays, sizes = load("vjepa2")
    tensors = {name: tensor.astype(np.float32) for name, tensor in weights(arrays).items()}
    file = VISION["vjepa2"].file
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VISION, "vjepa2", Network(type(file)(file.name, 0), vjepa2_config(sizes)))
        yield tensors


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    (folder / FILE).parent.mkdir()
    save_file(toy, folder / FILE)
    return folder


def config_for(folder, scenes_cache=None, **changes):
    config = replace(
        runs.vta_ldm("smoke"), stages=("base",), weights=str(folder), encoders=dict(kind="vjepa2"),
        data=dict(train=8, validation=8, test=8, cache=str(scenes_cache)), codec=dict(fit_clips=8),
        base=dict(steps=1, batch_size=8), extract=dict(batch_size=4),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, scenes_cache):
    config, root = config_for(folder, scenes_cache), tmp_path_factory.mktemp("vjepa2") / "run"
    programs.run(config, root)
    return Run.create(config, root)


def test_each_frame_has_the_features_of_its_tube(run, toy):
    """Computed here phase by phase: 20 frames at 6.25 Hz are two phases of 10, 80 at 25 Hz are six of 14 (the last repeats)."""
    model, variables = from_torch("vjepa2", toy, VISION["vjepa2"].config)
    features = FeatureSource(run.folder("extract") / "train")
    record = run.arrays(run.source("train")[0])

    def of_tube(frames, first, step, length):
        """Features of the tube of frames `first` and `first + step`, among the `length` frames of their phase."""
        phase = frames[[min(first % step + i * step, len(frames) - 1) for i in range(length)]]
        out = model.apply(variables, phase[None].astype(np.float32) / 127.5 - 1)
        return np.asarray(out)[0, first // step // 2]

    width, item = model.config.width, features[0]
    assert item["clip"].shape == (TINY.clip_video_frames, width) and item["sync"].shape == (TINY.sync_tokens, width)
    for token, first in ((0, 0), (2, 0), (5, 5), (7, 5), (19, 17)):
        np.testing.assert_allclose(item["clip"][token], of_tube(record["clip_video"], first, 2, 10), atol=1e-4)
    for token, first in ((3, 3), (9, 3), (12, 12)):
        np.testing.assert_allclose(item["sync"][token], of_tube(record["video"], first, 6, 14), atol=1e-4)


def test_a_checkpoint_sees_the_same_features(run, folder):
    made = loading.load_checkpoint(run.folder("base"))
    item, record = FeatureSource(run.folder("extract") / "train")[3], run.arrays(run.source("train")[3])
    conditions = made.encode([(record["video"], record["clip_video"])])
    for name in ("clip", "sync"):
        np.testing.assert_allclose(getattr(conditions, name)[0], item[name], atol=1e-4)
    assert made.encoders == f"{Bundle(folder, networks.with_vision_encoder(run.config)).sha256('vjepa2')} float32"
    assert not made.squashes_clip_video  # the publisher cuts the middle out


def test_another_file_is_refused(run, toy, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    save_file(toy | {"encoder.layernorm.bias": toy["encoder.layernorm.bias"] + 1}, tmp_path / "other" / FILE)
    with pytest.raises(UserError, match=r"encoders was made with config\.weights\.model\.safetensors=\w+, this run has"):
        programs.run(replace(run.config, weights=str(tmp_path / "other")), run.root)


@pytest.mark.parametrize(("changes", "sentence"), [
    (dict(weights=""), r"^config\.encoders\.kind=vjepa2 needs released files: .*--config\.weights=FOLDER"),
    (dict(weights="/nowhere"), r"^/nowhere lacks 1 of the files .*vjepa2-vitl-fpc64-256/model\.safetensors .*docs/WEIGHTS\.md"),
    (dict(clip=dict(duration_sec=20.0)), r"^config\.clip\.duration_sec=20 is longer than the 16 s"),
])
def test_what_cannot_run_is_one_sentence(toy, folder, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        programs.run(config_for(folder, tmp_path / "scenes", **changes), tmp_path / "run")
    assert "\n" not in str(error.value) and "`msg-jax weights get" not in str(error.value)


def test_a_released_codec_goes_with_it(toy):
    """Its files are then needed too, in the same folder."""
    config = replace(
        runs.vta_ldm("smoke"), variant="small_16k", codec=dict(kind="released"), encoders=dict(kind="vjepa2"),
        clip=VARIANTS["small_16k"].clip, extract=dict(motion=False),
    )
    checks.check(config)
    found = networks.with_vision_encoder(config).networks
    assert found.keys() == {"vjepa2", *VARIANTS["small_16k"].networks}
