"""Every figure of a set of generated clips, beside real ones or alone, from features extracted before.

A figure carries the name of what heard or saw the clips (`fd_vggish`, `onset_f1_spectral_flux`): values of two backbones
cannot be compared. What cannot be computed is None, with the reason beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from msg_jax.evaluation import bootstrap, distribution, events, onsets, ranking

Column = Sequence[np.ndarray | None]

RECALL_GROUP = 64
_INTERVAL_COST = 4_000_000  # clips times width beyond which a Fréchet distance is not computed twenty times more
_MOST_IN_KERNEL = 1000  # clips of a subset of the kernel distance, as in the field


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """Features of N clips, in columns named after where they come from: "generated.logmel", "pictures.motion".

    A column has one array for each clip, or None for a clip that has nothing there (no pictures, say).
    """

    ids: Sequence[str]
    columns: Mapping[str, Column]

    def of(self, names: Iterable[str], mask: np.ndarray | None = None) -> list[tuple]:
        """The arrays of these columns, clip by clip, of the clips in `mask` that have all of them."""
        chosen = range(len(self.ids)) if mask is None else np.flatnonzero(mask)
        rows = (tuple(self.columns[name][i] for name in names) for i in chosen)
        return [row for row in rows if all(part is not None for part in row)]


@dataclasses.dataclass(frozen=True)
class PerClip:
    """A figure that is a function of sums over clips: `terms(*features)` (C,) of one clip, `statistic` of their sums."""

    name: str
    needs: tuple[str, ...]
    terms: Callable[..., Any]
    statistic: Callable[[np.ndarray], np.ndarray]

    def table(self, clips: ClipFeatures) -> np.ndarray:
        """The terms (N, C) of all clips; zeros, which change no sum, for a clip that lacks a feature."""
        rows = [
            None if any(part is None for part in parts) else np.ravel(self.terms(*parts))
            for parts in zip(*(clips.columns[name] for name in self.needs))
        ]
        width = next((len(row) for row in rows if row is not None), 1)
        return np.array([np.zeros(width) if row is None else row for row in rows])


@dataclasses.dataclass(frozen=True)
class OfSet:
    """A figure of the whole set: `function` of one array for each column of `needs`, with the clips' rows joined.

    Returns a float or {"value", ...}; raises ValueError, whose sentence is the reason, where there are too few clips.
    """

    name: str
    needs: tuple[str, ...]
    function: Callable[..., Any]
    resampled: bool = False  # an interval by the jackknife

    def of(self, clips: ClipFeatures, mask: np.ndarray) -> Any:
        rows = clips.of(self.needs, mask)
        if not rows:
            raise ValueError("no clip has what it is computed from")
        return self.function(*(np.concatenate([np.atleast_2d(part) for part in column]) for column in zip(*rows)))

    def cost(self, clips: ClipFeatures) -> int:
        return sum(np.atleast_2d(row[0]).size for row in clips.of(self.needs))


def _mean(name: str, needs: tuple[str, ...], value: Callable[..., float]) -> PerClip:
    """The mean over clips of `value(*features)`; clips where it is NaN do not count."""

    def terms(*features):
        found = float(value(*features))
        return (found, 1.0) if math.isfinite(found) else (0.0, 0.0)

    return PerClip(name, needs, terms, lambda sums: _ratio(sums[..., 0], sums[..., 1]))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def _counted(name: str, needs: tuple[str, ...], counts: Callable[..., np.ndarray], score=onsets.f1) -> PerClip:
    """A score of counts (tolerances, 3) summed over clips."""
    return PerClip(name, needs, counts, lambda sums: score(sums.reshape(*sums.shape[:-1], -1, 3)))


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


def _av_align(flux: np.ndarray, motion: np.ndarray, **windows) -> float:
    return onsets.av_align(onsets.motion_onsets(motion), onsets.sound_onsets(flux), **windows)


def _distribution(backbone: str, feature: str) -> list[OfSet]:
    return [
        OfSet(f"fd_{backbone}", _both(feature), distribution.frechet_distance, resampled=True),
        OfSet(f"kid_{backbone}", _both(feature), _kernel_distance),
    ]


def _kernel_distance(features: np.ndarray, reference: np.ndarray) -> float | dict[str, float]:
    if len(features) == len(reference) <= _MOST_IN_KERNEL:  # every subset would be the whole
        return distribution.kernel_distance(features, reference, subsets=1, subset_size=_MOST_IN_KERNEL)[0]
    mean, std = distribution.kernel_distance(features, reference, subset_size=_MOST_IN_KERNEL)
    return {"value": mean, "std": std}


def _classification(backbone: str, feature: str) -> list[PerClip | OfSet]:
    def divergence(function):
        return lambda logits, reference: function(logits[None], reference[None])[0]

    return [
        _mean(f"kl_softmax_{backbone}", _both(feature), divergence(distribution.kl_softmax)),
        _mean(f"kl_sigmoid_{backbone}", _both(feature), divergence(distribution.kl_sigmoid)),
        OfSet(f"is_{backbone}", (f"generated.{feature}",), _inception_score),
    ]


def _inception_score(logits: np.ndarray) -> dict[str, float]:
    mean, std = distribution.inception_score(logits)
    return {"value": mean, "std": std}


def _recall(queries: np.ndarray, answers: np.ndarray) -> float:
    """R@1 among `RECALL_GROUP` after the answers' mean and scale are taken out of both."""
    mean, scale = answers.mean(axis=0), answers.std(axis=0) + 1e-6
    queries, answers = (queries - mean) / scale, (answers - mean) / scale
    return ranking.recall_at_1(ranking.grouped_cosine(queries, answers, RECALL_GROUP))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


