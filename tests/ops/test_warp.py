from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.ops.warp import affine_matrix, affine_warp, elastic_displacement, elastic_warp, warp
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
SHAPES = [(9,), (6, 7), (5, 6, 7)]
SCIPY_MODE = {"constant": "grid-constant", "nearest": "nearest"}
sampled = jax.jit(warp, static_argnames=("method", "mode"))
moved = jax.jit(affine_warp, static_argnames=("method", "mode", "sizes"))


def image(sizes, channels=2):
    return RNG.normal(size=(*sizes, channels))


def each_channel(function, x):
    return np.stack([function(x[..., c]) for c in range(x.shape[-1])], axis=-1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["constant", "nearest"])
@pytest.mark.parametrize(("method", "order"), [("linear", 1), ("nearest", 0)])
@pytest.mark.parametrize("sizes", SHAPES)
def test_samples_equal_scipy_inside_and_beyond_the_border(sizes, method, order, mode):
    x = image(sizes)
    low, high = -3.0, np.reshape(sizes, (-1, 1, 1)) + 2.0
    places = RNG.uniform(low, high, size=(len(sizes), 11, 13))

    def reference(channel):
        return scipy.ndimage.map_coordinates(channel, places, order=order, mode=SCIPY_MODE[mode], cval=2.5)

    found = sampled(x, places, method=method, mode=mode, fill=2.5)
    assert_close(found, each_channel(reference, x), 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [None, (4, 5, 9)])
def test_affine_warps_equal_scipy(sizes):
    x = image((5, 6, 7))
    matrix, offset = np.eye(3) + 0.2 * RNG.normal(size=(3, 3)), RNG.normal(size=3)

    def reference(channel):
        return scipy.ndimage.affine_transform(
            channel, matrix, offset, output_shape=sizes, order=1, mode="grid-constant", cval=-1.0
        )

    found = moved(x, matrix, offset, sizes=sizes, fill=-1.0)
    assert_close(found, each_channel(reference, x), 1e-12)


