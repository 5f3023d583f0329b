from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fusion_jax.ops.roi_align import multilevel_roi_align, roi_align
from tests.helpers import assert_close

H, W, C, P = 9, 13, 3, 40
"""A map with two different sides, and more boxes than one chunk."""

SCALE = 0.25
SCALES = (1 / 4, 1 / 8, 1 / 16)
LEVEL_SHAPES = ((16, 20, 2), (8, 10, 2), (4, 5, 2))


def slow_bilinear(features, y, x):
    """One sample, by the published rule for borders."""
    height, width = features.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    upper = features[y0, x0] * (1 - (x - x0)) + features[y0, x1] * (x - x0)
    lower = features[y1, x0] * (1 - (x - x0)) + features[y1, x1] * (x - x0)
    return upper * (1 - (y - y0)) + lower * (y - y0)


def slow_roi_align(features, boxes, size, scale, ratio, aligned):
    output = np.zeros((len(boxes), *size, features.shape[2]))
    for p, box in enumerate(boxes):
        x0, y0, x1, y1 = np.asarray(box, np.float64) * scale - (0.5 if aligned else 0.0)
        height, width = (y1 - y0, x1 - x0) if aligned else (max(y1 - y0, 1.0), max(x1 - x0, 1.0))
        for i, j in np.ndindex(*size):
            for k, m in np.ndindex(ratio, ratio):
                y = y0 + (i + (k + 0.5) / ratio) * height / size[0]
                x = x0 + (j + (m + 0.5) / ratio) * width / size[1]
                output[p, i, j] += slow_bilinear(features, y, x) / ratio**2
    return output


def random_boxes(count, rng, low=-12.0, high=60.0):
    """Inside, across the border and outside of a map of `H / SCALE` by `W / SCALE` pixels; some degenerate."""
    corner = rng.uniform(low, high, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (count, 2))], axis=1)
    boxes[0, 2:] = boxes[0, :2]
    boxes[1, 2:] = boxes[1, :2] - 9
    boxes[2] = [0, 0, W / SCALE, H / SCALE]
    return boxes


RNG = np.random.default_rng(0)
FEATURES, BOXES = RNG.normal(size=(H, W, C)), random_boxes(P, RNG)
LEVELS = [RNG.normal(size=shape) for shape in LEVEL_SHAPES]
# Areas on both sides of every limit, and of exactly the limits 112² and 224²; the levels of the rows are in no order.
PYRAMID_BOXES = np.concatenate(
    [np.array([[0.0, 0.0, s, s] for s in (224.0, 111.9, 112.0, 900.0, 223.9, 448.0)]), random_boxes(34, RNG)]
)
pool = jax.jit(partial(roi_align, size=(4, 2), scale=SCALE), static_argnames=("sampling_ratio", "aligned"))
pyramid = jax.jit(partial(multilevel_roi_align, scales=SCALES, size=(2, 3)))


def single(*arrays):
    return tuple(np.asarray(a, np.float32) for a in arrays)


# Against brute force.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("ratio", "aligned"), [(1, True), (2, False), (2, True), (3, False)])
def test_values_equal_brute_force(ratio, aligned):
    found = pool(FEATURES, BOXES, sampling_ratio=ratio, aligned=aligned)
    assert_close(found, slow_roi_align(FEATURES, BOXES, (4, 2), SCALE, ratio, aligned), 1e-13)


