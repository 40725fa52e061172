"""Whether sound and pictures happen together: events heard in a clip against events seen in it, and either against its caption.

Event lists are those of `events`: (class index, onset_sec).
"""

from collections.abc import Collection, Sequence

from jaxtyping import Float, Int
import numpy as np

from msg_jax.evaluation import events
from msg_jax.evaluation.event_metrics import TIMING_SEC
from msg_jax.evaluation.events import EventList

SYNC_METRICS = ("sync_f1", "sync_f1_40ms")


def counts(
    seen: Sequence[EventList], heard: Sequence[EventList], tolerance_sec: float = events.TOLERANCE_SEC
) -> dict[str, Int[np.ndarray, "B 3"]]:
    """Counts (B, 3) per clip of each of SYNC_METRICS: an event heard and an event seen match in class and onset.

    A sound without a picture is a false positive, a picture without a sound a false negative.
    """
    found = {"sync_f1": tolerance_sec, "sync_f1_40ms": TIMING_SEC}
    return {name: events.clip_counts(seen, heard, tolerance)["event_f1"] for name, tolerance in found.items()}


def offsets(
    seen: Sequence[EventList], heard: Sequence[EventList], tolerance_sec: float = events.TOLERANCE_SEC
) -> Float[np.ndarray, " hits"]:
    """Seconds by which the sound of each matched event is late, over all clips."""
    each = [
        heard_in[hits[:, 1], 1] - seen_in[hits[:, 0], 1]
        for seen_in, heard_in in zip(seen, heard, strict=True)
        for hits in [events.assign(seen_in, heard_in, tolerance_sec)]
    ]
    return np.concatenate([*each, np.zeros(0)])


def agreement(told: Sequence[Collection[int]], found: Sequence[EventList]) -> Int[np.ndarray, "B 3"]:
    """Counts (B, 3) of the classes that a caption tells of against those that are found in the clip, at any time."""
    pairs = [(set(told_of), set(each[:, 0].astype(int))) for told_of, each in zip(told, found, strict=True)]
    return np.array([(len(t & f), len(f - t), len(t - f)) for t, f in pairs], np.int64).reshape(-1, 3)
