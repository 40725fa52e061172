"""Writes the latents and condition features of every clip once, so that generator training never decodes a video."""

import pathlib

import jax
import numpy as np

from msg_jax import networks
from msg_jax.data.features import FeatureSource, FeatureWriter
from msg_jax.infra import logging, preemption
from msg_jax.models.condition_encoder import embed_text
from msg_jax.stages.common import Run, text_digest
from msg_jax.stages.prepare import SPLITS


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    config, clip = run.config, run.clip
    codec = networks.codec(config, clip)
    params = {"codec": run.load("codec"), "encoders": run.load("encoders")}

    @jax.jit
    def extract(params, batch):
        frames = networks.to_unit(batch["video"]), networks.to_unit(batch["clip_video"])
        clip_features, sync_features = networks.encode_frames(config, clip, params["encoders"], *frames)
        latents = codec.apply({"params": params["codec"]}, batch["mel"], method="encode")
        return {"latents": latents, "clip": clip_features, "sync": sync_features}

    digests = []
    for split in SPLITS:
        source = run.source(split)
        writer = FeatureWriter(folder / split, len(source), config.extract.shard_clips)
        progress = logging.Progress(f"extract {split}", len(source), "clip")
        for shard, indices in writer.missing:
            ids, items = [], []
            for start in range(0, len(indices), config.extract.batch_size):
                chosen = indices[start : start + config.extract.batch_size]
                records = [source[i] for i in chosen]
                records += records[-1:] * (config.extract.batch_size - len(records))  # one shape, one compilation
                arrays = [run.arrays(record) for record in records]
                batch = {name: np.stack([each[name] for each in arrays]) for name in arrays[0]}
                features = {name: np.asarray(value) for name, value in extract(params, batch).items()}
                features["text"] = embed_text([r["caption"] for r in records], clip.text_tokens, networks.text_dim(clip))
                items += [{name: value[i] for name, value in features.items()} for i in range(len(chosen))]
                ids += [r["id"] for r in records[: len(chosen)]]
                progress.update(chosen[-1] + 1)
            writer.write(shard, ids, items)
            preemption.exit_if_requested(f"extract {split} shard {shard}")
        writer.finish()
        digests += FeatureSource(folder / split).digests()
    return text_digest(*digests)