@pytest.mark.usefixtures("x64")
@settings(max_examples=8)
@given(st.lists(st.tuples(*[st.integers(-6, 20)] * 4), min_size=P, max_size=P), st.booleans())
def test_values_equal_brute_force_where_samples_meet_features_and_borders(boxes, aligned):
    """Quarters of a feature: samples lie on features, on -1 and on the far limit."""
    boxes = np.array(boxes, np.float64) * 2
    found = pool(FEATURES, boxes, sampling_ratio=1, aligned=aligned)
    assert_close(found, slow_roi_align(FEATURES, boxes, (4, 2), SCALE, 1, aligned), 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("aligned", [False, True])
def test_the_dense_form_behind_the_gradient_equals_the_value(aligned):
    module = import_module("fusion_jax.ops.roi_align")  # the package has a function of that name
    geometry = module._geometry((SCALE,), (4, 2), 2, aligned)
    level, valid = jnp.zeros(P, jnp.int32), jnp.arange(P) % 5 > 0
    for form in (module._dense, module._gathered):
        found = jax.jit(partial(form, geometry))((jnp.asarray(FEATURES),), jnp.asarray(BOXES), level, valid)
        expected = slow_roi_align(FEATURES, BOXES, (4, 2), SCALE, 2, aligned)
        expected[::5] = 0
        assert_close(found, expected, 1e-13)


@pytest.mark.usefixtures("x64")
def test_a_sample_on_the_limit_of_the_border_counts_and_one_beyond_is_zero():
    """Along x, one sample at -1, then just beyond; at the width, then just beyond."""
    features = np.full((4, 4, 1), 2.0)
    read = jax.jit(partial(roi_align, size=1, sampling_ratio=1))
    for x, expected in ((-1.0, 2.0), (-1.0 - 1e-9, 0.0), (4.0, 2.0), (4.0 + 1e-9, 0.0)):
        box = np.array([[x - 1, 0.0, x + 1, 2.0]])
        assert_close(read(features, box), np.full((1, 1, 1, 1), expected), 0.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("aligned", [False, True])
def test_linear_ramps_are_read_exactly(aligned):
    """The mean over a bin of a linear function is its value in the bin's centre."""
    y, x = np.mgrid[:H, :W].astype(float)
    ramp = np.stack([y, x, 2 * y - 3 * x + 1], axis=-1)
    boxes = np.array([[4.0, 6.0, 40.0, 30.0], [10.0, 2.0, 11.0, 33.0], [20.0, 20.0, 30.0, 24.0]])
    found = np.asarray(pool(ramp, boxes, aligned=aligned))
    low, high = boxes[:, :2] * SCALE - 0.5 * aligned, boxes[:, 2:] * SCALE - 0.5 * aligned
    extent = high - low if aligned else np.maximum(high - low, 1)
    centre_y = low[:, 1:] + extent[:, 1:] * (np.arange(4) + 0.5) / 4
    centre_x = low[:, :1] + extent[:, :1] * (np.arange(2) + 0.5) / 2
    assert_close(found[..., 0], np.broadcast_to(centre_y[:, :, None], (3, 4, 2)), 1e-13)
    assert_close(found[..., 1], np.broadcast_to(centre_x[:, None, :], (3, 4, 2)), 1e-13)
    assert_close(found[..., 2], 2 * found[..., 0] - 3 * found[..., 1] + 1, 1e-13)


@pytest.mark.usefixtures("x64")
def test_a_box_narrower_than_a_feature_is_widened_unless_aligned():
    narrow, wide = np.array([[20.0, 8.0, 20.5, 30.0]]), np.array([[20.0, 8.0, 24.0, 30.0]])
    assert_close(pool(FEATURES, narrow), pool(FEATURES, wide), 1e-14)
    assert np.abs(pool(FEATURES, narrow, aligned=True) - pool(FEATURES, wide, aligned=True)).max() > 0.01


@pytest.mark.usefixtures("x64")
def test_a_map_of_one_feature_is_that_feature():
    features = np.array([[[3.0, -1.0]]])
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert_close(roi_align(features, box, size=2), np.broadcast_to(features, (1, 2, 2, 2)), 0.0)


# Gradients.


@pytest.mark.usefixtures("x64")
def test_the_gradient_in_the_features_is_the_transpose_of_the_map():
    values, pullback = jax.vjp(lambda f: pool(f, BOXES), FEATURES)
    cotangent = RNG.normal(size=values.shape)
    (gradient,) = pullback(cotangent)
    other = RNG.normal(size=FEATURES.shape)
    assert_close(np.sum(np.asarray(gradient) * other), np.sum(cotangent * np.asarray(pool(other, BOXES))), 1e-12)
    _, tangent = jax.jvp(lambda f: pool(f, BOXES), (FEATURES,), (other,))
    assert_close(tangent, pool(other, BOXES), 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("aligned", [False, True])
def test_gradients_in_features_and_boxes_equal_finite_differences(aligned):
    boxes = np.array([[5.3, 3.1, 31.7, 22.9], [-9.1, 7.3, 20.2, 41.3], [30.4, 10.2, 63.3, 30.1]])

    def curved(features, boxes):
        return jnp.sin(pool(features, boxes, aligned=aligned))

    check_grads(curved, (FEATURES, boxes), order=1, modes=("fwd", "rev"), rtol=1e-4, atol=1e-5, eps=1e-6)


@pytest.mark.usefixtures("x64")
def test_jvp_of_the_gradient_equals_differences_of_the_gradient():
    boxes = np.array([[5.3, 3.1, 31.7, 22.9], [-9.1, 7.3, 20.2, 41.3]])
    slope = jax.jit(jax.grad(lambda f, b: jnp.sum(jnp.sin(pool(f, b))), argnums=(0, 1)))
    along = RNG.normal(size=FEATURES.shape), RNG.normal(size=boxes.shape)
    _, curvature = jax.jvp(slope, (FEATURES, boxes), along)
    step = 1e-6
    ahead = slope(FEATURES + step * along[0], boxes + step * along[1])
    behind = slope(FEATURES - step * along[0], boxes - step * along[1])
    for found, a, b in zip(curvature, ahead, behind, strict=True):
        assert_close(found, (a - b) / (2 * step), 1e-6)


@pytest.mark.usefixtures("x64")
def test_remat_changes_no_gradient():
    def loss(features, boxes, wrap):
        return jnp.sum(jnp.sin(wrap(pool)(features, boxes)))

    for argnums in (0, 1):
        plain = jax.grad(loss, argnums)(FEATURES, BOXES, lambda f: f)
        assert_close(jax.grad(loss, argnums)(FEATURES, BOXES, jax.checkpoint), plain, 1e-13)


# Padding.


@pytest.mark.parametrize("junk", [0.0, np.nan, np.inf, -1e30])
def test_padded_rows_give_zeros_and_change_no_other_row_and_no_gradient(junk):
    features, boxes = single(FEATURES, BOXES)
    valid = np.arange(P + 7) < P

    def read(features, boxes, valid):
        values = pool(features, boxes, valid=valid)
        return jnp.sum(jnp.sin(values)) + jnp.sum(values), values

    padded = np.concatenate([boxes, np.full((7, 4), junk, np.float32)])
    slope = jax.value_and_grad(read, argnums=(0, 1), has_aux=True)
    (_, expected), (in_features, in_boxes) = slope(features, boxes, valid[:P])
    (_, found), (padded_in_features, padded_in_boxes) = slope(features, padded, valid)
    assert_close(found[:P], expected, 1e-6)
    assert not np.asarray(found[P:]).any()
    assert_close(padded_in_features, in_features, 1e-6)
    assert_close(padded_in_boxes[:P], in_boxes, 1e-6)
    assert not np.asarray(padded_in_boxes[P:]).any()


def test_masked_rows_in_the_middle_equal_rows_left_out():
    features, boxes = single(FEATURES, BOXES)
    valid = np.arange(P) % 3 > 0
    gradient = jax.grad(lambda f, b, v: jnp.sum(jnp.sin(pool(f, b, valid=v))))
    assert_close(gradient(features, boxes, valid), gradient(features, boxes[valid], np.ones(valid.sum(), bool)), 1e-5)


def test_a_broken_box_that_is_valid_spoils_only_its_own_row():
    features, boxes = single(FEATURES, BOXES)
    broken = boxes.copy()
    broken[4] = np.nan
    found, expected = np.asarray(pool(features, broken)), np.asarray(pool(features, boxes))
    others = np.arange(P) != 4
    assert_close(found[others], expected[others], 1e-6)
    assert not found[4].any() or np.isnan(found[4]).all()


def test_no_boxes_give_no_rows_and_no_gradient():
    features, none = single(FEATURES, np.zeros((0, 4)))
    assert pool(features, none).shape == (0, 4, 2, C)
    assert not np.asarray(jax.grad(lambda f: jnp.sum(pool(f, none)))(features)).any()
    levels = single(*LEVELS)
    assert pyramid(levels, none).shape == (0, 2, 3, 2)
    assert not np.asarray(jax.grad(lambda f: jnp.sum(pyramid((f, *levels[1:]), none)))(levels[0])).any()


# Levels.


def expected_level(box):
    """Lin et al. 2017, Eq. 1, limited to the levels 2, 3 and 4."""
    area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
    level = -np.inf if area == 0 else np.floor(4 + np.log2(np.sqrt(area) / 224))
    return int(np.clip(level, 2, 4)) - 2


@pytest.mark.usefixtures("x64")
def test_every_box_reads_the_level_of_its_size():
    chosen = np.array([expected_level(box) for box in PYRAMID_BOXES])
    assert chosen[:6].tolist() == [2, 0, 1, 2, 1, 2]
    assert set(chosen) == {0, 1, 2}
    found = pyramid(LEVELS, PYRAMID_BOXES)
    for row, (box, number) in enumerate(zip(PYRAMID_BOXES, chosen, strict=True)):
        expected = slow_roi_align(LEVELS[number], box[None], (2, 3), SCALES[number], 2, False)
        assert_close(found[row], expected[0], 1e-12)


@pytest.mark.usefixtures("x64")
def test_gradients_in_the_levels_are_those_of_each_level_alone():
    chosen = np.array([expected_level(box) for box in PYRAMID_BOXES])
    valid = np.arange(P) % 7 > 0
    weight = RNG.normal(size=(P, 2, 3, 2))
    found = jax.jit(jax.grad(lambda levels: jnp.sum(weight * pyramid(levels, PYRAMID_BOXES, valid=valid))))(LEVELS)
    for number, level in enumerate(LEVELS):
        member = valid & (chosen == number)
        alone = partial(roi_align, boxes=PYRAMID_BOXES, size=(2, 3), scale=SCALES[number], valid=member)
        expected = jax.jit(jax.grad(lambda f, alone=alone: jnp.sum(weight * alone(f))))(level)
        assert np.abs(expected).max() > 0
        assert_close(found[number], expected, 1e-12)
    slope = jax.jit(jax.grad(lambda levels, boxes: jnp.sum(jnp.sin(pyramid(levels, boxes))), argnums=(0, 1)))
    boxes = PYRAMID_BOXES[3:8] + 0.123
    assert_close(slope(LEVELS, boxes)[1][:, 0], numerical_slope(boxes), 1e-6)


def numerical_slope(boxes, step=1e-6):
    """Central differences in x0 of every box."""
    move = step * np.eye(4)[0]
    ahead, behind = (jnp.sum(jnp.sin(pyramid(LEVELS, boxes + m)), axis=(1, 2, 3)) for m in (move, -move))
    return (ahead - behind) / (2 * step)


def test_one_level_is_plain_roi_align():
    features, boxes = single(FEATURES, BOXES)
    found = jax.jit(partial(multilevel_roi_align, scales=[SCALE], size=(4, 2), aligned=True))([features], boxes)
    assert_close(found, pool(features, boxes, aligned=True), 1e-6)


def test_the_canonical_box_moves_the_limits():
    levels = [np.full((8, 8, 1), float(k), np.float32) for k in range(3)]
    boxes = np.array([[0.0, 0.0, s, s] for s in (15.0, 16.0, 31.0, 32.0)], np.float32)
    read = jax.jit(
        partial(multilevel_roi_align, levels, boxes, scales=SCALES, size=1),
        static_argnames=("canonical_size", "canonical_level"),
    )
    assert read(canonical_size=32.0, canonical_level=4).ravel().tolist() == [0.0, 1.0, 1.0, 2.0]
    assert read(canonical_size=16.0, canonical_level=3).ravel().tolist() == [0.0, 1.0, 1.0, 2.0]
    assert not read().any()


# Transformations, dtypes, devices.


def test_vmap_over_images_equals_a_loop():
    rng = np.random.default_rng(1)
    features, boxes = single(rng.normal(size=(3, H, W, C)), [random_boxes(P, rng) for _ in range(3)])
    levels = [rng.normal(size=(3, *shape)).astype(np.float32) for shape in LEVEL_SHAPES]
    valid = rng.random((3, P)) < 0.7

    def loss(features, levels, boxes, valid):
        one, many = pool(features, boxes, valid=valid), pyramid(levels, boxes * 4, valid=valid)
        return jnp.sum(jnp.sin(one)) + jnp.sum(jnp.sin(many)), (one, many)

    slope = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1), has_aux=True)))(features, levels, boxes, valid)
    for image in range(3):
        one = slope(features[image], [level[image] for level in levels], boxes[image], valid[image])
        assert_close(jax.tree.map(lambda a, image=image: a[image], together), one, 1e-5)


