import numpy as np
import pytest

from msg_jax.evaluation import distribution, measurement, onsets


def _clips(count=80, shift=0.3, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, 6))
    logits = rng.normal(size=(count, 5))
    fluxes = [_flux(int(start)) for start in rng.integers(20, 60, count)]
    columns = {
        "reference.logmel": list(reference), "generated.logmel": list(reference + shift),
        "reference.panns_logits": list(logits), "generated.panns_logits": list(logits + rng.normal(size=(count, 5))),
        "reference.flux": fluxes, "generated.flux": [np.roll(flux, 15) for flux in fluxes],
    }
    return measurement.ClipFeatures([f"clip-{i}" for i in range(count)], columns)


def _flux(first):
    """Spectral flux with three onsets at unequal distances."""
    flux = np.zeros(200)
    flux[[first, first + 52, first + 116]] = 1.0
    return flux


def _measure(clips, **options):
    return measurement.Measurement(clips, lambda column: f"no {column} here", resamples=200, **options)


def test_row_has_the_metrics_of_the_features():
    clips = _clips()
    row = _measure(clips).row()
    generated, reference = (np.array(clips.columns[f"{side}.logmel"]) for side in ("generated", "reference"))
    assert row["fd_logmel"]["value"] == pytest.approx(6 * 0.3**2) == distribution.frechet_distance(generated, reference)
    assert row["fd_logmel"]["low"] <= row["fd_logmel"]["value"] <= row["fd_logmel"]["high"]
    assert row["retrieval_r1_64_logmel"] > 0.9
    assert row["kid_logmel"] == pytest.approx(distribution.kernel_distance(generated, reference)[0])
    logits = [np.array(clips.columns[f"{side}.panns_logits"]) for side in ("generated", "reference")]
    assert row["kl_softmax_panns"]["value"] == pytest.approx(distribution.kl_softmax(*logits).mean())
    assert row["kl_sigmoid_panns"]["value"] == pytest.approx(distribution.kl_sigmoid(*logits).mean())
    mean, std = distribution.inception_score(logits[0])
    assert row["is_panns"] == {"value": mean, "std": std}
    # A delay of 150 ms: two of the five tolerances are too narrow.
    assert row["onset_f1_spectral_flux"]["value"] == pytest.approx(0.6)
    assert row["onset_f1_100ms_spectral_flux"]["value"] == 0
    assert row["onset_ap_spectral_flux"]["value"] == pytest.approx(0.6)
    assert row["desync_spectral_flux"]["value"] == pytest.approx(0.15)
    assert row["sync_score_spectral_flux"]["value"] == 0


def test_row_gives_reasons_for_missing_metrics_and_omits_optional_ones():
    row = _measure(_clips()).row()
    assert row["fd_vggish"] is None and row["fd_vggish_reason"] == "no generated.vggish here"
    assert row["av_align_motion_energy_reason"] == "no pictures.motion here"
    assert not any("passt" in name or "sf_cavp" in name for name in row)
    small = _measure(_clips(9)).row()
    assert small["is_panns"] is None and "got 9" in small["is_panns_reason"]
    assert small["retrieval_r1_64_logmel"] is None and "at least 64" in small["retrieval_r1_64_logmel_reason"]


def test_row_of_a_mask_equals_the_row_of_those_clips_alone():
    clips = _clips()
    mask = np.arange(80) < 20
    part = measurement.ClipFeatures(clips.ids[:20], {name: column[:20] for name, column in clips.columns.items()})
    ours, alone = _measure(clips).row(mask), _measure(part).row()
    for name in ("onset_f1_spectral_flux", "kl_softmax_panns"):
        assert ours[name] == alone[name]
    assert ours["fd_logmel"] == pytest.approx(alone["fd_logmel"]["value"])


