"""The audio codec: fit the default one to training clips, or use the released one."""


import numpy as np

from msg_jax.data import mel, pipeline
from msg_jax.infra import checkpoint, logging
from msg_jax.models.codec import fit_pca
from msg_jax.run.run import Run
from msg_jax.run.stage import text_digest
from msg_jax.storage import Path


def make(run: Run, folder: Path, seed: int | None) -> str:
    if run.config.codec.kind == "released":
        assert run.released is not None
        logging.info("%-13s MMAudio's VAE and BigVGAN", "codec")
        return text_digest(*run.released.checksums("vae", "bigvgan").values())
    source = pipeline.Readable(run.source("train"), run.report_skipped)
    chosen = np.random.default_rng(run.config.seed).permutation(len(source))[: run.config.codec.fit_clips]
    log_mels = np.stack([mel.log_mel(source[int(i)]["waveform"], run.clip.mel) for i in chosen])
    params, kept = fit_pca(log_mels, mel.mel_basis(run.clip.mel), run.clip)
    logging.info("%-13s %d channels keep %.1f %% of the variance", "codec", run.clip.latent_channels, 100 * kept)
    return checkpoint.export(folder / "params", params)
