"""python -m benchmarks.directions --checkpoint=RUN/seed_0/base [--clips=64] [--steps=8] [--guidance=2] [--best_of=8]

What the directions of `generate` do to its sound, from video files of new procedural scenes on, by the run's second judge,
which hears waveforms:

- script: two scenes after each other, each with its caption as the cue of its time, against either scene alone with its
  caption as the prompt; F1 of events, classes and onsets, and of onsets near the join and elsewhere;
- best_of: the sound that the reward keeps, against all sounds it chose from.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import pathlib
import tempfile

import numpy as np

from msg_jax.config import tree
from msg_jax.config.schema import Config
from msg_jax.data import media_writer, scenes
from msg_jax.evaluation import bootstrap, events
from msg_jax.inference.cues import Cue
from msg_jax.inference.generate import Settings, Video, takes_for
from msg_jax.inference.loading import load_checkpoint
from msg_jax.infra.record import read_record
from msg_jax.run import build
from msg_jax.run.run import Run
from msg_jax.storage import path

NEAR_SEC = 0.4  # of a join
SCORES = ("event_f1", "class_f1", "onset_f1")


class Measurement:
    """A system, the second judge of its run, and scenes that no data set of the run has."""

    def __init__(self, args: argparse.Namespace):
        folder = path(args.checkpoint)
        record = read_record(folder)
        assert record is not None, f"{folder} is no finished stage"
        root = next(each for each in folder.parents if (each / "second_judge").exists())
        judge = build.second_judge(Run.create(tree.from_dict(Config, record["config"]), root), scenes.CLASS_NAMES)
        assert judge is not None
        self.judge, self.system = judge, load_checkpoint(args.checkpoint)
        self.clip = self.system.clip
        self.settings = Settings(steps=args.steps, guidance_scale=args.guidance, best_of=1)
        self.scenes = [scenes.make_scene(2**31, "test", i, self.clip) for i in range(args.clips)]
        self.truth = events.true_events(np.stack([scene["events"] for scene in self.scenes]))

    def takes(self, name: str, frames: np.ndarray, **changes) -> Iterator:
        """The takes for frames, through a file."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / f"{name}.mp4"
            file.write_bytes(media_writer.encode_video(frames, self.clip.video_hz))
            yield from takes_for(self.system, Video(file, file.name), dataclasses.replace(self.settings, **changes))

    def heard(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """The events of waveforms of one clip each."""
        return self.judge.detect(np.stack(waveforms))


def f1(counts: np.ndarray) -> str:
    value = bootstrap.f1_interval(counts, seed=0, resamples=1000)
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def onsets(truth: list[np.ndarray], found: list[np.ndarray], keep) -> np.ndarray:
    """Counts (B, 3) of onsets whose own or whose match's time is kept."""
    table = []
    for true, predicted in zip(truth, found):
        hits = events.assign(true, predicted, class_aware=False)
        kept, missed = keep(true[hits[:, 0], 1]), np.delete(true[:, 1], hits[:, 0])
        table.append([kept.sum(), keep(np.delete(predicted[:, 1], hits[:, 1])).sum(), keep(missed).sum()])
    return np.array(table)


def measure_script(measurement: Measurement) -> None:
    clip, shown = measurement.clip, measurement.scenes
    pairs = list(zip(shown[::2], shown[1::2]))
    length, halves, whole = clip.audio_samples, [], []
    for i, pair in enumerate(pairs):
        sec = clip.duration_sec
        script = tuple(Cue(k * sec, (k + 1) * sec, scene["caption"]) for k, scene in enumerate(pair))
        frames = np.concatenate([scene["video"] for scene in pair])
        (take,) = measurement.takes(f"pair_{i}", frames, script=script)
        halves += [take.waveform[:length], take.waveform[length : 2 * length]]
        whole.append(take.waveform[length // 2 : length // 2 + length])  # a clip around the join
    alone = [
        next(measurement.takes(f"scene_{i}", scene["video"], prompt=scene["caption"])).waveform[:length]
        for i, scene in enumerate(shown)
    ]
    truth = measurement.truth[: len(halves)]
    for name, sounds in (("script", halves), ("alone", alone[: len(halves)])):
        counts = events.clip_counts(truth, measurement.heard(sounds))
        print(f"{name:>8}", *(f"{score} {f1(counts[score])}" for score in SCORES), flush=True)
    middle = clip.duration_sec / 2
    around = [
        np.concatenate([a[a[:, 1] >= middle] - [0, middle], b[b[:, 1] < middle] + [0, middle]])
        for a, b in zip(measurement.truth[::2], measurement.truth[1::2])
    ]
    found = measurement.heard(whole)
    for name, keep in (("near the join", lambda t: np.abs(t - middle) <= NEAR_SEC),
                       ("elsewhere", lambda t: np.abs(t - middle) > NEAR_SEC)):
        print(f"{'script':>8}", f"onset_f1 {name} {f1(onsets(around, found, keep))}", flush=True)


def measure_best_of(measurement: Measurement, count: int) -> None:
    kept, others, correlations = [], [[] for _ in range(count)], []
    for i, (scene, true) in enumerate(zip(measurement.scenes, measurement.truth)):
        takes = list(measurement.takes(f"scene_{i}", scene["video"], variants=count))
        (best,) = measurement.takes(f"scene_{i}", scene["video"], best_of=count)
        heard = measurement.heard([take.waveform[: measurement.clip.audio_samples] for take in takes])
        counts = [events.clip_counts([true], [each])["event_f1"][0] for each in heard]
        for each, one in zip(others, counts):
            each.append(one)
        kept.append(counts[[take.seed for take in takes].index(best.seed)])
        scores = [float(events.micro_f1(one)) for one in counts]
        if np.std(scores) and np.std(best.rewards):
            correlations.append(np.corrcoef(scores, best.rewards)[0, 1])
    every = np.sum(others, axis=0)
    difference = bootstrap.f1_difference_interval(np.array(kept), every, seed=0, resamples=1000)
    print(f"best of {count}: event_f1 {f1(np.array(kept))}, of all {f1(every)}, difference {difference['value']:+.3f} "
          f"[{difference['low']:+.3f}, {difference['high']:+.3f}], correlation of reward and F1 {np.mean(correlations):.2f}")


def main() -> None:
    flags = argparse.ArgumentParser(usage=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    flags.add_argument("--checkpoint", required=True)
    flags.add_argument("--clips", type=int, default=64)
    flags.add_argument("--steps", type=int, default=8)
    flags.add_argument("--guidance", type=float, default=2.0)
    flags.add_argument("--best_of", type=int, default=8)
    args = flags.parse_args()
    measurement = Measurement(args)
    measure_script(measurement)
    measure_best_of(measurement, args.best_of)


if __name__ == "__main__":
    main()
