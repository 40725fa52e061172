"""Fits the default audio codec to the training clips."""

import pathlib

import numpy as np

from msg_jax.data import mel
from msg_jax.infra import checkpoint, logging
from msg_jax.models.codec import fit_pca
from msg_jax.stages.common import Run


def make(run: Run, folder: pathlib.Path, seed: int | None) -> str:
    source = run.source("train")
    chosen = np.random.default_rng(run.config.seed).permutation(len(source))[: run.config.codec.fit_clips]
    log_mels = np.stack([mel.log_mel(source[int(i)]["waveform"], run.clip.mel) for i in chosen])
    params, kept = fit_pca(log_mels, mel.mel_basis(run.clip.mel), run.clip)
    logging.info("%-13s %d channels keep %.1f %% of the variance", "codec", run.clip.latent_channels, 100 * kept)
    return checkpoint.export(folder / "params", params)
