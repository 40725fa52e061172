"""The field's metrics of a run's systems (FD, KL, IS, DeSync, onsets), by the backbones whose files the run has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from msg_jax import networks
from msg_jax.data.clips import Held, Pair
from msg_jax.evaluation.measurement import ClipFeatures, Measurement
from msg_jax.inference import backbones
from msg_jax.run.run import Run

HEADLINE = ("fd_panns", "fd_vggish", "kl_softmax_panns", "is_panns", "desync_synchformer", "onset_f1_spectral_flux", "reward",
            "cost_tflop")
"""The columns of a report's first table."""
_LEFT_OUT = ("pesq_wideband",)  # of speech

Features = dict[str, np.ndarray]
"""What a clip's metrics are made of, by column of `ClipFeatures`."""


class FieldMetrics:
    """Metrics of waveforms beside the recorded ones of the same clips, as `msg-jax evaluate` has them of files.

    What is computed of a clip's pictures and of its recorded sound is kept for all systems.
    """

    def __init__(self, run: Run):
        self._clip, self._options = run.clip, dict(seed=run.config.seed, resamples=run.config.evaluate.bootstrap)
        sizes = networks.released(run.config).get("synchformer") if networks.released_fields(run.config) else None
        released, self._reasons = backbones.released(run.config.weights, run.clip.duration_sec, sizes)
        self._backbones = [*backbones.light(), *released]
        self._known: dict[str, tuple[Features, Mapping[str, np.ndarray]]] = {}

    def features(
        self, name: str, sound: Float[np.ndarray, " S"], recorded: Float[np.ndarray, " R"],
        video: Callable[[], UInt8[np.ndarray, "T H W 3"]],
    ) -> Features:
        """Of a clip's sound, beside the recorded one. `video` returns the clip's frames, and is called once per clip."""
        if name not in self._known:
            self._known[name] = self._of_recorded(self._held(recorded, video()))
        (features, seen), ours, real = self._known[name], self._held(sound), self._held(recorded)
        both = (backbone.extract(ours, seen[backbone.name]) for backbone in self._of_side("both"))
        return (
            features | self._of(ours, "sound", "generated") | self._of(Pair(ours, real), "pair")
            | {f"both.{name}": value for found in both for name, value in found.items()}
        )

    def _of_recorded(self, real: Held) -> tuple[Features, Mapping[str, np.ndarray]]:
        features = self._of(real, "sound", "reference") | self._of(real, "pictures")
        return features, {each.name: each.pictures(real) for each in self._of_side("both") if each.pictures}

    def _held(self, sound: np.ndarray, pictures: np.ndarray | None = None) -> Held:
        samples = round(self._clip.duration_sec * self._clip.audio_hz)
        return Held(np.asarray(sound[:samples], np.float32), self._clip.audio_hz, pictures, self._clip.video_hz)

    def _of_side(self, side: str) -> list[backbones.Backbone]:
        return [backbone for backbone in self._backbones if backbone.side == side]

    def _of(self, clip: Held | Pair, side: str, column: str = "") -> Features:
        each = (backbone.extract(clip) for backbone in self._of_side(side))
        return {f"{column or side}.{name}": value for found in each for name, value in found.items()}

    def row(self, ids: Sequence[str], features: Sequence[Features]) -> dict[str, Any]:
        """All metrics of the clips, by name."""
        names = dict.fromkeys(name for each in features for name in each)
        columns = {name: [each.get(name) for each in features] for name in names}
        row = Measurement(ClipFeatures(ids, columns), self._why_not, **self._options).row()
        return {name: value for name, value in row.items() if not name.startswith(_LEFT_OUT)}

    def _why_not(self, column: str) -> str:
        return self._reasons.get(column.partition(".")[2], "it is not computed in a run")
