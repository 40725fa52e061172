"""python benchmarks/meshes.py [--tasks=encoders,judge,...] [--steps=10] [--json=FILE]

Every training of the smoke preset on every mesh of eight virtual CPU devices, against one device: the largest relative
difference of a parameter tensor, |a - b| / |b| in the L2 norm, after ten optimiser steps from the same seed and batches.
Prints the table of docs/SCALING.md, and exits with code 1 if a difference exceeds 1e-4.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import ClassVar

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np

from configs import avp_rpo as config_lib
from msg_jax import networks, train
from msg_jax.clip import ClipSpec
from msg_jax.infra import logging
from msg_jax.infra import mesh as mesh_lib
from msg_jax.models.mmdit import example_inputs
from msg_jax.stages import base, encoders, judge, preference, sf_cavp
from msg_jax.stages.common import Run

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 4, 1), (1, 2, 4)]
LIMIT = 1e-4
BATCH = 8


class Clips:
    """Random features of clips that do not exist, with pairs of latents."""

    split = "train"
    dims: ClassVar = {"clip": 24, "sync": 16, "text": 16}

    def __init__(self, clip: ClipSpec):
        self.clip = clip

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict:
        rng, clip = np.random.default_rng(index), self.clip
        latents = (clip.latent_tokens, clip.latent_channels)
        shapes = {
            "latents": latents, "winner": latents, "loser": latents, "clip": (clip.clip_video_frames, self.dims["clip"]),
            "sync": (clip.sync_tokens, self.dims["sync"]), "text": (clip.text_tokens, self.dims["text"]),
        }
        return {"id": str(index)} | {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tasks(run: Run) -> dict:
    """Makers of the trainings by name: they cost something."""
    clips = Clips(run.clip)

    def pairs():
        model = networks.generator(run.config, run.clip, clips.dims, run.dtype)
        start = jax.jit(lambda key: model.init(key, *example_inputs(model.config)))(jax.random.key(5))
        start = jax.tree.map(np.asarray, jax.tree.map(lambda x: getattr(x, "value", x), start, is_leaf=_is_box))
        return preference.PreferenceTask(run, clips, run.config.preference, 0, start, clips.dims, "avp_rpo")

    return {
        "judge": lambda: judge.JudgeTask(run, run.source("train")),
        "encoders": lambda: encoders.EncoderTask(run),
        "sf_cavp": lambda: sf_cavp.SFCAVPTask(run),
        "base": lambda: base.FlowTask(run, clips, run.config.base, 0),
        "avp_rpo": pairs,
    }


def _is_box(x) -> bool:
    return hasattr(x, "replace_boxed")


def trained(name: str, shape: tuple[int, int, int], steps: int, config, folder: pathlib.Path) -> dict:
    """Parameters after `steps` steps on a mesh."""
    devices = jax.devices()[: int(np.prod(shape))]
    run = Run(folder, config, ClipSpec.from_dict(config.clip.to_dict()), mesh_lib.make_mesh(shape, devices))
    if name == "encoders" and not (run.folder("codec") / "params").exists():
        from msg_jax.stages import codec

        codec.make(run, run.folder("codec"), None)
    state = train.fit(
        tasks(run)[name](), steps=steps, workdir=folder / f"{name}{shape}", mesh=run.mesh, seed=0, log_every=steps,
        checkpoint_every=steps,
    )
    return mesh_lib.to_host(state.params)


def difference(ours: dict, theirs: dict) -> tuple[float, float]:
    """The largest relative L2 difference of a tensor, and that of all parameters together.

    A tensor that the training has left near zero is compared with the size that its steps could have given it.
    """
    ours, theirs = (jax.tree.leaves(tree) for tree in (ours, theirs))
    worst = max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3 * np.sqrt(b.size)) for a, b in zip(ours, theirs))
    together = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(ours, theirs)) / sum(np.sum(b**2) for b in theirs))
    return float(worst), float(together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="judge,encoders,base,avp_rpo,sf_cavp")
    parser.add_argument("--meshes", default=";".join(",".join(map(str, shape)) for shape in MESHES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    logging.plain_terminal()
    meshes = [tuple(int(size) for size in shape.split(",")) for shape in arguments.meshes.split(";")]
    config = config_lib.get_config("smoke")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config.data.cache = f"{folder}/data"
        for section in ("judge", "sf_cavp", "encoders", "base", "preference"):
            config[section].update(steps=arguments.steps, batch_size=BATCH)
        print(f"{'training':<10} {'mesh':<10} {'worst tensor':>13} {'together':>10} {'seconds':>8}")
        for name in arguments.tasks.split(","):
            one = trained(name, (1, 1, 1), arguments.steps, config, pathlib.Path(folder))
            for shape in meshes:
                begun = time.monotonic()
                worst, together = difference(trained(name, shape, arguments.steps, config, pathlib.Path(folder)), one)
                rows.append({"training": name, "mesh": shape, "worst": worst, "together": together})
                print(f"{name:<10} {','.join(map(str, shape)):<10} {worst:>13.1e} {together:>10.1e} "
                      f"{time.monotonic() - begun:>8.0f}", flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["worst"] > LIMIT for row in rows))


if __name__ == "__main__":
    main()
