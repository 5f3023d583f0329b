import numpy as np
import pytest

from fusion_jax.data.synthetic.draws import case_stream
from fusion_jax.data.synthetic.fields import blend, directional_wave, edge, grid, smooth_noise


@pytest.mark.parametrize(("shape", "scale"), [((64,), 7.0), ((40, 30), 5.0), ((8, 12, 9), 3.0), ((20, 20), 1.0)])
def test_smooth_noise_has_variance_one_in_every_pixel(shape, scale):
    fields = np.stack([smooth_noise(shape, scale, case_stream(0, i)) for i in range(400)])
    assert fields.shape == (400, *shape)
    # Of 400 draws a variance has a standard error of 7 %.
    assert np.abs(fields.var(axis=0) - 1).max() < 0.4
    assert np.abs(fields.var(axis=0).mean() - 1) < 0.1


def test_smooth_noise_is_smooth_along_every_axis():
    field = smooth_noise((60, 70), 10.0, case_stream(0, 0))
    assert np.abs(np.diff(field, axis=0)).max() < 0.5
    assert np.abs(np.diff(field, axis=1)).max() < 0.5
    assert np.std(field) > 0.5


def test_an_edge_runs_from_one_inside_to_zero_outside():
    np.testing.assert_allclose(edge(np.array([-9.0, -1.0, 0.0, 0.5, 9.0]), 2.0), [1, 1, 0.5, 0.25, 0])


def test_blend_replaces_a_share():
    np.testing.assert_allclose(blend(np.array([10.0, 10.0]), 20.0, np.array([0.0, 0.5])), [10, 15])


def test_a_grid_is_centred_in_millimetres():
    y, x = grid((3, 4), (2.0, 1.0))
    np.testing.assert_allclose(y.ravel(), [-2, 0, 2])
    np.testing.assert_allclose(x.ravel(), [-1.5, -0.5, 0.5, 1.5])


def test_a_relief_depends_on_direction_alone_with_variance_one():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(3, 50))
    direction /= np.linalg.norm(direction, axis=0)
    reliefs = np.stack([directional_wave(direction, 3.0, 6, case_stream(1, i)) for i in range(500)])
    assert reliefs.var() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(directional_wave(direction[:, :5], 3.0, 6, case_stream(1, 2)), reliefs[2][:5])