_SEEN = ("generated.flux", "pictures.motion")
FIGURES: tuple[PerClip | OfSet, ...] = (
    *_distribution("logmel", "logmel"),
    OfSet("retrieval_r1_64_logmel", _both("logmel"), _recall),
    _counted("onset_f1_spectral_flux", _both("flux"), _onset_counts),
    _counted("onset_f1_100ms_spectral_flux", _both("flux"), _strict_counts),
    _mean("onset_ap_spectral_flux", _both("flux"), lambda generated, reference: onsets.average_precision(
        onsets.sound_onsets(reference), onsets.sound_onsets(generated))),
    _mean("desync_spectral_flux", _both("flux"), lambda generated, reference: abs(onsets.lag_sec(
        reference, generated, onsets.FLUX_HZ))),
    _mean("av_align_motion_energy", _SEEN, _av_align),
    _mean("av_align_1_frame_motion_energy", _SEEN, lambda *seen: _av_align(*seen, windows_sec=(1 / onsets.MOTION_HZ,))),
    _mean("desync_motion_energy", _SEEN, lambda flux, motion: abs(onsets.motion_lag_sec(motion, flux))),
    _mean("desync_synchformer", ("both.synchformer",), lambda offsets: np.abs(offsets).mean()),
    *_distribution("vggish", "vggish"),
    *_distribution("panns", "panns"),
    *_classification("panns", "panns_logits"),
)
"""What is always asked for."""

OPTIONAL: tuple[PerClip | OfSet, ...] = (
    _counted("onset_f1_annotated_spectral_flux", ("generated.flux", "events.true"), _annotated_counts),
    *(_mean(f"{term}_sf_cavp", (f"both.sf_cavp_{term}",), lambda cosine: cosine) for term in ("semantic", "dynamic", "window")),
    OfSet("retrieval_r1_64_sf_cavp", ("both.sf_cavp_video", "both.sf_cavp_audio"), _recall),
    *_distribution("judge", "judge"),
    _counted("event_f1_judge", _both("judge_events"), _event_counts),
    *_distribution("passt", "passt"),
    *_classification("passt", "passt_logits"),
    _mean("ib_score_imagebind", ("generated.imagebind", "pictures.imagebind"), _cosine),
    *(_mean(f"clap_score_{kind}", (f"generated.clap_{kind}", f"captions.clap_{kind}"), _cosine) for kind in ("laion", "ms")),
)
"""What is reported where its features are there, and otherwise not mentioned."""


class Measurement:
    """The figures of a set of clips, and of any part of it.

    `why_not` says of the name of a column why there is none.
    """

    def __init__(self, clips: ClipFeatures, why_not: Callable[[str], str], *, seed: int = 0, resamples: int = 1000):
        self.clips, self._options = clips, dict(seed=seed, resamples=resamples)
        self.reasons = {
            figure.name: next(why_not(need) for need in figure.needs if need not in clips.columns)
            for figure in FIGURES if not self._has(figure)
        }
        self.figures = [figure for figure in FIGURES if self._has(figure)]
        self.figures += [figure for figure in OPTIONAL if self._has(figure)]
        self.tables = {figure.name: figure.table(clips) for figure in self.figures if isinstance(figure, PerClip)}
        self.replicates: dict[str, np.ndarray] = {}
        self._groups = bootstrap.jackknife_groups(list(clips.ids))

    def _has(self, figure: PerClip | OfSet) -> bool:
        return all(need in self.clips.columns for need in figure.needs)

    def row(self, mask: np.ndarray | None = None) -> dict[str, Any]:
        """Every figure of the clips in `mask` (N,) bool, by name, with `<name>_reason` where it is None."""
        whole = mask is None
        mask = np.ones(len(self.clips.ids), bool) if mask is None else mask
        row: dict[str, Any] = {}
        for figure in self.figures:
            try:
                value = self._per_clip(figure, mask) if isinstance(figure, PerClip) else self._of_set(figure, mask, whole)
            except ValueError as error:
                row |= {figure.name: None, f"{figure.name}_reason": str(error)}
            else:
                row[figure.name] = value
        for name, reason in self.reasons.items():
            row |= {name: None, f"{name}_reason": reason}
        return row

    def _per_clip(self, figure: PerClip, mask: np.ndarray) -> dict[str, float]:
        with np.errstate(invalid="ignore"):
            value = bootstrap.interval(self.tables[figure.name][mask], figure.statistic, **self._options)
        if not math.isfinite(value["value"]):
            raise ValueError("no clip has anything that it could be computed from")
        return value if math.isfinite(value["low"]) else {"value": value["value"]}

    def _of_set(self, figure: OfSet, mask: np.ndarray, whole: bool) -> Any:
        value = figure.of(self.clips, mask)
        if not (whole and figure.resampled and figure.cost(self.clips) <= _INTERVAL_COST):
            return value
        try:
            replicates = bootstrap.jackknife(lambda kept: figure.of(self.clips, kept & mask), self._groups)
        except ValueError:  # too few clips to leave any out
            return value
        self.replicates[figure.name] = replicates
        return bootstrap.jackknife_interval(value, replicates)


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, float]]:
    """Our figures minus theirs by name, from tables (N, C) of the *same* clips in the same order, resampled in pairs."""
    found = {}
    for figure in (*FIGURES, *OPTIONAL):
        if not isinstance(figure, PerClip) or figure.name not in ours or figure.name not in theirs:
            continue
        width = ours[figure.name].shape[1]
        both = np.concatenate([ours[figure.name], theirs[figure.name]], axis=1)

        def statistic(sums, figure=figure, width=width):
            return figure.statistic(sums[..., :width]) - figure.statistic(sums[..., width:])

        value = bootstrap.interval(both, statistic, seed=seed, resamples=resamples)
        if all(math.isfinite(bound) for bound in value.values()):
            found[figure.name] = value
    return found