def test_jit_equals_eager():
    features, boxes = single(FEATURES, BOXES)
    assert_close(roi_align(features, boxes, size=(4, 2), scale=SCALE), pool(features, boxes), 1e-5)
    levels, many = single(*LEVELS), single(PYRAMID_BOXES)[0]
    eager = multilevel_roi_align(levels, many, scales=SCALES, size=(2, 3))
    assert_close(eager, pyramid(levels, many), 1e-5)


def test_the_output_follows_the_dtype_of_the_features():
    features, boxes = single(FEATURES, BOXES)
    half = jnp.asarray(features, jnp.bfloat16)
    found = pool(half, boxes)
    assert found.dtype == jnp.bfloat16
    assert_close(found, pool(np.asarray(half, np.float32), boxes), 0.004)
    gradient = jax.grad(lambda f: jnp.sum(pool(f, boxes).astype(jnp.float32)))(half)
    assert gradient.dtype == jnp.bfloat16
    assert_close(gradient, jax.grad(lambda f: jnp.sum(pool(f, boxes)))(features), 0.004)
    with jax.enable_x64(True):
        assert pool(FEATURES, BOXES).dtype == np.float64
        assert pool(features, BOXES).dtype == np.float32


def test_one_shape_is_traced_once():
    traces = []

    @jax.jit
    def counted(features, boxes):
        traces.append(1)
        return roi_align(features, boxes, size=(4, 2))

    features, boxes = single(FEATURES, BOXES)
    for shift in range(3):
        counted(features, boxes + np.float32(shift))
    assert len(traces) == 1