@pytest.mark.parametrize("mode", ["constant", "nearest"])
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_the_identity_changes_nothing(method, mode):
    x = image((5, 6, 7)).astype(np.float32)
    assert_close(moved(x, np.eye(3, dtype=np.float32), method=method, mode=mode, fill=9.0), x, 0.0)
    matrix, offset = affine_matrix((5, 6, 7), spacing=np.array([3.0, 1.0, 1.0]))
    assert_close(moved(x, matrix, offset, method=method, mode=mode), x, 1e-6)
    assert_close(elastic_warp(x, jnp.zeros((3, 5, 6, 7)), method=method, mode=mode), x, 0.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_a_quarter_turn_equals_rot90(method):
    x = image((6, 6))
    turned = moved(x, *affine_matrix((6, 6), rotation=np.pi / 2), mode="nearest", method=method)
    assert_close(turned, np.rot90(x), 1e-12)
    x = image((5, 5, 5))
    for axis, plane in enumerate([(1, 2), (0, 2), (0, 1)]):
        matrix, offset = affine_matrix((5, 5, 5), rotation=np.pi / 2 * np.eye(3)[axis])
        assert_close(moved(x, matrix, offset, mode="nearest", method=method), np.rot90(x, axes=plane), 1e-12)


@pytest.mark.usefixtures("x64")
def test_turns_about_several_axes_are_done_in_their_order():
    x = image((5, 5, 5))
    matrix, offset = affine_matrix((5, 5, 5), rotation=np.full(3, np.pi / 2))
    expected = np.rot90(np.rot90(np.rot90(x, axes=(1, 2)), axes=(0, 2)), axes=(0, 1))
    assert_close(moved(x, matrix, offset, mode="nearest"), expected, 1e-12)


@pytest.mark.usefixtures("x64")
def test_flips_shifts_and_scales_move_the_image_as_they_say():
    x = image((5, 6, 8))
    flipped = moved(x, *affine_matrix((5, 6, 8), flip=(True, False, True)), mode="nearest")
    assert_close(flipped, x[::-1, :, ::-1], 1e-12)
    matrix, offset = affine_matrix((5, 6, 8), translation=np.array([4.0, -1.0, 0.0]), spacing=np.array([2.0, 1.0, 1.0]))
    shifted = np.asarray(moved(x, matrix, offset))
    assert_close(shifted[2:, :-1], x[:-2, 1:], 1e-12)
    assert (shifted[:2] == 0).all()
    point = np.zeros((9, 9, 1))
    point[4, 6] = 1.0  # two right of the centre
    enlarged = np.asarray(moved(point, *affine_matrix((9, 9), scale=np.array([1.0, 2.0]))))
    assert np.unravel_index(enlarged.argmax(), (9, 9)) == (4, 8)
    leaning = np.asarray(moved(point, *affine_matrix((9, 9), shear=0.5)))
    assert np.unravel_index(leaning.argmax(), (9, 9)) == (5, 6)


@pytest.mark.usefixtures("x64")
def test_the_matrix_is_the_inverse_of_the_motion_in_millimetres():
    angles, scale, shear = np.array([0.3, -0.4, 0.2]), np.array([1.1, 0.9, 1.3]), np.array([0.1, -0.2, 0.3])
    spacing, shift = np.array([3.0, 0.8, 0.7]), np.array([2.0, -1.0, 4.0])
    motion = np.diag(scale * [1, -1, 1])
    lean = np.eye(3)
    lean[np.triu_indices(3, 1)] = shear
    motion = lean @ motion
    for angle, (low, high) in zip(angles, [(1, 2), (0, 2), (0, 1)], strict=True):
        turn = np.eye(3)
        turn[low, low] = turn[high, high] = np.cos(angle)
        turn[high, low], turn[low, high] = np.sin(angle), -np.sin(angle)
        motion = turn @ motion
    matrix, offset = affine_matrix(
        (7, 20, 24),
        rotation=angles,
        scale=scale,
        shear=shear,
        flip=(False, True, False),
        translation=shift,
        spacing=spacing,
    )
    centre = (np.array([7, 20, 24]) - 1) / 2
    place = RNG.normal(size=3)  # in mm about the centre, of the image before
    after = (motion @ place + shift) / spacing + centre
    assert_close(np.asarray(matrix) @ after + np.asarray(offset), place / spacing + centre, 1e-12)


@pytest.mark.usefixtures("x64")
def test_turning_anisotropic_voxels_keeps_lengths_in_millimetres():
    spacing = np.array([3.0, 1.0, 1.0])
    matrix, _ = affine_matrix((9, 30, 30), rotation=np.array([0.5, 0.4, 0.3]), spacing=spacing)
    physical = np.diag(spacing) @ np.asarray(matrix) @ np.diag(1 / spacing)
    assert_close(physical @ physical.T, np.eye(3), 1e-12)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
def test_nearest_keeps_dtype_and_values_of_label_maps(dtype):
    labels = RNG.integers(0, 120, size=(6, 7, 1)).astype(dtype)
    if dtype is np.int32:
        labels += 2**30 + 1  # which float32 cannot hold
    y = moved(labels, *affine_matrix((6, 7), rotation=0.4), method="nearest", mode="nearest")
    assert y.dtype == dtype
    assert set(np.unique(y)) <= set(np.unique(labels))
    filled = np.asarray(sampled(labels, np.full((2, 3), -5.0, np.float32), method="nearest", fill=np.asarray(1, dtype)))
    assert filled.ravel().tolist() == [1, 1, 1]


def test_every_channel_may_have_its_own_fill_and_far_places_show_it():
    x = np.zeros((4, 4, 2), np.float32)
    far = np.array([[-1e30, 1e30, np.inf, 3e9], [0.0, 1.0, 2.0, -np.inf]], np.float32)
    fill = np.array([-1000.0, 7.0], np.float32)
    assert_close(sampled(x, far, fill=fill), np.broadcast_to(fill, (4, 2)), 0.0)
    x[0, 0], x[3, 1] = 5.0, 6.0
    assert_close(sampled(x, far, mode="nearest")[:2, 0], np.array([5.0, 6.0]), 0.0)


def test_nan_reaches_its_neighbours_only_and_a_nan_place_gives_nan():
    x = np.ones((7, 1), np.float32)
    x[3] = np.nan
    y = sampled(x, np.array([[0.0, 1.5, 2.5, 3.0, 3.5, 4.0, 4.5, 6.0, np.nan]], np.float32))
    assert np.isnan(y).ravel().tolist() == [False, False, True, True, True, False, False, False, True]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["constant", "nearest"])
