"""A run's frozen networks, ready for batches of any size."""

from collections.abc import Sequence

from msg_jax import networks
from msg_jax.data.features import FeatureSource
from msg_jax.inference.sampler import Sampler
from msg_jax.inference.scorer import CodecAndJudge, RewardScorer, WaveformJudge
from msg_jax.run.run import Run


def sampler(run: Run, features: FeatureSource) -> Sampler:
    """Samples the run's generator for extracted clips."""
    model = networks.generator(run.config, run.clip, features.dims, networks.compute_dtype())
    return Sampler(model, features, run.local_mesh, networks.solver(run.config))


def reward_scorer(run: Run) -> RewardScorer:
    """The run's own reward."""
    reward = networks.reward(run.config, run.clip)
    params = {name: run.load(name) for name in ("sf_cavp", "sound_events") if getattr(reward, name) is not None}
    return RewardScorer(reward, params, run.local_mesh, run.config.evaluate.batch_size)


def codec_and_judge(run: Run, class_names: Sequence[str]) -> CodecAndJudge:
    """The run's codec, and its judge where the data has event truth, i.e. `class_names`."""
    judge = networks.judge(class_names) if class_names else None
    return CodecAndJudge(
        networks.codec(run.config, run.clip), run.frozen("encoder", "decoder")["codec"],
        judge, run.load("judge") if judge else None, run.config.judge, run.clip, run.local_mesh,
        run.config.evaluate.batch_size,
    )


def second_judge(run: Run, class_names: Sequence[str]) -> WaveformJudge | None:
    """The run's second judge; None where the data has no event truth."""
    if not class_names:
        return None
    config = run.config
    return WaveformJudge(
        networks.second_judge(class_names), run.load("second_judge"), config.second_judge, run.clip, run.local_mesh,
        config.evaluate.batch_size,
    )