def test_images_sharded_over_devices_give_the_same():
    features, boxes = single(np.stack([FEATURES, FEATURES[::-1]]), np.stack([BOXES, BOXES[::-1]]))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shards = jax.device_put((features, boxes), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    slope = jax.jit(jax.vmap(jax.grad(lambda f, b: jnp.sum(jnp.sin(pool(f, b))))))
    assert_close(slope(*shards), slope(features, boxes), 1e-6)


def test_memory_of_the_gradient_does_not_hold_an_intermediate_of_all_boxes():
    """Where only the features are trained, the chunks' intermediates are gone before the next one."""
    features, boxes = np.zeros((64, 64, 32), np.float32), np.zeros((512, 4), np.float32)
    cotangent = np.zeros((512, 7, 7, 32), np.float32)
    lowered = jax.jit(lambda f, b, g: jax.vjp(lambda f: roi_align(f, b), f)[1](g)).lower(features, boxes, cotangent)
    intermediate = 512 * 7 * 64 * 32 * 4
    assert lowered.compile().memory_analysis().temp_size_in_bytes < intermediate / 3


# Errors.


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_say_what_is_wrong():
    features, boxes = single(FEATURES, BOXES)
    with pytest.raises(ValueError, match=r"scale is \(0\.0,\); expected features per pixel"):
        roi_align(features, boxes, scale=0.0)
    with pytest.raises(ValueError, match="size is 0"):
        roi_align(features, boxes, size=0)
    with pytest.raises(ValueError, match="sampling_ratio is 0"):
        roi_align(features, boxes, sampling_ratio=0)
    with pytest.raises(ValueError, match="needs at least one row and one column"):
        roi_align(features[:0], boxes)
    with pytest.raises(ValueError, match="there are 1 levels and 2 scales"):
        multilevel_roi_align([features], boxes, scales=(1 / 4, 1 / 8))
    with pytest.raises(ValueError, match="there are 0 levels"):
        multilevel_roi_align([], boxes, scales=())
    with pytest.raises(ValueError, match="half of the one before"):
        multilevel_roi_align([features, features], boxes, scales=(1 / 4, 1 / 16))
    with pytest.raises(ValueError, match="one number of channels and one dtype"):
        multilevel_roi_align([features, features[..., :1]], boxes, scales=(1 / 4, 1 / 8))


def test_padded_boxes_give_zeros_whatever_the_features_hold():
    features = np.ones((6, 6, 2), np.float32)
    features[0, 0] = np.nan
    boxes = np.array([[2.0, 2.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    pooled = roi_align(features, boxes, size=2, valid=np.array([True, False]))
    assert np.isfinite(pooled[0]).all()
    assert not np.any(pooled[1])
