import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fusion_jax.data.synthetic.truth import area_under_curve
from fusion_jax.data.synthetic.two_modalities import focus_and_texture


def pixels(cohort, name):
    return np.stack([cohort.image(name, row).values[..., 0] for row in range(len(cohort))])


def test_a_class_takes_both_and_every_other_case_has_one():
    cohort, truth = focus_and_texture(400, seed=3)
    focus, texture = truth.hidden["focus"], truth.hidden["texture"]
    np.testing.assert_array_equal(cohort.label, focus & texture)
    assert cohort.label.sum() == 200
    assert (focus & ~texture).sum() == (~focus & texture).sum() == 100


@pytest.mark.parametrize("shape", [(16, 16), (12, 10, 14)])
def test_both_signs_are_seen_practically_without_error(shape):
    cohort, truth = focus_and_texture(200, shape=shape, seed=1)
    pet, ct = pixels(cohort, "pet"), pixels(cohort, "ct")
    assert pet.shape == (200, *shape)
    axes = tuple(range(1, pet.ndim))
    brightest = gaussian_filter(pet, 1.5, axes=axes).max(axis=axes)
    rough = np.mean([np.square(np.diff(ct, axis=axis)).mean(axis=axes) for axis in axes], axis=0)
    for score, name in ((brightest, "focus"), (rough, "texture")):
        seen = truth.hidden[name]
        assert area_under_curve(score, seen).value > 0.999
        # Neither image tells of the other's sign more than the class does.
        other = truth.hidden["texture" if name == "focus" else "focus"]
        assert area_under_curve(score[seen], other[seen]).value == pytest.approx(0.5, abs=0.12)


def test_one_modality_alone_reaches_three_quarters():
    _, truth = focus_and_texture(4000)
    assert truth.auc("pet").value == truth.auc("ct").value == 0.75
    assert truth.auc().value == 1.0


def test_texture_shows_in_neighbours_only():
    cohort, truth = focus_and_texture(600, shape=(16, 16))
    ct, fine = pixels(cohort, "ct"), truth.hidden["texture"]
    for values in (ct[fine], ct[~fine]):
        assert abs(values.mean()) < 0.1
        assert values.std() == pytest.approx(1.0, abs=0.05)


def test_a_case_is_the_same_whichever_were_drawn_before():
    cohort, _ = focus_and_texture(8, seed=2)
    again, _ = focus_and_texture(8, seed=2)
    other, _ = focus_and_texture(8, seed=3)
    np.testing.assert_array_equal(cohort.image("ct", 5).values, again.image("ct", 5).values)
    assert (cohort.image("ct", 5).values != other.image("ct", 5).values).any()


@pytest.mark.parametrize(("n", "shape"), [(3, (16, 16)), (8, (16,)), (8, (16, 4))])
def test_what_cannot_be_drawn_is_refused(n, shape):
    with pytest.raises(ValueError, match="expected"):
        focus_and_texture(n, shape=shape)
