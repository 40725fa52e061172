"""Event metrics at two tolerances: the run's, and 40 ms, one frame of 25 fps video."""

from collections.abc import Sequence

import numpy as np

from msg_jax.evaluation import events

TIMING_SEC = 0.04
EVENT_METRICS = ("event_f1", "onset_f1", "class_f1", "event_f1_40ms", "onset_f1_40ms")


def counts(truth: Sequence[np.ndarray], found: Sequence[np.ndarray], tolerance_sec: float) -> dict[str, np.ndarray]:
    """Counts (B, 3) of each of EVENT_METRICS, from the true and the detected event lists of B clips."""
    exact = events.clip_counts(truth, found, TIMING_SEC)
    return events.clip_counts(truth, found, tolerance_sec) | {
        f"{name}_40ms": exact[name] for name in ("event_f1", "onset_f1")
    }