def test_gradients_in_image_matrix_and_places_equal_finite_differences(mode):
    x, matrix, offset = image((5, 6, 4)), np.eye(3) + 0.1 * RNG.normal(size=(3, 3)), RNG.normal(size=3)
    weights = RNG.normal(size=(5, 6, 4, 2))

    def objective(x, matrix, offset):
        return jnp.sum(weights * jnp.sin(affine_warp(x, matrix, offset, mode=mode, fill=0.5)))

    slopes = jax.jit(jax.grad(objective, (0, 1, 2)))(x, matrix, offset)
    run = jax.jit(objective)
    arguments = (x, matrix, offset)
    for i, slope in enumerate(slopes):
        direction = RNG.normal(size=slope.shape)
        above, below = (
            float(run(*(a + s * 1e-7 * direction if i == j else a for j, a in enumerate(arguments)))) for s in (1, -1)
        )
        assert np.isclose(np.vdot(slope, direction), (above - below) / 2e-7, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_second_derivatives_agree_between_modes():
    x, places, v = image((5, 6)), RNG.uniform(-1, 6, size=(2, 4, 3)), RNG.normal(size=(2, 4, 3))
    slope = jax.grad(lambda u: jnp.sum(jnp.sin(warp(x, u))))
    forward, reverse = jax.jit(
        lambda u, v: (jax.jvp(slope, (u,), (v,))[1], jax.grad(lambda u: jnp.vdot(slope(u), v))(u))
    )(places, v)
    assert np.abs(np.asarray(forward)).max() > 0.1
    assert_close(forward, reverse, 1e-12)


def test_angles_of_a_turn_can_be_learned():
    x = image((6, 6)).astype(np.float32)
    slope = jax.jit(jax.grad(lambda a: jnp.sum(affine_warp(x, *affine_matrix((6, 6), rotation=a)) ** 2)))(0.3)
    assert np.isfinite(slope)
    assert abs(float(slope)) > 1e-3


# Elastic deformation.


def test_displacements_have_their_magnitude_everywhere_and_are_smooth(key):
    draw = jax.jit(jax.vmap(partial(elastic_displacement, sizes=(12, 10), smoothness=(2.0, 3.0)), in_axes=(0,)))
    keys = jax.random.split(key, 4000)
    fields = np.asarray(draw(keys, magnitude=jnp.broadcast_to(jnp.array([1.5, 4.0]), (4000, 2))))
    assert fields.shape == (4000, 2, 12, 10)
    spread = fields.std(axis=0)
    # 4000 draws: the deviation is known to about 1.1 %, and 120 places are looked at.
    assert np.abs(spread[0] / 1.5 - 1).max() < 0.06
    assert np.abs(spread[1] / 4.0 - 1).max() < 0.06
    assert np.abs(fields.mean(axis=0)).max() < 0.3
    # Noise under a Gaussian correlates as exp(-r²/4σ²).
    for step, width, along in (
        (2, 2.0, fields[:, 0, :-2] * fields[:, 0, 2:]),
        (3, 3.0, fields[:, 0, :, :-3] * fields[:, 0, :, 3:]),
    ):
        assert np.isclose(along.mean() / 1.5**2, np.exp(-(step**2) / (4 * width**2)), atol=0.03)
    assert abs((fields[:, 0] * fields[:, 1]).mean()) < 0.15


def test_displacements_repeat_with_their_key_and_follow_their_dtype(key):
    draw = partial(elastic_displacement, sizes=(5, 6, 7), magnitude=2.0, smoothness=1.5)
    assert_close(draw(key), draw(key), 0.0)
    assert np.abs(np.asarray(draw(key)) - np.asarray(draw(jax.random.fold_in(key, 1)))).max() > 0.5
    assert draw(key).dtype == jnp.float32
    rough = elastic_displacement(key, (400,), magnitude=1.0, smoothness=0.0)
    assert np.abs(rough).max() <= 3**0.5 + 1e-6
    with jax.enable_x64(True):
        assert elastic_displacement(key, (5, 6), magnitude=2.0, smoothness=1.0).dtype == jnp.float64


@pytest.mark.usefixtures("x64")
def test_elastic_warps_equal_scipy_and_share_a_field_with_labels(key):
    x = image((8, 9))
    field = np.asarray(elastic_displacement(key, (8, 9), magnitude=1.5, smoothness=2.0))
    places = np.indices((8, 9)) + field

    def reference(channel):
        return scipy.ndimage.map_coordinates(channel, places, order=1, mode="nearest")

    assert_close(elastic_warp(x, field, mode="nearest"), each_channel(reference, x), 1e-12)
    labels = (x[..., :1] > 0).astype(np.int32)
    expected = scipy.ndimage.map_coordinates(labels[..., 0], places, order=0, mode="nearest")
    assert_close(elastic_warp(labels, field, method="nearest", mode="nearest")[..., 0], expected, 0.0)


# Everywhere the same.


def test_jit_equals_eager_vmap_equals_a_loop_and_one_shape_compiles_once():
    x = image((4, 5, 6)).astype(np.float32).reshape(4, 5, 6, 2)
    matrices = np.eye(2, dtype=np.float32) + 0.1 * RNG.normal(size=(4, 2, 2)).astype(np.float32)
    traces = []

    @jax.jit
    def run(x, matrices):
        traces.append(x.shape)
        return jax.vmap(affine_warp)(x, matrices)

    found = run(x, matrices)
    run(x + 1, matrices)
    assert len(traces) == 1
    assert_close(found, jnp.stack([affine_warp(a, m) for a, m in zip(x, matrices, strict=True)]), 1e-5)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    shards = jax.device_put((x, matrices), NamedSharding(mesh, PartitionSpec("data")))
    assert_close(run(*shards), found, 1e-6)


def test_half_precision_images_are_placed_in_single_precision():
    x = jnp.asarray(np.arange(600) % 2, jnp.bfloat16).reshape(600, 1)
    y = sampled(x, np.arange(599, dtype=np.float32)[None] + 0.25)
    assert y.dtype == jnp.bfloat16
    assert_close(y[:, 0], np.where(np.arange(599) % 2, 0.75, 0.25), 2**-8)


def test_no_places_give_none():
    assert warp(jnp.zeros((4, 5, 2)), jnp.zeros((2, 0))).shape == (0, 2)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_warped_is_refused():
    x = jnp.zeros((4, 5, 2))
    with pytest.raises(ValueError, match=r"coordinates have shape \(3, 7\) for x with shape \(4, 5, 2\)"):
        warp(x, jnp.zeros((3, 7)))
    with pytest.raises(ValueError, match="an axis without positions cannot be sampled"):
        warp(x[:0], jnp.zeros((2, 7)))
    with pytest.raises(ValueError, match="mode is 'wrap'; expected 'constant' or 'nearest'"):
        warp(x, jnp.zeros((2, 7)), mode="wrap")
    with pytest.raises(ValueError, match="method is 'cubic'; expected 'linear' or 'nearest'"):
        warp(x, jnp.zeros((2, 7)), method="cubic")
    with pytest.raises(TypeError, match="x is int32; linear sampling needs a floating dtype, or use method='nearest'"):
        warp(x.astype(jnp.int32), jnp.zeros((2, 7)))
    with pytest.raises(ValueError, match=r"matrix has shape \(3, 3\) and offset \(\)"):
        affine_warp(x, jnp.eye(3))
    with pytest.raises(ValueError, match=r"displacement has shape \(2, 5, 4\) .* expected \(2, 4, 5\)"):
        elastic_warp(x, jnp.zeros((2, 5, 4)))
    with pytest.raises(ValueError, match=r"sizes is \(4,\); expected two or three axes"):
        affine_matrix((4,))
    with pytest.raises(ValueError, match=r"rotation has shape \(\); 3-D needs three angles"):
        affine_matrix((4, 5, 6), rotation=0.1)
    with pytest.raises(ValueError, match=r"scale has shape \(3,\); expected one number or 2"):
        affine_matrix((4, 5), scale=np.ones(3))
    with pytest.raises(ValueError, match=r"flip is .*; expected one truth value for each of 2 axes"):
        affine_matrix((4, 5), flip=(True,))
    for smoothness in (-1.0, np.nan, (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match=r"smoothness is .*; expected one finite number from 0, or 2"):
            elastic_displacement(jax.random.key(0), (4, 5), magnitude=1.0, smoothness=smoothness)
    with pytest.raises(ValueError, match=r"magnitude has shape \(3,\); expected one number or 2"):
        elastic_displacement(jax.random.key(0), (4, 5), magnitude=np.ones(3), smoothness=1.0)


@pytest.mark.parametrize("fill", [np.nan, -np.inf])
def test_a_fill_that_is_not_finite_stays_outside(fill):
    x = np.ones((3, 4, 1), np.float32)
    assert_close(affine_warp(x, np.eye(2), fill=fill), x, 0.0)
    moved = affine_warp(x, np.eye(2), np.array([1.0, 0.0]), fill=fill)
    assert_close(moved[:2], x[:2], 0.0)
    assert not np.isfinite(moved[2]).any()
