import numpy as np
import pytest

from fusion_jax.evaluation.detection import average_precision
from fusion_jax.evaluation.detection_gain import precision_gains
from fusion_jax.evaluation.detection_matching import Matches, match_boxes

CASES, CLASSES = 60, 2


def trained(share: float, seed: int) -> Matches:
    """A detector that finds this share of the boxes, and as many places where there is nothing."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    case, label = np.arange(CASES), np.arange(CASES) % CLASSES
    truth = np.tile([[10.0, 10, 40, 40]], (CASES, 1))
    found = np.where((rng.random(CASES) < share)[:, None], truth + 1, truth + 100)
    return match_boxes(
        truth, case, label, found, case, label, rng.random(CASES), cases=CASES, classes=CLASSES, thresholds=[0.5, 0.75]
    )


@pytest.fixture(scope="module")
def matches() -> dict[str, list[Matches]]:
    shares = {"image": (0.4, 0.45, 0.35), "fused": (0.9, 0.85, 0.95), "same": (0.4, 0.45, 0.35)}
    return {name: [trained(share, seed) for seed, share in enumerate(of)] for name, of in shares.items()}


def test_a_model_is_the_mean_of_its_seeds(matches):
    found = precision_gains(matches, baseline="image", resamples=20)
    expected = [average_precision(entry).of()[0][:, 0] for entry in matches["fused"]]
    np.testing.assert_allclose(found.precision[1, :, :CLASSES], expected, atol=1e-6)
    np.testing.assert_allclose(found.precision[1, :, -1], np.mean(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.value, found.precision.mean(axis=1))
    np.testing.assert_allclose(found.gain[1], found.value[1] - found.value[0])


def test_equal_models_gain_exactly_nothing_and_a_better_one_is_seen(matches):
    found = precision_gains(matches, baseline="image", resamples=400)
    np.testing.assert_array_equal(found.gain[2], 0)
    np.testing.assert_array_equal(found.gain_interval.low[2], 0)
    np.testing.assert_array_equal(found.gain_interval.high[2], 0)
    assert found.gain_interval.low[1, -1] > 0.2
    assert found.above[1, -1] == 1


def test_seeds_widen_the_interval():
    # Detectors whose seeds differ far more than their patients do.
    apart = {"image": [trained(0.5, 0)] * 4, "fused": [trained(share, 1) for share in (0.3, 0.99, 0.3, 0.99)]}
    alike = {"image": apart["image"], "fused": [trained(0.65, 1)] * 4}
    of = {
        name: precision_gains(entries, baseline="image", resamples=400).gain_interval
        for name, entries in (("apart", apart), ("alike", alike))
    }
    width = {name: float(one.high[1, -1] - one.low[1, -1]) for name, one in of.items()}
    assert width["apart"] > 1.5 * width["alike"]


def test_patients_with_several_images_are_drawn_whole(matches):
    alone = precision_gains(matches, baseline="image", resamples=300)
    twelve = [f"patient {case // 12}" for case in range(CASES)]
    together = precision_gains(matches, baseline="image", patients=twelve, resamples=300)
    np.testing.assert_array_equal(alone.gain, together.gain)
    assert not np.allclose(alone.gain_interval.low, together.gain_interval.low)


def test_what_cannot_be_compared_is_refused(matches):
    with pytest.raises(ValueError, match="baseline is 'none'; expected one of image, fused, same"):
        precision_gains(matches, baseline="none", resamples=10)
    fewer = {"image": matches["image"], "fused": matches["fused"][:2]}
    with pytest.raises(ValueError, match="expected the same number, from the same seeds"):
        precision_gains(fewer, baseline="image", resamples=10)
