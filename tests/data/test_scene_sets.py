"""Sets of scenes beside the usual one, and captions as sentences."""

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data.scene_sets import HELD_OUT, SETS, trained
from msg_jax.data.scenes import CLASS_NAMES, ScenesSource, make_scene, sentence


def classes(record):
    return {CLASS_NAMES[int(kind)] for kind in record["events"][record["events"][:, 0] >= 0, 0]}


def told(record):
    return {name for name in CLASS_NAMES if name in record["caption"].replace(",", "").split()}


def test_training_has_no_pair_that_is_held_out():
    kept = trained(0, "train", 60, TINY.duration_sec)
    records = [make_scene(0, "train", index, TINY) for index in range(60)]
    has = [any(set(pair) <= told(record) for pair in HELD_OUT) for record in records]
    assert 0 < sum(has) < 30 and kept == [index for index in range(60) if not has[index]]


@pytest.mark.parametrize("name, least, most", [("ood", 4, 4), ("ambient", 1, 2), ("fast", 1, 1)])
def test_sets_have_their_sources(name, least, most):
    source = ScenesSource(TINY, "test", 12, cast=SETS[name])
    records = [source[index] for index in range(len(source))]
    for record in records:
        assert least <= len(told(record)) <= most and classes(record) <= told(record)
        assert (name != "ood") or any(set(pair) <= told(record) for pair in HELD_OUT)
        assert (name != "ambient") or told(record) <= {"lamp", "motor"}
    if name == "fast":  # about two syllables a second in the usual scenes, four here
        gaps = np.concatenate([np.diff(record["events"][record["events"][:, 0] >= 0, 1]) for record in records])
        assert 0.2 < np.median(gaps) < 0.45


def test_sentences():
    assert sentence("wood") == "a wooden block bounces"
    assert sentence("wood, glass and motor, then splash") == (
        "a wooden block bounces while a glass ball bounces and a motor hums, then drops splash"
    )
    for index in range(30):
        assert len(sentence(make_scene(0, "train", index, TINY)["caption"]).replace(",", "").split()) <= 20
