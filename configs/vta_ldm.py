"""VTA-LDM (arXiv 2407.07464): latent diffusion that looks at frame features by cross-attention, and its report.

    python -m msg_jax.main --config=configs/vta_ldm.py          # preset tiny: as long as configs/base.py takes
    python -m msg_jax.main --config=configs/vta_ldm.py:smoke    # a minute or two, nothing learnt

Network and objective are chosen one without the other. MM-DiT with diffusion, and cross-attention with flow matching:
    --config.base.network=mmdit --config.base.features="('clip', 'sync', 'text')"
    --config.base.objective=flow
configs/vta_ldm_study.py varies encoders, auxiliary embeddings and augmentation one at a time.
"""

from ml_collections import ConfigDict

from configs import common

PRESETS = ("tiny", "smoke")


def get_config(preset="tiny"):
    preset = preset or "tiny"
    if preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r} of VTA-LDM: choose one of {', '.join(PRESETS)}.")
    config = common.get_config(("base", "evaluate"), preset)
    config.arms = {}
    config.extract.motion = True  # writes the motion energy beside the other features
    config.augment = ConfigDict(dict(  # more training clips, made of those that there are (data/augment.py)
        concat=0.0,  # so many times as many clips, each two joined at a cut
        speed=0.0,  # so many times as many clips, each at one of these speeds
        speeds=(0.8, 1.25),
    ))
    config.base.update(
        network="cross_attention",  # mmdit | cross_attention
        objective="diffusion",  # flow | diffusion
        diffusion=ConfigDict(dict(
            prediction="noise",  # noise | v
            schedule="scaled_linear",  # cosine | scaled_linear
            min_snr_gamma=5.0,  # 0: every time counts the same
            solver="dpm_solver",  # ddpm | ddim | dpm_solver
        )),
        hidden=176, depth=4,  # blocks: as many operations a step as the MM-DiT of configs/base.py
        features=("clip", "sync"),  # of clip, sync, text, motion: what the cross-attention network looks at
        positions=True,  # whether it is told when each of them is
        pooled_tokens=0,  # each of them as its means over so many parts of the clip; 0: as it comes
        keep_share=1.0,  # of the training clips, those with the best
        keep_by="alignment",  # alignment: of sound and picture, by SF-CAVP | random: as many at random
    )
    config.evaluate.update(
        prompts=False,  # whether captions are given, to a network that looks at text
        steps=2 if preset == "smoke" else 20,
    )
    if preset == "smoke":
        config.base.update(hidden=32, depth=1)
    return config
