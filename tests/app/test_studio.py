"""What the page and the HTTP API share: limits, owners of files, fields, and pictures of sounds."""

import io

import matplotlib.image
import numpy as np
import pytest
import soundfile

from msg_jax.api import Request
from msg_jax.app import studio as studio_lib
from msg_jax.app.pictures import picture
from msg_jax.app.studio import Limits, Studio, plain_name, read_request
from msg_jax.data import media
from msg_jax.errors import UserError
from tests.app.serving import HZ, Tones, heard_hz, tone_hz


@pytest.fixture
def studio():
    tones = Tones()
    tones.gate.set()
    studio = Studio(tones, Limits(variants=3, steps=50, video_sec=3))
    yield studio
    studio.close()


def finish(job):
    assert job.wait(30) and job.error is None, job.error
    return job.result


def test_every_variant_has_a_sound_a_video_and_a_picture(studio, clip):
    outcome = finish(studio.submit("me", clip, Request(seed=3, variants=2)))
    assert [(take.seed, round(take.peak, 2)) for take in outcome.takes] == [(3, 0.5), (4, 0.5)]
    for take in outcome.takes:
        waveform, hz = soundfile.read(take.sound)
        assert (len(waveform), hz) == (2 * HZ, HZ) and heard_hz(waveform) == tone_hz(take.seed)
        assert take.video.suffix == ".mp4" and heard_hz(media.read_audio(take.video, 0, HZ, HZ)) == tone_hz(take.seed)
        assert take.picture.read_bytes().startswith(b"\x89PNG")
    alone = finish(studio.submit("me", None, Request(prompt="a")))
    assert alone.takes[0].video is None and heard_hz(soundfile.read(alone.takes[0].sound)[0]) == tone_hz(0, "a")


def test_files_are_their_owners_alone(studio, clip):
    outcome = finish(studio.submit("me", clip, Request()))
    name = outcome.takes[0].sound.name
    assert studio.file("me", outcome.token, name) == outcome.takes[0].sound
    for session, token, asked in (
        ("you", outcome.token, name), ("", outcome.token, name), ("me", "other", name), ("me", outcome.token, "../secret"),
        ("me", outcome.token, "/etc/passwd"),
    ):
        assert studio.file(session, token, asked) is None


def test_results_are_deleted_after_their_time_and_at_the_end(studio, clip, monkeypatch):
    outcome = finish(studio.submit("me", clip, Request()))
    monkeypatch.setattr(studio_lib, "_KEPT_SEC", -1)
    finish(studio.submit("me", None, Request(prompt="a")))
    assert not outcome.folder.exists() and studio.file("me", outcome.token, outcome.takes[0].sound.name) is None
    studio.close()
    assert not studio.folder.exists()


@pytest.mark.parametrize("changes, said", [
    ({"variants": 4}, "variants=4 is more than the 3"), ({"steps": 51}, "steps=51 is more than the 50"),
])
def test_limits(studio, clip, changes, said):
    with pytest.raises(UserError, match=said):
        studio.submit("me", clip, Request(**changes))
    assert studio.loaded.seen == []


def test_videos_that_cannot_be_used_are_named_without_the_servers_folders(studio, tmp_path, clip):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match=r"^bad\.mp4 cannot be opened as a video"):
        studio.submit("me", bad, Request())
    studio.limits = Limits(video_sec=1.5)
    with pytest.raises(UserError, match=r"^clip\.mp4 has 2\.0 s, more than the 1\.5 s that are allowed here"):
        studio.submit("me", clip, Request())
    with pytest.raises(UserError, match="neither a video nor a prompt"):
        studio.submit("me", None, Request())


@pytest.mark.parametrize(
    "name", ["../a.mp4", "a/b.mp4", "/etc/a.mp4", "..\\a.mp4", "http://x/a.mp4", "C:a.mp4", ".a.mp4", "", "a.exe"]
)
def test_names_that_are_paths_or_no_videos_are_refused(name):
    with pytest.raises(UserError, match="is not a"):
        plain_name(name)


def test_fields_of_a_form():
    asked = {"prompt": "rain", "seed": "3", "variants": 2.0, "steps": "", "guidance": "1.5", "negative_prompt": None}
    assert read_request(asked) == Request(prompt="rain", seed=3, variants=2, guidance=1.5)
    (cue,) = read_request({"script": "start,end,prompt\n0,2.5,rain\n"}).script
    assert (cue.start_sec, cue.end_sec, cue.prompt) == (0.0, 2.5, "rain")
    for fields, said in (
        ({"script": "start,end,prompt\n2,1,x\n"}, "script, line 2: the cue ends at 1 s"), ({"mix": "2"}, "is not a share"),
        ({"start": "2", "end": "1"}, "end=1.0 is not a number of seconds after start=2.0"),
        ({"respect_cuts": "maybe"}, "neither true nor false"),
        ({"seed": "x"}, "seed=x is not a number"), ({"sed": 1}, "sed is not a field: use best_of, end, guidance"),
        ({"seed": -1}, "seed=-1 is not a whole number from 0"), ({"steps": 0}, "steps=0 is not a whole number of at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            read_request(fields)


def test_a_picture_shows_when_and_how_high():
    """A tone of 1 kHz in the second half; on the mel scale 1 kHz of 8 kHz is at 1000 / 2840 of the height."""
    times = np.arange(HZ) / HZ
    waveform = np.where(times < 0.5, 0, 0.009 * np.sin(2 * np.pi * 1000 * times)).astype(np.float32)
    image = matplotlib.image.imread(io.BytesIO(picture(waveform, HZ, (200, 100))))[..., :3].mean(axis=-1)
    assert image.shape == (100, 200)
    above, below = image[:40], image[40:]
    assert (above[2:38, 105:] > 0.4).all() and (above[:15, :95] < 0.2).all()
    assert below[:, 150].max() > 0.3 and below[:, 40].max() < 0.1
    assert abs((59 - below[:, 150].argmax()) / 59 - 1000 / 2840) < 0.04
