from golden_files import SMALL
import numpy as np
import pytest

from msg_jax.evaluation import distribution


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "av_benchmark_metrics.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("case", ["vgg128", "rankdef"])
def test_frechet_distance_equals_av_benchmark(golden, case):
    found = distribution.frechet_distance(golden[f"fd/{case}/pred"], golden[f"fd/{case}/gt"])
    assert found == pytest.approx(float(golden[f"fd/{case}/value"]), rel=1e-6)


def test_kl_equals_av_benchmark(golden):
    logits, reference = golden["kl/pred_logits"], golden["kl/gt_logits"]
    assert distribution.kl_softmax(logits, reference).mean() == pytest.approx(float(golden["kl/softmax"]), rel=1e-5)
    assert distribution.kl_sigmoid(logits, reference).mean() == pytest.approx(float(golden["kl/sigmoid"]), rel=1e-5)


def test_inception_score_equals_av_benchmark(golden):
    found = distribution.inception_score(golden["is/200/logits"])
    assert found == pytest.approx((float(golden["is/200/mean"]), float(golden["is/200/std"])), rel=1e-6)


def test_kernel_distance_equals_av_benchmark(golden):
    found = distribution.kernel_distance(golden["kid/f1"], golden["kid/f2"], subsets=20, subset_size=100)
    assert found == pytest.approx((float(golden["kid/mean"]), float(golden["kid/std"])), rel=1e-4)


def test_all_equal_small_reference_values():
    """Values of SciPy's sqrtm, PyTorch's kl_div, and audioldm_eval's Inception Score and KID (20 subsets of 25).

    On the arrays of the larger file, these four agree with av-benchmark.
    """
    arrays = np.load(SMALL / "metrics.npz")
    given = {name.removeprefix("in/"): arrays[name].astype(np.float32) for name in arrays.files if name.startswith("in/")}
    expected = {name.removeprefix("out/"): float(arrays[name]) for name in arrays.files if name.startswith("out/")}
    score = distribution.inception_score(given["logits"])
    kernel = distribution.kernel_distance(given["features"], given["reference"], subsets=20, subset_size=25)
    logits, reference = given["logits"], given["reference_logits"]
    assert expected == pytest.approx({
        "fd": distribution.frechet_distance(given["features"], given["reference"]),
        "fd_rank_deficient": distribution.frechet_distance(given["few"], given["few_reference"]),
        "kl_softmax": distribution.kl_softmax(logits, reference).mean(),
        "kl_sigmoid": distribution.kl_sigmoid(logits, reference).mean(),
        "is_mean": score[0], "is_std": score[1], "kid_mean": kernel[0], "kid_std": kernel[1],
    }, rel=1e-4)


def test_frechet_distance_in_one_dimension_has_a_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (50, 1)), rng.normal(-2, 5, (70, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert distribution.frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_below_full_rank_is_symmetric_and_zero_on_itself():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(10, 40)), rng.normal(size=(15, 40)) + 1
    assert distribution.frechet_distance(a, b) == pytest.approx(distribution.frechet_distance(b, a), rel=1e-6)
    assert distribution.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_at_rank_one_has_a_closed_form():
    """Two samples per side: the covariances are u u^T / 2 and v v^T / 2, and the trace of the root is |u . v| / 2."""
    a, b = np.array([[0, 0, 0], [2, 0, 0]]), np.array([[0, 1, 0], [3, 5, 0]])
    u, v, gap = a[1] - a[0], b[1] - b[0], a.mean(0) - b.mean(0)
    expected = gap @ gap + u @ u / 2 + v @ v / 2 - abs(u @ v)
    assert distribution.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_rejects_other_widths_and_nan():
    with pytest.raises(ValueError, match="features of one width"):
        distribution.frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError):
        distribution.frechet_distance(np.full((9, 4), np.nan), np.zeros((9, 4)))


def test_kl_by_hand():
    reference, logits = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert distribution.kl_softmax(logits, reference).mean() == pytest.approx(expected)
    assert not distribution.kl_sigmoid(np.zeros((3, 4)), np.zeros((3, 4))).any()
    # sigmoid(ln 3) = .75 against sigmoid(0) = .5, for each of two labels
    assert distribution.kl_sigmoid(np.zeros((1, 2)), np.full((1, 2), np.log(3))) == pytest.approx(1.5 * np.log(1.5))


def test_inception_score_is_between_one_and_the_number_of_classes():
    uniform, certain = np.zeros((100, 5)), 50.0 * np.eye(5)[np.arange(100) % 5]
    assert distribution.inception_score(uniform) == pytest.approx((1, 0), abs=1e-9)
    assert distribution.inception_score(certain, splits=1)[0] == pytest.approx(5)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(400, 8)), rng.normal(size=(400, 8))
    mean, _ = distribution.kernel_distance(a, b, subset_size=200)
    shifted, _ = distribution.kernel_distance(a, b + 0.5, subset_size=200)
    assert abs(mean) < 0.05 < shifted


def test_too_few_samples_are_rejected():
    one, five = np.zeros((1, 3)), np.zeros((5, 3))
    with pytest.raises(ValueError, match="got 1 and 5"):
        distribution.frechet_distance(one, five)
    with pytest.raises(ValueError, match="got 5"):
        distribution.inception_score(five)
    with pytest.raises(ValueError, match="got 5 and 1"):
        distribution.kernel_distance(five, one)
