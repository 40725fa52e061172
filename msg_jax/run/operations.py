"""Floating-point operations of a run's trainings and programs, counted from shapes (infra/operations.py)."""

from collections.abc import Mapping

from flax.core import meta
import jax
import jax.numpy as jnp

from msg_jax import networks
from msg_jax.config.schema import Preference
from msg_jax.inference import desync
from msg_jax.inference.frozen import codec_program
from msg_jax.inference.sampler import sample_program
from msg_jax.inference.scorer import CosineScorer
from msg_jax.infra import logging, operations
from msg_jax.run.run import Run
from msg_jax.storage import Path
from msg_jax.train import Task


def of_training(folder: Path) -> float:
    """Of a finished training: those of a step, times its steps. Rounded, they do not depend on how fast it was."""
    last = logging.read_metrics(folder / "metrics.jsonl")[-1]
    return float(last["step"] * round(last["flops_per_sec"] / last["steps_per_sec"]))


def of_step(task: Task) -> int:
    """Of one step of a training."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, frozen = meta.unbox(jax.eval_shape(task.init, key)), meta.unbox(task.frozen)
    return operations.count(jax.make_jaxpr(task.step)(state, task.batch_shapes(), key, frozen))


def of_candidates(run: Run, section: Preference, dims: Mapping[str, int]) -> float:
    """Of `section.candidates` sounds for each of `section.videos` clips: sampled, decoded and scored by the reward."""
    config, clip, number = run.config, run.clip, section.candidates
    model = networks.generator(config, clip, dict(dims), networks.compute_dtype())
    variables, conditions = networks.generator_shapes(model)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    sampled = sample_program(model, networks.solver(config)).trace(
        variables, conditions, keys, candidates=number, guidance_scale=section.candidate_guidance,
        steps=section.candidate_steps,
    )
    latents = jax.ShapeDtypeStruct((number, clip.latent_tokens, clip.latent_channels), jnp.float32)
    decode = codec_program(networks.codec(config, clip), "decode")
    decoded = decode.trace(run.frozen("decoder")["codec"], latents)
    programs = [sampled, decoded]
    if config.reward.uses_sf_cavp:
        params = networks.reward_shapes(config, clip)
        scorer = CosineScorer(networks.reward(config, clip), params, run.local_mesh, 1)
        frames = jax.ShapeDtypeStruct((1, clip.video_frames, clip.video_px, clip.video_px, 3), jnp.uint8)
        log_mels = jax.ShapeDtypeStruct((1, number, clip.mel_frames, clip.mel.bands), jnp.float32)
        embedded = scorer.embed_video_program.trace(params, frames)
        programs += [embedded, scorer.score_program.trace(params, embedded.out_info, log_mels)]
    if config.reward.of_synchformer:
        vocode = codec_program(networks.codec(config, clip), "vocode")
        programs.append(vocode.trace(run.frozen("decoder")["codec"], decoded.out_info))
    counted = sum(operations.count(program.jaxpr) for program in programs)
    if config.reward.of_synchformer:
        counted += desync.operations_of(networks.released(config)["synchformer"], clip, number)
    return section.videos * counted