def test_row_ignores_clips_that_lack_a_feature():
    clips = _clips()
    holes = {name: [None if i % 2 else value for i, value in enumerate(column)] for name, column in clips.columns.items()}
    rest = measurement.ClipFeatures(clips.ids[::2], {name: column[::2] for name, column in clips.columns.items()})
    with_holes, without = (_measure(each).row() for each in (measurement.ClipFeatures(clips.ids, holes), rest))
    for name in ("onset_f1_spectral_flux", "onset_ap_spectral_flux", "kl_softmax_panns", "fd_logmel"):
        assert with_holes[name]["value"] == pytest.approx(without[name]["value"]), name


def test_motion_metrics_of_aligned_clips():
    clips = _clips(4)
    motion = np.zeros((4, 50))
    for row, flux in zip(motion, clips.columns["reference.flux"]):
        row[(np.flatnonzero(flux) / onsets.FLUX_HZ * onsets.MOTION_HZ).astype(int) - 1] = 1.0
    columns = {"pictures.motion": list(motion), "generated.flux": clips.columns["reference.flux"]}
    row = _measure(measurement.ClipFeatures(clips.ids, columns)).row()
    assert row["av_align_motion_energy"]["value"] == 1
    assert row["desync_motion_energy"]["value"] <= 0.04
    assert row["fd_logmel_reason"] == "no generated.logmel here"


def test_sync_score_is_the_share_of_the_references_onsets_within_a_frame():
    """Three onsets of four, in two clips, have one within 40 ms; five extra onsets cost nothing."""
    def flux(*frames):
        values = np.zeros(200)
        values[list(frames)] = 1.0
        return values

    columns = {
        "reference.flux": [flux(20, 80, 140), flux(50)],
        "generated.flux": [flux(24, 85, 137), flux(10, 30, 50, 90, 150)],
    }
    row = _measure(measurement.ClipFeatures(["a", "b"], columns)).row()
    assert row["sync_score_spectral_flux"]["value"] == pytest.approx(3 / 4)
    events = {
        "reference.judge_events": [np.array([[0, 1.0], [1, 2.0], [1, 3.0]])],
        "generated.judge_events": [np.array([[0, 1.039], [0, 2.0], [1, 3.041], [1, 3.5]])],
    }
    row = _measure(measurement.ClipFeatures(["a"], events)).row()
    assert row["sync_score_judge"]["value"] == pytest.approx(1 / 3)


def test_sync_score_without_an_onset_in_the_reference_is_undefined():
    columns = {"reference.flux": [np.zeros(200)], "generated.flux": [_flux(20)]}
    row = _measure(measurement.ClipFeatures(["a"], columns)).row()
    assert row["sync_score_spectral_flux"] is None
    assert row["sync_score_spectral_flux_reason"] == "it is undefined for every clip"


def test_metrics_of_pairs_are_means_over_the_clips_that_have_them():
    columns = {"pair.stft": list(map(np.array, (1.0, 2.0, 6.0))), "pair.pesq": [np.array(1.5), None, np.array(3.5)]}
    row = _measure(measurement.ClipFeatures(["a", "b", "c"], columns)).row()
    assert row["stft_l1_waveform"]["value"] == pytest.approx(3) and row["pesq_wideband"]["value"] == pytest.approx(2.5)


def test_differences_are_a_paired_bootstrap():
    ours, theirs = _measure(_clips()).tables, _measure(_clips()).tables
    same = measurement.differences(ours, theirs)
    assert set(same) == {
        "onset_f1_spectral_flux", "onset_f1_100ms_spectral_flux", "onset_ap_spectral_flux", "desync_spectral_flux",
        "sync_score_spectral_flux",
        "kl_softmax_panns", "kl_sigmoid_panns",
    }
    assert all(value == {"value": 0, "low": 0, "high": 0} for value in same.values())
    later = dict(theirs, desync_spectral_flux=theirs["desync_spectral_flux"] + np.array([0.25, 0]))
    shifted = measurement.differences(later, theirs)["desync_spectral_flux"]
    assert shifted == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
