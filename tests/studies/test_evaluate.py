"""Several samples of every clip in one row of the table."""

import dataclasses

import numpy as np

from msg_jax.config.tree import replace
from msg_jax.evaluation import distribution, events
from msg_jax.recipes import presets
from msg_jax.run.run import Run
from msg_jax.stages import judge
from msg_jax.studies.evaluate import Evaluation, RowKey


def test_a_row_pools_the_samples_of_a_clip(smoke_run, tmp_path):
    cache = str(smoke_run.parent / "scenes")
    config = replace(presets.get("smoke"), stages=("evaluate",), data=dict(cache=cache), evaluate=dict(samples=2, batch_size=6))
    evaluation = Evaluation(dataclasses.replace(Run.create(config, smoke_run), places={"evaluate": tmp_path}))
    system = RowKey("base", 2.0, 0)
    clips = evaluation.clips
    assert clips == range(8) and [len(each) for each in evaluation.batches()] == [6, 2]
    mels = evaluation.mels(system, clips, samples=2)
    assert mels.shape[:2] == (8, 2) and np.abs(mels[:, 0] - mels[:, 1]).mean() > 0.01
    # XLA may round a program of another batch differently; the noise of the first sample is that of a single one.
    np.testing.assert_allclose(evaluation.mels(system, clips)[:, 0], mels[:, 0], atol=1e-3)

    row = evaluation.row(system)
    detected = [evaluation.codec_and_judge.detect(mels[:, i]) for i in range(2)]
    each = [events.clip_counts(evaluation.truth, found, 0.08)["event_f1"] for found, _ in detected]
    np.testing.assert_array_equal(row["counts"]["event_f1"], each[0] + each[1])
    assert row["event_f1"]["value"] == events.micro_f1((each[0] + each[1]).sum(axis=0))
    scores = evaluation.reward_scorer.score(evaluation.video(clips), mels)["reward"]
    np.testing.assert_allclose(row["reward"]["value"], scores.mean(), rtol=1e-6)
    distances = [distribution.frechet_distance(embeddings, evaluation.real_embeddings) for _, embeddings in detected]
    assert distances[0] != distances[1] and row["fd_judge"] == np.mean(distances)
    real = evaluation.row(RowKey("real"))
    assert real["fd_judge"] < 1e-3

    # The second judge hears the vocoder's waveforms, or the recorded ones.
    heard = [evaluation.second_judge.detect(evaluation.codec_and_judge.vocode(mels[:, i])) for i in range(2)]
    again = sum(events.clip_counts(evaluation.truth, found, 0.08)["event_f1"] for found in heard)
    np.testing.assert_array_equal(row["counts"]["event_f1_second_judge"], again)
    recorded = evaluation.second_judge.detect(np.stack([evaluation.source[i]["waveform"] for i in clips]))
    np.testing.assert_array_equal(
        real["counts"]["event_f1_second_judge"], events.clip_counts(evaluation.truth, recorded, 0.08)["event_f1"]
    )
    # Groups hold the clips that they name.
    two = [i for i, truth in enumerate(evaluation.truth) if len(set(truth[:, 0])) == 2]
    assert row["groups"]["2_sources"]["value"] == events.micro_f1((each[0] + each[1])[two].sum(axis=0))


def test_the_judges_learn_from_different_clips(smoke_run):
    config = replace(presets.get("smoke"), data=dict(cache=str(smoke_run.parent / "scenes")))
    seen = []
    run = Run.create(config, smoke_run)
    for task in (judge.first(run), judge.second(run)):
        batches = iter(task.batches())
        seen.append({name for _ in range(24) for name in next(batches)["id"]})  # four times the clips
    assert len(seen[0]) == len(seen[1]) == 48 and not seen[0] & seen[1]
