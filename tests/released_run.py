"""A whole run on the toy variant of `released_files`: its preset, its videos, and `main` in its own process.

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

from msg_jax.config.schema import Config
from msg_jax.config.tree import replace
from msg_jax.convert.bundle import VARIANTS
from msg_jax.data import media, media_writer
from msg_jax.models import sf_cavp, slowfast
from msg_jax.recipes import presets

NAME = "toy_16k"
VIDEOS = [f"{letter}.mp4" for letter in "abcdef"]


def preset(config: Config) -> Config:
    """Two steps and two clips of everything; unlike the presets of full size it fine-tunes the released network."""
    short = dict(steps=2, batch_size=2)
    config = presets.released(config, NAME)
    return replace(
        config,
        clip=dict(duration_sec=1.92),  # the released networks take clips of any length
        sf_cavp=dict(preset="tiny", crop_share=0.8, lags=(-4, 4), **short),
        sound_events=dict(codes=4, kinds=2, rounds=1, clips=2, **short),
        extract=dict(batch_size=2, shard_clips=2),
        base=short,
        preference=dict(videos=2, candidates=2, candidate_steps=2, rounds=1, keep_share=1.0, **short),
        evaluate=dict(guidance_scales=(4.5,), steps=2, batch_size=2, reward_candidates=2, bootstrap=20, examples=1),
        every=dict(log=1, checkpoint=2),
    )


def register() -> None:
    VARIANTS[NAME] = toy_tensors()[1]
    presets.PRESETS[NAME] = preset


def tiny_sf_cavp(clip) -> sf_cavp.SFCAVPConfig:
    """A reward model that compiles in seconds."""
    shape = dict(slow_width=16, beta_inv=2, expansion=1, depths=(1,))
    video, audio = (dataclasses.replace(network, **shape) for network in (slowfast.VIDEO_TINY, slowfast.AUDIO_TINY))
    return sf_cavp.SFCAVPConfig(clip, video, audio, embed_dim=16)


def write_videos(folder, sec=2) -> None:
    """Six videos of almost `sec` seconds, wider than high, each with its own tone."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(VIDEOS):
        frames = rng.integers(0, 256, (24 * sec, 48, 64, 3), np.uint8)
        tone = 0.3 * np.sin(2 * np.pi * 200 * (i + 1) * np.arange(16_000 * sec) / 16_000)
        (folder / name).write_bytes(media_writer.encode_video(frames, CLIP.video_hz, tone, 16_000))


def silence(path) -> None:
    """A video with a silent sound track."""
    frames = np.zeros((48, 48, 64, 3), np.uint8)
    path.write_bytes(media_writer.encode_video(frames, CLIP.video_hz, np.zeros(32_000), 16_000))


def damage(path) -> None:
    """Overwrite all packets but the first few with garbage, which only decoding notices."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    contents = bytearray(path.read_bytes())
    for position, size in packets[4:]:
        contents[position : position + size] = b"\xff" * size
    path.write_bytes(contents)


def _without_videos(make):
    """Make a stage function fail if it opens a video."""

    @functools.wraps(make)
    def blind(*args):
        with mock.patch.object(media, "open_media", side_effect=AssertionError("a video is decoded")):
            return make(*args)

    return blind


if __name__ == "__main__":
    from msg_jax import main
    from msg_jax.recipes import flags
    from msg_jax.stages import base, codec, encoders

    register()
    sf_cavp.tiny = tiny_sf_cavp
    for stage in (base, codec, encoders):
        stage.make = _without_videos(stage.make)
    app.run(main.main, argv=sys.argv, flags_parser=flags.parse)
