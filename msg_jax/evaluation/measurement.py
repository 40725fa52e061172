"""All metrics of a set of generated clips, with or without real ones, from extracted features.

A metric's name includes the backbone of its features (`fd_vggish`, `onset_f1_spectral_flux`), because values of different
backbones are not comparable. A metric that cannot be computed is None, with a reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from jaxtyping import Bool, Real
import numpy as np

from msg_jax.evaluation import bootstrap, distribution, events, onsets, ranking

Column = Sequence[Any]  # an array per clip, or None

RECALL_GROUP = 64
_INTERVAL_COST = 4_000_000  # feature values above which a Fréchet distance gets no jackknife of twenty replicates
_FRAME_SEC = 1 / onsets.MOTION_HZ
_MOST_IN_KERNEL = 1000  # clips in a subset of the kernel distance, as in the field


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """Features of N clips, in columns named SIDE.FEATURE, such as "generated.logmel" or "pictures.motion".

    A column has one array per clip, or None for a clip without that feature (a clip without video, say).
    """

    ids: Sequence[str]
    columns: Mapping[str, Column]

    def select(self, names: Iterable[str], mask: Bool[np.ndarray, " N"] | None = None) -> list[tuple]:
        """Return the arrays of these columns per clip, for the clips in `mask` that have all of them."""
        chosen = range(len(self.ids)) if mask is None else np.flatnonzero(mask).tolist()
        rows = (tuple(self.columns[name][i] for name in names) for i in chosen)
        return [row for row in rows if all(part is not None for part in row)]


@dataclasses.dataclass(frozen=True)
class PerClipMetric:
    """A metric that is a function of sums over clips: `statistic` of the summed `terms(*features)` (C,) of each clip."""

    name: str
    needs: tuple[str, ...]
    terms: Callable[..., Any]
    statistic: Callable[[np.ndarray], Any]

    def table(self, clips: ClipFeatures) -> Real[np.ndarray, "N C"]:
        """The terms (N, C) of all clips; zeros, which change no sum, for a clip that lacks a feature."""
        rows = [
            None if any(part is None for part in parts) else np.ravel(self.terms(*parts))
            for parts in zip(*(clips.columns[name] for name in self.needs))
        ]
        width = next((len(row) for row in rows if row is not None), 1)
        return np.array([np.zeros(width) if row is None else row for row in rows])


@dataclasses.dataclass(frozen=True)
class SetMetric:
    """A metric of the whole set: `function` of one array per column of `needs`, the rows of all clips concatenated.

    `function` returns a float or {"value", ...}. For too few clips it raises ValueError with the reason.
    """

    name: str
    needs: tuple[str, ...]
    function: Callable[..., Any]
    jackknifed: bool = False  # whether it gets an interval

    def value(self, clips: ClipFeatures, mask: Bool[np.ndarray, " N"]) -> Any:
        rows = clips.select(self.needs, mask)
        if not rows:
            raise ValueError("no clip has all of its features")
        return self.function(*(np.concatenate([np.atleast_2d(part) for part in column]) for column in zip(*rows)))

    def cost(self, clips: ClipFeatures) -> int:
        """Number of values in the first column."""
        return sum(np.atleast_2d(row[0]).size for row in clips.select(self.needs))


def _mean(name: str, needs: tuple[str, ...], value: Callable[..., float]) -> PerClipMetric:
    """The mean over clips of `value(*features)`, ignoring clips where it is NaN."""

    def terms(*features):
        found = float(value(*features))
        return (found, 1.0) if math.isfinite(found) else (0.0, 0.0)

    return _share(name, needs, terms)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient; NaN where the denominator is 0."""
    nan = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=nan, where=np.asarray(denominator) > 0)


def _counted(name: str, needs: tuple[str, ...], counts: Callable[..., np.ndarray], score=onsets.f1) -> PerClipMetric:
    """A score of counts (tolerances, 3) summed over clips."""
    return PerClipMetric(name, needs, counts, lambda sums: score(sums.reshape(*sums.shape[:-1], -1, 3)))


def _share(name: str, needs: tuple[str, ...], counts: Callable[..., Any]) -> PerClipMetric:
    """The share of `counts(*features)` (part, whole), both summed over clips."""
    return PerClipMetric(name, needs, counts, lambda sums: _ratio(sums[..., 0], sums[..., 1]))


def _both(feature: str) -> tuple[str, str]:
    return f"generated.{feature}", f"reference.{feature}"


