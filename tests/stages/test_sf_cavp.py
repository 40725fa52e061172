"""The training's input where videos are decoded."""

import itertools

import jax
import numpy as np
from video_files import beep, make_video, numbered

from msg_jax.config import tree
from msg_jax.infra import mesh as mesh_lib
from msg_jax.infra.random import key_for
from msg_jax.recipes import runs
from msg_jax.run.run import Run
from msg_jax.stages.sf_cavp import SFCAVPTask


def test_a_step_sees_the_same_whether_clips_are_decoded_whole_or_in_part(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    base = runs.sf_cavp("smoke")
    seconds = base.clip.duration_sec
    times = [40 * i for i in range(round(25 * seconds) + 2)]
    for name in "abcdefgh":
        pictures = [numbered((7 * i + ord(name)) % 256) for i in range(len(times))]
        make_video(folder / f"{name}.mp4", pictures, times, sound=beep(48_000, 0.1, seconds + 0.1))
    config = tree.replace(
        base, data=dict(source=f"folder:{folder}"), sf_cavp=dict(batch_size=4, crop_share=0.6),
    )
    task = SFCAVPTask(Run(tmp_path / "run", config, mesh_lib.make_mesh((1, 1, 1), jax.devices()[:1])))

    def first():
        return [{name: x for name, x in batch.items() if name != "id"} for batch in itertools.islice(task.batches(), 3)]

    cut, draw = first(), jax.jit(task.draw)
    monkeypatch.setattr(SFCAVPTask, "_cropped_frames", lambda self: None)
    whole = first()
    for step, (mine, other) in enumerate(zip(cut, whole)):
        unused = ~mine["video"].any(axis=(2, 3, 4))
        assert (unused.sum(axis=1) == mine["video"].shape[1] - round(0.6 * seconds * config.clip.video_hz)).all()
        np.testing.assert_array_equal(mine["mel"], other["mel"])
        key = key_for(config.seed, task.name, step)
        for ours, theirs in zip(*(jax.tree.leaves(draw(batch, key, {})) for batch in (mine, other))):
            np.testing.assert_array_equal(ours, theirs)
