"""A whole run on the toy variant of `released_files`: its preset, its videos, and `main` in a process of its own.

    python tests/released_run.py --config=configs/avp_rpo.py:toy_16k --config.weights=DIR ...
"""

import dataclasses
import functools
import sys
from unittest import mock

from absl import app
import av
import numpy as np
from released_files import CLIP, toy_tensors

from configs import common
from msg_jax.convert.bundle import VARIANTS
from msg_jax.data import media, media_writer
from msg_jax.models import sf_cavp, slowfast

NAME = "toy_16k"
VIDEOS = [f"{letter}.mp4" for letter in "abcdef"]


def preset(config) -> None:
    """Two steps and two clips of everything, and the fine-tuning of the released network that presets leave out."""
    common.released(config, NAME)
    config.clip.duration_sec = 1.92  # the released networks take clips of any length
    config.sound_events.kinds = 0  # its training has a test of its own
    config.sf_cavp.update(preset="tiny", crop_share=0.8, lags=(-4, 4))
    config.sound_events.update(codes=4, kinds=2, rounds=1, clips=2)
    for section in ("sf_cavp", "sound_events", "base", "preference"):
        config[section].update(steps=2, batch_size=2)
    config.extract.update(batch_size=2, shard_clips=2)
    config.preference.update(videos=2, candidates=2, candidate_steps=2, rounds=1, keep_share=1.0)
    config.evaluate.update(guidance_scales=(4.5,), steps=2, batch_size=2, reward_candidates=2, bootstrap=20, examples=1)
    config.every.update(log=1, checkpoint=2)


def register() -> None:
    VARIANTS[NAME] = toy_tensors()[1]
    common.PRESETS[NAME] = preset


def tiny_sf_cavp(clip) -> sf_cavp.SFCAVPConfig:
    """A reward model that compiles in seconds."""
    shape = dict(slow_width=16, beta_inv=2, expansion=1, depths=(1,))
    video, audio = (dataclasses.replace(network, **shape) for network in (slowfast.VIDEO_TINY, slowfast.AUDIO_TINY))
    return sf_cavp.SFCAVPConfig(clip, video, audio, embed_dim=16)


def write_videos(folder) -> None:
    """Six videos of 1.92 s, wider than high, each with its own tone."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(VIDEOS):
        pictures = rng.integers(0, 256, (48, 48, 64, 3), np.uint8)
        tone = 0.3 * np.sin(2 * np.pi * 200 * (i + 1) * np.arange(32_000) / 16_000)
        (folder / name).write_bytes(media_writer.encode_video(pictures, CLIP.video_hz, tone, 16_000))


def silence(path) -> None:
    """The same video with a sound track in which nothing is heard."""
    pictures = np.zeros((48, 48, 64, 3), np.uint8)
    path.write_bytes(media_writer.encode_video(pictures, CLIP.video_hz, np.zeros(32_000), 16_000))


def damage(path) -> None:
    """Packets as before, of which all but the first pictures are garbage: only decoding meets it."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    contents = bytearray(path.read_bytes())
    for position, size in packets[4:]:
        contents[position : position + size] = b"\xff" * size
    path.write_bytes(contents)


def _without_videos(make):
    """A stage function that fails if a video is opened while it runs."""

    @functools.wraps(make)
    def blind(*args):
        with mock.patch.object(media, "open_media", side_effect=AssertionError("a video is decoded")):
            return make(*args)

    return blind


if __name__ == "__main__":
    from msg_jax import main
    from msg_jax.stages import base, codec, encoders

    register()
    sf_cavp.tiny = tiny_sf_cavp
    for stage in (base, codec, encoders):
        stage.make = _without_videos(stage.make)
    app.run(main.main, argv=sys.argv, flags_parser=main.parse_flags)
