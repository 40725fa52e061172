"""From video files to sound, against MMAudio's own code at toy widths (tests/mmaudio_reference.py makes the tensors)."""

import dataclasses

from golden_files import SMALL, relative_error
import mmaudio_reference
import numpy as np
import pytest
from released_files import toy_spec, write_released
import soundfile

from msg_jax.convert.bundle import VARIANTS
from msg_jax.inference.generate import Settings, Video, generate, takes_for
from msg_jax.inference.loading import load_weights
from msg_jax.inference.system import System


@pytest.fixture(scope="module")
def golden():
    with np.load(SMALL / "front_end.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("released")
        patch.setitem(VARIANTS, "toy_16k", write_released(folder, toy_spec()))
        yield load_weights(folder)


def expected_of(golden, name):
    return {key.rpartition("/")[2]: array for key, array in golden.items() if key.startswith(f"video/{name}/")}


SETTINGS = Settings(
    steps=mmaudio_reference.STEPS, guidance_scale=mmaudio_reference.GUIDANCE, prompt=mmaudio_reference.PROMPT,
    frame_choice="mmaudio_inference",
)


@pytest.fixture
def seen(monkeypatch):
    """What the system encodes, conditions on and decodes."""
    found = {}
    encode, sample = System.encode, System.sample

    def encoding(self, windows, *options):
        (frames,) = windows
        found.update(zip(("sync_frames", "clip_frames"), frames))
        conditions = encode(self, [frames], *options)
        found.update(clip=conditions.clip[0], sync=conditions.sync[0])
        return conditions

    def sampling(self, *args, **options):
        found["latents"] = sample(self, *args, **options)
        return found["latents"]

    monkeypatch.setattr(System, "encode", encoding)
    monkeypatch.setattr(System, "sample", sampling)
    return found


@pytest.mark.parametrize("name", mmaudio_reference.VIDEOS)
def test_a_file_gives_the_frames_features_latents_and_sound_of_mmaudio(system, golden, seen, tmp_path, name):
    expected = expected_of(golden, name)
    path = tmp_path / "clip.mp4"
    path.write_bytes(expected["file"].tobytes())
    duration_sec = mmaudio_reference.VIDEOS[name][-1]
    settings = dataclasses.replace(
        SETTINGS, noise=expected["noise"][None], duration_sec=duration_sec if duration_sec < 8 else None
    )
    ((waveform, *_),) = takes_for(system, Video(path, "clip.mp4"), settings)
    seen |= {key: seen[key][::4, ::8, ::8].astype(float) for key in ("clip_frames", "sync_frames")}
    seen["sync_frames"] = seen["sync_frames"][: len(expected["sync_frames"])]  # 25 * 1.16 is 28.999..., so MMAudio drops one
    for key, limit in (("clip_frames", 0.01), ("sync_frames", 0.01), ("clip", 2e-3), ("sync", 2e-3), ("latents", 2e-3)):
        assert seen[key].shape == expected[key].shape
        assert relative_error(seen[key], expected[key].astype(float)) <= limit, key
    heard = min(len(waveform), len(expected["waveform"]))
    assert relative_error(waveform[:heard], expected["waveform"][:heard]) <= 5e-3


def test_a_prompt_alone_gives_the_sound_of_mmaudio(system, golden, seen, tmp_path):
    expected = expected_of(golden, mmaudio_reference.TEXT_ALONE)
    settings = dataclasses.replace(SETTINGS, noise=expected["noise"][None], duration_sec=1.2)
    made, skipped = generate(system, [], tmp_path, settings)
    assert [row["outputs"] for row in made] == [["dog_cat.wav"]] and skipped == [] and made[0]["input"] is None
    assert relative_error(seen["latents"], expected["latents"]) <= 1e-4
    waveform, hz = soundfile.read(tmp_path / "dog_cat.wav")
    assert (len(waveform), hz) == (19_200, 16_000)
    assert relative_error(waveform, expected["waveform"][:19_200]) <= 5e-3