def _onset_counts(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return onsets.counts(onsets.sound_onsets(reference), onsets.sound_onsets(generated))


def _strict_counts(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return _onset_counts(generated, reference)[onsets.TOLERANCES_SEC.index(0.1)]


def _annotated_counts(generated: np.ndarray, true: np.ndarray) -> np.ndarray:
    return onsets.counts(np.stack([true[:, 1], np.ones(len(true))], axis=1), onsets.sound_onsets(generated))


def _event_counts(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.array(events.match(reference, generated))


def _sync_counts(generated: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    return onsets.near_counts(onsets.sound_onsets(reference), onsets.sound_onsets(generated), _FRAME_SEC)


def _event_sync_counts(generated: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    hits, _, missed = events.match(reference, generated, _FRAME_SEC)
    return hits, hits + missed


def _av_align(flux: np.ndarray, motion: np.ndarray, **windows: Any) -> float:
    return onsets.av_align(onsets.motion_onsets(motion), onsets.sound_onsets(flux), **windows)


def _distribution(backbone: str, feature: str) -> list[SetMetric]:
    return [
        SetMetric(f"fd_{backbone}", _both(feature), distribution.frechet_distance, jackknifed=True),
        SetMetric(f"kid_{backbone}", _both(feature), _kernel_distance),
    ]


def _kernel_distance(features: np.ndarray, reference: np.ndarray) -> float | dict[str, float]:
    if len(features) == len(reference) <= _MOST_IN_KERNEL:  # every subset would be the whole set
        return distribution.kernel_distance(features, reference, subsets=1, subset_size=_MOST_IN_KERNEL)[0]
    mean, std = distribution.kernel_distance(features, reference, subset_size=_MOST_IN_KERNEL)
    return {"value": mean, "std": std}


def _classification(backbone: str, feature: str) -> list[PerClipMetric | SetMetric]:
    def divergence(function):
        return lambda logits, reference: function(logits[None], reference[None])[0]

    return [
        _mean(f"kl_softmax_{backbone}", _both(feature), divergence(distribution.kl_softmax)),
        _mean(f"kl_sigmoid_{backbone}", _both(feature), divergence(distribution.kl_sigmoid)),
        SetMetric(f"is_{backbone}", (f"generated.{feature}",), _inception_score),
    ]


def _inception_score(logits: np.ndarray) -> dict[str, float]:
    mean, std = distribution.inception_score(logits)
    return {"value": mean, "std": std}


def _recall(queries: np.ndarray, answers: np.ndarray) -> float:
    """R@1 among `RECALL_GROUP`, after standardising both sides by the mean and scale of the answers."""
    mean, scale = answers.mean(axis=0), answers.std(axis=0) + 1e-6
    queries, answers = (queries - mean) / scale, (answers - mean) / scale
    return ranking.recall_at_1(ranking.grouped_cosine(queries, answers, RECALL_GROUP))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


_SOUND_AND_MOTION = ("generated.flux", "pictures.motion")
METRICS: tuple[PerClipMetric | SetMetric, ...] = (
    *_distribution("logmel", "logmel"),
    SetMetric("retrieval_r1_64_logmel", _both("logmel"), _recall),
    _counted("onset_f1_spectral_flux", _both("flux"), _onset_counts),
    _counted("onset_f1_100ms_spectral_flux", _both("flux"), _strict_counts),
    _mean("onset_ap_spectral_flux", _both("flux"), lambda generated, reference: onsets.average_precision(
        onsets.sound_onsets(reference), onsets.sound_onsets(generated))),
    _share("sync_score_spectral_flux", _both("flux"), _sync_counts),
    _mean("desync_spectral_flux", _both("flux"), lambda generated, reference: abs(onsets.lag_sec(
        reference, generated, onsets.FLUX_HZ))),
    _mean("av_align_motion_energy", _SOUND_AND_MOTION, _av_align),
    _mean("av_align_1_frame_motion_energy", _SOUND_AND_MOTION, lambda flux, motion: _av_align(
        flux, motion, windows_sec=(_FRAME_SEC,))),
    _mean("desync_motion_energy", _SOUND_AND_MOTION, lambda flux, motion: abs(onsets.motion_lag_sec(motion, flux))),
    _mean("desync_synchformer", ("both.synchformer",), lambda offsets: np.abs(offsets).mean()),
    _mean("stft_l1_waveform", ("pair.stft",), lambda distance: distance),
    _mean("pesq_wideband", ("pair.pesq",), lambda score: score),
    *_distribution("vggish", "vggish"),
    *_distribution("panns", "panns"),
    *_classification("panns", "panns_logits"),
)
"""Always reported."""

OPTIONAL_METRICS: tuple[PerClipMetric | SetMetric, ...] = (
    _counted("onset_f1_annotated_spectral_flux", ("generated.flux", "events.true"), _annotated_counts),
    *(_mean(f"{term}_sf_cavp", (f"both.sf_cavp_{term}",), lambda cosine: cosine) for term in ("semantic", "dynamic", "window")),
    SetMetric("retrieval_r1_64_sf_cavp", ("both.sf_cavp_video", "both.sf_cavp_audio"), _recall),
    *_distribution("judge", "judge"),
    _counted("event_f1_judge", _both("judge_events"), _event_counts),
    _share("sync_score_judge", _both("judge_events"), _event_sync_counts),
    *_distribution("passt", "passt"),
    *_classification("passt", "passt_logits"),
    _mean("ib_score_imagebind", ("generated.imagebind", "pictures.imagebind"), _cosine),
    *(_mean(f"clap_score_{kind}", (f"generated.clap_{kind}", f"captions.clap_{kind}"), _cosine) for kind in ("laion", "ms")),
)
"""Reported if their features are available, otherwise omitted."""


class Measurement:
    """The metrics of a set of clips and of its subsets.

    `tables` has the per-clip terms (N, C) by metric, `replicates` the jackknife replicates (G,). `why_not(column)` explains
    why a column is missing.
    """

    def __init__(self, clips: ClipFeatures, why_not: Callable[[str], str], *, seed: int = 0, resamples: int = 1000):
        self.clips, self._options = clips, dict(seed=seed, resamples=resamples)
        self._reasons = {
            metric.name: next(why_not(need) for need in metric.needs if need not in clips.columns)
            for metric in METRICS if not self._has(metric)
        }
        self._metrics = [metric for metric in (*METRICS, *OPTIONAL_METRICS) if self._has(metric)]
        self.tables = {metric.name: metric.table(clips) for metric in self._metrics if isinstance(metric, PerClipMetric)}
        self.replicates: dict[str, np.ndarray] = {}
        self._groups = bootstrap.jackknife_groups(list(clips.ids))

    def _has(self, metric: PerClipMetric | SetMetric) -> bool:
        return all(need in self.clips.columns for need in metric.needs)

    def row(self, mask: Bool[np.ndarray, " N"] | None = None) -> dict[str, Any]:
        """Return every metric of the clips in `mask` (N,) by name, with `<name>_reason` for a metric that is None."""
        whole = mask is None
        mask = np.ones(len(self.clips.ids), bool) if mask is None else mask
        row: dict[str, Any] = {}
        for metric in self._metrics:
            try:
                value = self._of_clips(metric, mask) if isinstance(metric, PerClipMetric) else self._of_set(metric, mask, whole)
            except ValueError as error:
                row |= {metric.name: None, f"{metric.name}_reason": str(error)}
            else:
                row[metric.name] = value
        for name, reason in self._reasons.items():
            row |= {name: None, f"{name}_reason": reason}
        return row

    def _of_clips(self, metric: PerClipMetric, mask: np.ndarray) -> dict[str, float]:
        with np.errstate(invalid="ignore"):
            value = bootstrap.interval(self.tables[metric.name][mask], metric.statistic, **self._options)
        if not math.isfinite(value["value"]):
            raise ValueError("it is undefined for every clip")
        return value if math.isfinite(value["low"]) else {"value": value["value"]}

    def _of_set(self, metric: SetMetric, mask: np.ndarray, whole: bool) -> Any:
        value = metric.value(self.clips, mask)
        if not (whole and metric.jackknifed and metric.cost(self.clips) <= _INTERVAL_COST):
            return value
        try:
            replicates = bootstrap.jackknife(lambda kept: metric.value(self.clips, kept & mask), self._groups)
        except ValueError:  # too few clips to leave any out
            return value
        self.replicates[metric.name] = replicates
        return bootstrap.jackknife_interval(value, replicates)


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, float]]:
    """Our per-clip metrics minus theirs, by name, with a paired bootstrap.

    `ours` and `theirs` are `Measurement.tables` (N, C) of the *same* clips in the same order.
    """
    found = {}
    for metric in (*METRICS, *OPTIONAL_METRICS):
        if not isinstance(metric, PerClipMetric) or metric.name not in ours or metric.name not in theirs:
            continue
        width = ours[metric.name].shape[1]
        both = np.concatenate([ours[metric.name], theirs[metric.name]], axis=1)

        def statistic(sums, metric=metric, width=width):
            return metric.statistic(sums[..., :width]) - metric.statistic(sums[..., width:])

        value = bootstrap.interval(both, statistic, seed=seed, resamples=resamples)
        if all(math.isfinite(bound) for bound in value.values()):
            found[metric.name] = value
    return found
