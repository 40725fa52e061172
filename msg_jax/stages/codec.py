"""The codecs. Sound: fit the default one to training clips, or use the released one. Pictures: fit one."""

from collections.abc import Iterator

import numpy as np

from msg_jax.data import mel, pipeline
from msg_jax.infra import checkpoint, logging
from msg_jax.models.codec import fit_pca, fit_pictures
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path


def make(run: Run, folder: Path, seed: int | None) -> str:
    if run.config.codec.kind == "released":
        assert run.released is not None
        logging.info("%-13s MMAudio's VAE and BigVGAN", "codec")
        return text_digest(*run.released.checksums("vae", "bigvgan").values())
    log_mels = np.stack([mel.log_mel(clip["waveform"], run.clip.mel) for clip in _some(run, run.config.codec.fit_clips)])
    params, kept = fit_pca(log_mels, mel.mel_basis(run.clip.mel), run.clip)
    logging.info("%-13s %d channels keep %.1f %% of the variance", "codec", run.clip.latent_channels, 100 * kept)
    return checkpoint.export(folder / "params", params)


def make_pictures(run: Run, folder: Path, seed: int | None) -> str:
    section = run.config.picture_codec
    videos = np.stack([clip["video"] for clip in _some(run, section.fit_clips)])
    params, kept = fit_pictures(videos, run.clip, section.channels, section.whitening, section.strips, section.motion)
    logging.info("%-13s %d channels keep %.1f %% of the variance", "picture_codec", section.channels, 100 * kept)
    return checkpoint.export(folder / "params", params)


def _some(run: Run, count: int) -> Iterator[dict]:
    """The records of `count` training clips, drawn by the run's seed."""
    source = pipeline.Readable(run.source("train"), run.report_skipped)
    chosen = np.random.default_rng(run.config.seed).permutation(len(source))[:count]
    return (source[int(i)] for i in chosen)
