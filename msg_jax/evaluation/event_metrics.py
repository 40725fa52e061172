"""Event metrics at two tolerances, the run's and 40 ms (a frame of 25 fps video), and groups of clips that have their own."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def groups(records: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Groups of clips with metrics of their own: by number of sounding classes, and transitions from one source to another.

    A transition is recognised by the scenes' caption, "..., then ..." (data/scenes.py).
    """
    classes = [len(set(record["events"][record["events"][:, 0] >= 0, 0])) for record in records]
    found = {
        "all": list(range(len(records))),
        "transition": [i for i, record in enumerate(records) if ", then " in record["caption"]],
        "1_source": [i for i, count in enumerate(classes) if count == 1],
        "2_sources": [i for i, count in enumerate(classes) if count == 2],
        "3_sources": [i for i, count in enumerate(classes) if count >= 3],
    }
    return {name: chosen for name, chosen in found.items() if chosen}
