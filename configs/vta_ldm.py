"""VTA-LDM (arXiv 2407.07464): latent diffusion with cross-attention to frame features, and its report.

    python -m msg_jax.main --config=configs/vta_ldm.py          # preset tiny: as long as configs/base.py takes
    python -m msg_jax.main --config=configs/vta_ldm.py:smoke    # a minute or two, nothing learnt

Network and objective are independent: an MM-DiT with diffusion, or cross-attention with flow matching, are
    --config=configs/base.py --config.base.objective=diffusion
    --config=configs/vta_ldm.py --config.base.objective=flow
configs/vta_ldm_study.py varies encoders, auxiliary embeddings and augmentation one at a time.
"""

from msg_jax.recipes import runs

get_config = runs.vta_ldm
