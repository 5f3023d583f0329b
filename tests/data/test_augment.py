from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusion_jax.arrays import Batch
from fusion_jax.data import augment
from fusion_jax.data.augment import (
    AffineJitter,
    AllOf,
    Blur,
    Contrast,
    Elastic,
    Flip,
    GaussianBlur,
    Noise,
    OneOf,
    QuarterTurns,
    Recipe,
    Rescale,
    Rotate,
    Sample,
    Scale,
    Translate,
    augment_batch,
    augment_sample,
    augmented,
    augmented_predictions,
    breast_mip_recipe,
    breast_mip_test_time_recipe,
    case_keys,
    detection_recipe,
    liver_ct_recipe,
    petct_recipe,
    petct_slice_recipe,
    swap_flag,
)
from fusion_jax.data.augment.transforms import AffineTransform, ValueTransform, drawn, draws, leaves
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
SIZES = (24, 20)
CASES = jnp.array([3, 8, 5, 2])
EVERYTHING = Recipe(
    (
        Flip(),
        OneOf((Blur(), Contrast((0.8, 1.2))), weights=(1.0, 3.0)),
        AllOf((Rotate(20.0), Elastic(alpha=8.0, sigma=2.0)), p=0.7),
        Noise((0.0, 0.1), p=0.5),
    ),
    fill={"pet": -1.0},
)
# Compilation is nearly all the time of these tests; small programs that run once are not worth optimising.
quickly = partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
shown, shown_batch = quickly(augment_sample), quickly(augment_batch)


def image(sizes=SIZES, channels=1, dtype=np.float32):
    return RNG.normal(size=(*sizes, channels)).astype(dtype)


def shown_image(recipe, x, key, **fields):
    return np.asarray(shown(recipe, Sample({"x": x}, **fields), key).images["x"])


def batch(rows=4, sizes=SIZES):
    return Sample(
        {"pet": image((rows, *sizes)), "ct": image((rows, *sizes), 2)},
        masks={"tumour": (image((rows, *sizes)) > 0).astype(np.uint8)},
        boxes=np.tile(np.array([[2.0, 3.0, 9.0, 12.0], [0.0, 0.0, 0.0, 0.0]], np.float32), (rows, 1, 1)),
        box_valid=np.tile([True, False], (rows, 1)),
    )


def rows_of(samples, rows):
    return jax.tree.map(lambda a: np.asarray(a)[np.asarray(rows)], samples)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Places, against SciPy


def test_a_rotation_equals_scipy(key):
    x = image()
    expected = scipy.ndimage.rotate(x[..., 0], 17.0, axes=(1, 0), reshape=False, order=1, mode="grid-constant")
    assert_close(shown_image(Recipe((Rotate((17.0, 17.0)),)), x, key)[..., 0], expected)


def test_a_zoom_and_a_shift_in_millimetres_equal_scipy(key):
    x, factor, spacing = image(), 1.25, np.array([2.0, 0.5], np.float32)
    recipe = Recipe((Scale((factor, factor)), Translate((3.0, 3.0))), border="edge")
    centre = (np.array(SIZES) - 1) / 2
    offset = centre - (centre + 3.0 / spacing) / factor
    expected = scipy.ndimage.affine_transform(x[..., 0], np.eye(2) / factor, offset, order=1, mode="nearest")
    assert_close(shown_image(recipe, x, key, spacing=spacing)[..., 0], expected)


def test_all_transforms_of_place_are_one_interpolation(key):
    """An image of its own coordinates says where every value came from."""
    ramps = np.moveaxis(np.indices(SIZES), 0, -1).astype(np.float32)
    x = np.concatenate([ramps, image()], axis=-1)
    chain = (Rotate(30.0), Flip(p=1.0), Elastic(alpha=30.0, sigma=2.0), Scale((0.7, 1.3)), AffineJitter(2.0))
    found = shown_image(Recipe(chain, border="edge"), x, key)
    expected = scipy.ndimage.map_coordinates(
        x[..., 2], np.moveaxis(found[..., :2], -1, 0).astype(np.float64), order=1, mode="nearest"
    )
    assert np.abs(found[..., :2] - ramps).mean() > 2
    assert_close(found[..., 2], expected, 2e-5)


def test_transforms_of_place_act_in_their_order(key):
    x, flip, shift = image(), Flip(1, p=1.0), Translate((3.0, 3.0))
    moved = np.zeros_like(x)
    moved[3:, 3:] = x[:-3, :-3]
    np.testing.assert_array_equal(shown_image(Recipe((shift, flip)), x, key), moved[:, ::-1])
    moved = np.zeros_like(x)
    moved[3:, 3:] = x[:, ::-1][:-3, :-3]
    np.testing.assert_array_equal(shown_image(Recipe((flip, shift)), x, key), moved)


def test_the_elastic_field_has_the_deviation_of_simards_definition(key):
    alpha, sigma, sizes = 40.0, 2.0, (96, 96)
    noise = RNG.uniform(-1, 1, size=(20, 96, 96))
    simard = np.stack([scipy.ndimage.gaussian_filter(field, sigma) * alpha for field in noise])[:, 10:-10, 10:-10]
    drawn = partial(
        Elastic(alpha, sigma).displacement, sizes=sizes, applied=jnp.array(True), dtype=np.dtype(np.float32)
    )
    fields = jax.jit(jax.vmap(drawn))
    field = fields(jax.random.split(key, 10))
    # 20 fields of about 60 independent patches each: 2 % is five standard errors.
    assert field.std() == pytest.approx(simard.std(), rel=0.02)
    assert Elastic(alpha, sigma).deviation(2) == pytest.approx(simard.std(), rel=0.02)
    assert Elastic(alpha, sigma).deviation(2) == pytest.approx(alpha / (sigma * 2 * np.sqrt(3 * np.pi)), rel=1e-3)


@pytest.mark.parametrize("sizes", [SIZES, (18, 24, 20)])
def test_jittered_corners_move_by_at_most_the_limit_and_as_far(sizes, key):
    axes, limit, third = len(sizes), 1.5, min(sizes) // 3
    affine = jax.jit(jax.vmap(lambda k: AffineJitter(limit).affine(k, sizes, jnp.ones(axes))))
    matrices, offsets = (np.asarray(a, np.float64) for a in affine(jax.random.split(key, 500)))
    signs = np.array([[1] * (axes - i) + [-1] * i for i in range(axes + 1)])
    corners = (np.array(sizes) - 1) / 2 + third * signs
    moved = np.linalg.solve(matrices[:, None], (corners[None] - offsets[:, None])[..., None])[..., 0]
    shift = moved - corners
    assert np.abs(shift).max() < limit + 1e-4
    # Uniform: the standard deviation is the limit over root three.
    np.testing.assert_allclose(shift.std(axis=0), limit / np.sqrt(3), rtol=0.1)
    assert np.abs(np.corrcoef(shift.reshape(500, -1).T) - np.eye(axes * (axes + 1))).max() < 0.2


# Places, exactly


@pytest.mark.parametrize(
    "transforms",
    [
        (Flip(p=1.0), Flip(p=1.0)),
        (Flip(0, p=1.0), Rotate((0.0, 0.0)), Flip(0, p=1.0)),
        (Elastic(0.0, 2.0), Scale((1.0, 1.0)), Translate((0.0, 0.0)), AffineJitter(0.0)),
        (
            *(Elastic(9.0, 2.0, p=0.0), Rotate(9.0, p=0.0), AffineJitter(1.0, p=0.0), GaussianBlur((1.0, 2.0), p=0.0)),
            AllOf((Rotate(20.0), Noise((1.0, 1.0))), p=0.0),
            OneOf((Blur(), Rescale((0.5, 0.6))), p=0.0),
        ),
    ],
)
def test_what_does_nothing_changes_no_bit(transforms, key):
    x = image()
    np.testing.assert_array_equal(shown_image(Recipe(transforms, fill=9.0), x, key), x)


@pytest.mark.parametrize("sizes", [(20, 20), (4, 20, 20)])
def test_quarter_turns_are_exact_and_four_are_none(sizes, key):
    x = image(sizes)
    plane = (-3, -2)
    turned = np.stack([shown_image(Recipe((QuarterTurns(p=1.0),)), x, jax.random.fold_in(key, i)) for i in range(16)])
    kinds = [next(k for k in (1, 2, 3) if np.array_equal(y, np.rot90(x, k, plane))) for y in turned]
    assert set(kinds) == {1, 2, 3}

    one = Recipe((QuarterTurns(p=1.0),))
    quarter = jax.random.fold_in(key, kinds.index(1))
    y = x
    for _ in range(4):
        y = shown_image(one, y, quarter)
    np.testing.assert_array_equal(y, x)


def test_a_ball_in_millimetres_is_the_same_from_every_side(key):
    spacing = np.array([3.0, 1.0, 1.5], np.float32)
    sizes = (12, 34, 24)
    places = (np.indices(sizes) - (np.reshape(sizes, (3, 1, 1, 1)) - 1) / 2) * spacing[:, None, None, None]
    ball = np.clip(3.0 - np.sqrt(np.square(places).sum(axis=0)) / 4, 0, 1)[..., None].astype(np.float32)
    recipe = Recipe((Rotate((70.0, 70.0), axis=0), Rotate((-50.0, 50.0), axis=1), Rotate(35.0, axis=2)))
    turned = shown_image(recipe, ball, key, spacing=spacing)
    assert ball.mean() > 0.05
    assert np.abs(turned - ball).mean() < 0.02 * ball.mean() + 0.004
    # The same turn without the spacing shears it.
    sheared = shown_image(recipe, ball, key, spacing=np.ones(3, np.float32))
    assert np.abs(sheared - ball).mean() > 5 * np.abs(turned - ball).mean()


# Values


def test_a_blur_equals_scipy(key):
    x = image(channels=2)
    expected = np.stack([scipy.ndimage.uniform_filter(x[..., c], 3, mode="mirror") for c in range(2)], axis=-1)
    assert_close(shown_image(Recipe((Blur((3,)),)), x, key), expected)


@pytest.mark.slow
def test_a_blur_draws_each_of_its_sizes(key):
    x = image()
    wanted = {size: scipy.ndimage.uniform_filter(x[..., 0], size, mode="mirror") for size in (1, 5)}
    found = [shown_image(Recipe((Blur((1, 5)),)), x, jax.random.fold_in(key, i))[..., 0] for i in range(10)]
    sizes = [min(wanted, key=lambda size: np.abs(wanted[size] - y).max()) for y in found]
    assert set(sizes) == {1, 5}
    for size, y in zip(sizes, found, strict=True):
        assert_close(y, wanted[size])


def test_a_gaussian_blur_of_any_width_of_its_range_equals_scipy(key):
    x, blur, keys = image((11, 12, 10)), GaussianBlur((0.3, 2.2)), jax.random.split(key, 6)
    found = jax.jit(jax.vmap(blur.values, in_axes=(0, None)))(keys, jnp.asarray(x))
    widths = [float(drawn(k, blur.sigma, jnp.asarray(x))) for k in keys]
    assert max(widths) - min(widths) > 0.8
    for width, y in zip(widths, found, strict=True):
        assert_close(y[..., 0], scipy.ndimage.gaussian_filter(x[..., 0], width, mode="mirror"))


def test_another_resolution_equals_resizing_there_and_back(key):
    x, rescale, keys = image(), Rescale((0.5, 1.3)), jax.random.split(key, 8)
    found = jax.jit(jax.vmap(rescale.values, in_axes=(0, None)))(keys, jnp.asarray(x))
    factors = [drawn(k, rescale.factors, jnp.asarray(x)) for k in keys]
    assert min(factors) < 0.7 < 1.1 < max(factors)

    def resized(y, sizes):
        factors = np.array(sizes) / y.shape
        return scipy.ndimage.zoom(y, factors, order=1, mode="nearest", grid_mode=True)

    for factor, y in zip(factors, found, strict=True):
        between = [int(size * np.asarray(factor)) for size in SIZES]
        assert_close(y[..., 0], resized(resized(x[..., 0], between), SIZES))


def test_contrast_is_about_its_pivot(key):
    x = image(channels=2)
    mean = x.mean(axis=(0, 1))
    assert_close(shown_image(Recipe((Contrast((1.5, 1.5)),)), x, key), mean + 1.5 * (x - mean))
    about_zero = Recipe((Contrast((1.5, 1.5), about=0.0, clip=(-1.0, 1.0)),))
    assert_close(shown_image(about_zero, x, key), np.clip(1.5 * x, -1, 1))


@pytest.mark.slow
def test_noise_has_the_drawn_deviation(key):
    x = np.zeros((64, 64, 1), np.float32)
    assert shown_image(Recipe((Noise((2.0, 2.0)),)), x, key).std() == pytest.approx(2.0, rel=0.05)


@pytest.mark.slow
def test_values_change_after_the_interpolation_in_their_order(key):
    x = image()
    turn, stretch, clip = Rotate((30.0, 30.0)), Contrast((2.0, 2.0), 0.0), Contrast((1.0, 1.0), 0.0, (-0.5, 0.5))
    turned = shown_image(Recipe((turn,), fill=5.0), x, key)
    assert_close(shown_image(Recipe((stretch, turn, clip), fill=5.0), x, key), np.clip(2 * turned, -0.5, 0.5))
    assert_close(shown_image(Recipe((clip, stretch, turn), fill=5.0), x, key), 2 * np.clip(turned, -0.5, 0.5))


# Boxes


def rectangles(count, size, rng):
    corners = rng.integers(6, size - 24, size=(count, 2))
    extents = rng.integers(8, 18, size=(count, 2))
    boxes = np.concatenate([corners, corners + extents], axis=1).astype(np.float32)
    masks = np.zeros((count, size, size, 1), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = 1
    return boxes[:, None], masks


def box_of(mask):
    rows, columns = np.nonzero(mask[..., 0])
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if rows.size else np.zeros(4)


@pytest.mark.parametrize(
    ("transforms", "tolerance"),
    [
        pytest.param((Flip(0), Flip(1)), 0.0, marks=pytest.mark.slow),
        ((Flip(0), Flip(1), QuarterTurns()), 0.0),
        pytest.param((Flip(0), Scale((0.8, 1.3)), Translate(12.0)), 0.51, marks=pytest.mark.slow),
        # The tip of a turned rectangle is thinner than a pixel.
        ((Flip(1), Rotate(45.0), Scale((0.8, 1.2)), Translate(8.0)), 1.3),
        ((Rotate(10.0), Elastic(alpha=25.0, sigma=4.0), AffineJitter(3.0)), 1.3),
    ],
)
def test_boxes_stay_around_their_masks(transforms, tolerance, key):
    count, size = 200, 48
    boxes, masks = rectangles(count, size, np.random.default_rng(1))
    samples = Sample({"x": masks.astype(np.float32)}, masks={"m": masks}, boxes=boxes)
    found = shown_batch(Recipe(transforms), samples, case_keys(key, 0, jnp.arange(count)))
    expected = np.stack([box_of(mask) for mask in np.asarray(found.masks["m"])])
    seen = expected[:, 2] > 0
    assert seen.mean() > 0.9
    assert np.asarray(found.box_valid)[seen, 0].all()
    assert np.abs(np.asarray(found.boxes)[seen, 0] - expected[seen]).max() <= tolerance
    assert np.abs(expected - boxes[:, 0]).max() > 3


def test_a_box_outside_the_image_is_zeros_and_not_valid(key):
    boxes = np.array([[1.0, 2.0, 6.0, 9.0], [12.0, 13.0, 16.0, 17.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    sample = Sample({"x": image()}, boxes=boxes, box_valid=np.array([True, True, False]))
    found = shown(Recipe((Translate((-9.0, -9.0)),)), sample, key)
    assert found.boxes.tolist() == [[0, 0, 0, 0], [3, 4, 7, 8], [0, 0, 0, 0]]
    assert found.box_valid.tolist() == [False, True, False]


# Sources, masks and what is absent


def test_sources_and_masks_share_what_moves_and_not_what_noise_is_added(key):
    x = image()
    sample = Sample({"pet": x, "ct": x}, masks={"body": (x > 0).astype(np.uint8)})
    found = shown(Recipe((Rotate(40.0), Elastic(30.0, 2.0), Flip())), sample, key)
    np.testing.assert_array_equal(found.images["pet"], found.images["ct"])
    assert np.mean((found.images["pet"] > 0.3) <= found.masks["body"].astype(bool)) > 0.93

    noisy = shown(Recipe((Flip(p=0.0), Noise((1.0, 1.0)))), sample, key)
    correlation = np.corrcoef((noisy.images["pet"] - x).ravel(), (noisy.images["ct"] - x).ravel())[0, 1]
    assert abs(correlation) < 0.2


def test_a_group_that_moves_is_chosen_once_for_all_sources(key):
    recipe = Recipe((OneOf((Flip(p=1.0), Contrast((3.0, 3.0), 0.0))),))
    x = image()
    outcomes = set()
    for i in range(8):
        found = shown(recipe, Sample({"pet": x, "ct": x}), jax.random.fold_in(key, i))
        np.testing.assert_array_equal(found.images["pet"], found.images["ct"])
        outcomes.add(bool(found.mirrored[1]))
    assert outcomes == {True, False}


@pytest.mark.slow
def test_draws_of_a_source_do_not_depend_on_the_others(key):
    x, recipe = image(), Recipe((Flip(), Noise((0.5, 1.0)), Contrast((0.5, 2.0))))
    together = shown(recipe, Sample({"pet": x, "ct": image()}), key)
    np.testing.assert_array_equal(together.images["pet"], shown(recipe, Sample({"pet": x}), key).images["pet"])


def test_every_source_has_its_own_fill(key):
    x = np.zeros((*SIZES, 1), np.float32)
    recipe = Recipe((Translate((30.0, 30.0)),), fill={"ct": -1000})
    found = shown(recipe, Sample({"pet": x, "ct": x}, masks={"m": np.ones((*SIZES, 1), bool)}), key)
    assert (found.images["ct"] == -1000).all()
    assert (found.images["pet"] == 0).all()
    assert not found.masks["m"].any()


def test_absent_sources_and_padded_rows_stay_zeros(key):
    recipe = Recipe((Translate((3.0, 3.0)), Flip(p=1.0), Noise((1.0, 1.0))), fill=-1000.0)
    zeros = np.zeros((3, *SIZES, 1), np.float32)
    samples = Sample(
        {"pet": zeros, "ct": zeros},
        boxes=np.zeros((3, 1, 4), np.float32),
        box_valid=np.zeros((3, 1), bool),
        present={"pet": np.array([True, False, False]), "clinical": np.array([True, True, False])},
    )
    found = shown_batch(recipe, samples, case_keys(key, 0, jnp.array([4, 9, -1])), np.array([True, True, False]))
    assert [bool(found.images[name][i].any()) for name in ("pet", "ct") for i in range(3)] == [
        *(True, False, False),
        *(True, True, False),
    ]
    assert not found.boxes.any()
    assert found.mirrored.tolist() == [[False, True], [False, True], [False, False]]


def test_dtypes_and_shapes_stay(key):
    sample = Sample(
        {"half": jnp.asarray(image(channels=2), jnp.bfloat16), "single": image()},
        masks={"bytes": (image() > 0).astype(np.uint8), "flags": image() > 0, "codes": np.full((*SIZES, 3), 70_000)},
    )
    recipe = Recipe((Rotate(20.0), Blur(), Contrast((1.5, 1.5))))
    found = shown(recipe, sample, key)
    kinds = [jax.tree.map(lambda a: (a.shape, jnp.asarray(a).dtype), (s.images, s.masks)) for s in (sample, found)]
    assert kinds[0] == kinds[1]
    assert set(np.unique(found.masks["codes"])) == {0, 70_000}
    wide = shown(recipe, sample._replace(images={"half": sample.images["half"].astype(jnp.float32)}), key)
    assert_close(found.images["half"], wide.images["half"], 0.02)


def test_the_flag_for_the_side_follows_the_flip(key):
    keys = case_keys(key, 0, jnp.arange(16))
    x = np.zeros((16, *SIZES, 1), np.float32)
    x[:, :, 0] = 1
    found = shown_batch(detection_recipe(), Sample({"x": x}), keys)
    left = np.asarray(found.images["x"])[:, 0, 0, 0] == 1
    assert {True, False} == set(left.tolist())
    flag = np.stack([np.full(16, 7.0), np.full(16, 1.5)], axis=1)
    swapped = swap_flag(flag, found.mirrored[:, -1], -1, levels=(1.5, -0.5))
    np.testing.assert_array_equal(swapped[:, 1], np.where(left, 1.5, -0.5))
    np.testing.assert_array_equal(swapped[:, 0], 7.0)
    with pytest.raises(ValueError, match="column is 2; values have 2 columns"):
        swap_flag(flag, found.mirrored[:, -1], 2)


# Determinism


def test_a_case_comes_out_the_same_in_any_batch(key):
    samples = batch()
    found = shown_batch(EVERYTHING, samples, case_keys(key, 1, CASES))
    order = [2, 0, 3, 1]
    shuffled = shown_batch(EVERYTHING, rows_of(samples, order), case_keys(key, 1, CASES[np.array(order)]))
    assert_same(shuffled, rows_of(found, order))
    # Beside other cases, with padding.
    others = jax.tree.map(lambda a, b: np.concatenate([a[1:2], b[:3]]), samples, batch())
    beside = shown_batch(EVERYTHING, others, case_keys(key, 1, jnp.array([8, 11, -1, -1])))
    assert_same(rows_of(beside, [0]), rows_of(found, [1]))


def test_epochs_and_cases_differ(key):
    one = rows_of(batch(), [0] * 4)
    found = [shown_batch(EVERYTHING, one, case_keys(key, epoch, CASES)).images["pet"] for epoch in (0, 1)]
    assert len({np.asarray(x).tobytes() for epoch in found for x in epoch}) == 8


@pytest.mark.slow
def test_a_batch_equals_its_cases(key):
    samples, keys = batch(), case_keys(key, 0, CASES)
    found = shown_batch(EVERYTHING, samples, keys)
    for i in range(4):
        alone = shown(EVERYTHING, rows_of(samples, i), keys[i])
        expected = rows_of(found, i)
        assert_close((alone.images, alone.boxes), (expected.images, expected.boxes), 5e-6)
        assert_same(
            (alone.masks, alone.box_valid, alone.mirrored), (expected.masks, expected.box_valid, expected.mirrored)
        )


@pytest.mark.slow  # every operation is a program of its own
def test_jit_equals_eager(key):
    sample = rows_of(batch(), 0)
    recipe = Recipe((Flip(), Rotate((20.0, 20.0)), Contrast((0.8, 1.2))))
    eager, compiled = augment_sample(recipe, sample, key), shown(recipe, sample, key)
    assert_close((eager.images, eager.boxes), (compiled.images, compiled.boxes), 5e-6)
    assert_same(eager.masks, compiled.masks)


def test_batches_share_one_program(key):
    run = jax.jit(lambda *arguments: augment_batch(*arguments), static_argnums=0)
    for epoch in range(3):
        # A recipe written anew is the same recipe.
        recipe = Recipe((Flip(), Contrast((0.8, 1.2))), fill={"pet": -1})
        run(recipe, Sample({"pet": image((4, *SIZES))}), case_keys(key, epoch, CASES + epoch))
    assert run._cache_size() == 1


def test_a_batch_over_two_devices_equals_one(key):
    samples, keys = batch()._replace(images={"ct": image((4, *SIZES))}), case_keys(key, 0, CASES)
    recipe = Recipe((Rotate(20.0), Noise((0.0, 0.1))))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    over = NamedSharding(mesh, PartitionSpec("data"))
    sharded = shown_batch(recipe, jax.device_put(samples, over), jax.device_put(keys, over))
    assert len(sharded.images["ct"].sharding.device_set) == 2
    one = shown_batch(recipe, samples, keys)
    assert_close((sharded.images, sharded.boxes), (one.images, one.boxes), 1e-6)
    assert_same((sharded.masks, sharded.box_valid), (one.masks, one.box_valid))


def test_gradients_flow_to_the_images(key):
    recipe = Recipe(
        (Rotate(20.0), Elastic(20.0, 2.0), Blur(), Rescale((0.8, 1.2)), Contrast((0.5, 2.0)), Noise((0.1, 1.0)))
    )
    x, v, w = image(), image(), image()

    @jax.jit
    @jax.value_and_grad
    def weighted(x):
        return jnp.sum(w * augment_sample(recipe, Sample({"x": x}), key).images["x"])

    # Every transform is affine in the values, so that a difference is a derivative.
    (before, slope), (after, _) = weighted(x), weighted(x + v)
    assert np.sum(np.asarray(slope, np.float64) * v) == pytest.approx(float(after - before), rel=1e-3)


# Probabilities


def applied_in(recipe, count, key):
    def one(key):
        case = draws(recipe.transforms, key)
        return jnp.stack([now for _, _, now in leaves(recipe.transforms, case, case)])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, count)))


def test_the_breast_recipe_applies_its_transforms_as_often_as_published(key):
    # Five standard errors of a share of one half over 4,000 keys are 0.04.
    flip, blur, contrast, jitter, elastic, rescale, rotate = applied_in(breast_mip_recipe(), 4000, key).T
    for share in (flip, blur, contrast, jitter, rescale, rotate):
        assert share.mean() == pytest.approx(0.5, abs=0.04)
    assert (blur ^ contrast).all()
    np.testing.assert_array_equal(jitter, elastic)
    together = np.corrcoef(np.stack([flip, blur, jitter, rescale, rotate]))
    assert np.abs(together - np.eye(5)).max() < 0.08


def test_groups_multiply_probabilities_and_follow_weights(key):
    recipe = Recipe(
        (
            AllOf((Flip(p=0.5), OneOf((Blur(), Noise((0.0, 1.0), p=0.5)), weights=(3.0, 1.0))), p=0.8),
            OneOf((Rotate(1.0), Rotate(2.0), Rotate(3.0)), weights=(0.0, 1.0, 1.0), p=0.6),
        )
    )
    shares = applied_in(recipe, 4000, key).mean(axis=0)
    assert shares == pytest.approx([0.4, 0.6, 0.1, 0.0, 0.3, 0.3], abs=0.04)
    assert shares[3] == 0


def test_four_orientations_are_equally_likely(key):
    x = np.zeros((4000, 2, 2, 1), np.float32)
    x[:, 0, 0] = 1
    recipe = Recipe((QuarterTurns(p=0.75),))
    found = shown_batch(recipe, Sample({"x": x}), case_keys(key, 0, jnp.arange(4000))).images["x"]
    assert np.asarray(found).reshape(4000, 4).mean(axis=0) == pytest.approx([0.25] * 4, abs=0.035)


@pytest.mark.slow
def test_other_transforms_may_change_without_changing_a_draw(key):
    x = image()
    plain = shown_image(Recipe((Flip(p=0.0), Noise((1.0, 1.0)))), x, key)
    other = shown_image(Recipe((Contrast((1.0, 1.0), 0.0), Noise((1.0, 1.0)), Flip(p=0.0))), x, key)
    np.testing.assert_array_equal(plain, other)


# Presets


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        (breast_mip_recipe(size=24), (24, 24)),
        pytest.param(breast_mip_test_time_recipe(), SIZES, marks=pytest.mark.slow),
        (detection_recipe(), SIZES),
        pytest.param(liver_ct_recipe(), SIZES, marks=pytest.mark.slow),
        pytest.param(petct_recipe(), (6, *SIZES), marks=pytest.mark.slow),
        pytest.param(petct_slice_recipe(), SIZES, marks=pytest.mark.slow),
    ],
)
def test_presets_keep_most_of_an_image_and_differ_from_case_to_case(recipe, sizes, key):
    places = np.indices(sizes) - (np.reshape(sizes, (-1, *(1,) * len(sizes))) - 1) / 2
    blob = np.exp(-np.square(places / np.reshape(sizes, (-1, *(1,) * len(sizes))) * 5).sum(axis=0))
    x = blob * (1 + 0.5 * np.sign(places[-1] + 0.5 * places[-2]))
    x = np.broadcast_to(x[None, ..., None], (8, *sizes, 1)).astype(np.float32) / 2
    found = np.asarray(shown_batch(recipe, Sample({"pet": x}), case_keys(key, 0, jnp.arange(8))).images["pet"])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=tuple(range(1, x.ndim))), x[0].sum(), rtol=0.35)
    assert len({y.tobytes() for y in found}) > (1 if recipe == detection_recipe() else 4)


def test_the_breast_recipe_scales_its_lengths_with_the_image():
    def jitter_and_elastic(recipe):
        return recipe.transforms[2].transforms

    published, half = (jitter_and_elastic(breast_mip_recipe(size)) for size in (224, 112))
    assert published == (AffineJitter(10.0), Elastic(alpha=1.0, sigma=5.0))
    assert half[0].limit == 5.0
    assert half[1].deviation(2) == pytest.approx(published[1].deviation(2) / 2, rel=1e-3)
    assert published[1].deviation(2) == pytest.approx(0.0326, rel=0.01)


# Test time


def mean_by_row(samples):
    x = samples.images["x"]
    weights = jnp.arange(x[0].size, dtype=x.dtype).reshape(1, *x.shape[1:]) / x[0].size
    return {"p": jnp.sum(x * weights, axis=(1, 2, 3)), "flips": samples.mirrored.sum(axis=-1).astype(x.dtype)}


@pytest.mark.parametrize("include_identity", [True, False])
@pytest.mark.parametrize("transforms", [(Flip(p=0.0), Noise((1.0, 1.0), p=0.0))])
def test_test_time_augmentation_by_the_identity_is_the_plain_prediction(transforms, include_identity, key):
    samples = Sample({"x": image((4, *SIZES))}, mirrored=np.zeros((4, 2), bool))
    found = augmented_predictions(
        jax.jit(mean_by_row), Recipe(transforms), samples, key, CASES, copies=4, include_identity=include_identity
    )
    assert_close(found["p"], jax.jit(mean_by_row)(samples)["p"], 0.0 if not include_identity else 1e-6)


def test_predictions_are_averaged_over_copies_that_belong_to_the_case(key):
    samples = Sample({"x": image((4, *SIZES))})
    recipe = Recipe((Flip(), OneOf((Contrast((0.5, 2.0)), Noise((0.1, 0.2))))))
    run = partial(augmented_predictions, jax.jit(mean_by_row), recipe)
    found = run(samples, key, CASES, copies=3)
    copies = [mean_by_row(shown_batch(recipe, samples, case_keys(key, copy, CASES))) for copy in range(3)]
    assert_close(found["p"], sum(copy["p"] for copy in copies) / 3)
    assert len({float(copy["p"][0]) for copy in copies}) == 3
    assert_same(
        run(rows_of(samples, [1, 0, 3, 2]), key, CASES[jnp.array([1, 0, 3, 2])], copies=3)["p"][1], found["p"][0]
    )

    clean = mean_by_row(samples._replace(mirrored=jnp.zeros((4, 2), bool)))
    with_clean = run(samples, key, CASES, copies=3, include_identity=True)
    assert_close(with_clean["p"], (3 * found["p"] + clean["p"]) / 4)
    with pytest.raises(ValueError, match="copies is 0; expected at least one"):
        run(samples, key, CASES, copies=0)


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Flip(p=1.5), ValueError, "Flip: p is 1.5; expected a probability"),
        (lambda: Rotate(-5.0), ValueError, r"Rotate: limit is -5.0; expected a range \(low, high\)"),
        (lambda: Rotate((5.0, -5.0)), ValueError, r"Rotate: limit is \(5.0, -5.0\)"),
        (lambda: Translate(np.inf), ValueError, "Translate: limit is inf"),
        (lambda: Scale((0.0, 1.0)), ValueError, r"Scale: factors is \(0.0, 1.0\); expected .* above 0"),
        (lambda: Rescale((-1.0, 1.0)), ValueError, "Rescale: factors"),
        (lambda: GaussianBlur((0.0, 1.0)), ValueError, "GaussianBlur: sigma"),
        (lambda: Blur((4,)), ValueError, r"Blur: sizes is \(4,\); expected odd"),
        (lambda: Blur(()), ValueError, "one or several"),
        (lambda: Noise((-1.0, 1.0)), ValueError, "Noise: deviation .* from 0"),
        (lambda: Elastic(1.0, 0.0), ValueError, "Elastic: alpha is 1.0 and sigma 0.0"),
        (lambda: AffineJitter(-1.0), ValueError, "AffineJitter: limit is -1.0"),
        (lambda: OneOf(()), TypeError, "OneOf: transforms is"),
        (lambda: OneOf((Flip(), Blur()), weights=(1.0,)), ValueError, "one finite number from 0 for each"),
        (lambda: OneOf((Flip(), Blur()), weights=(0.0, 0.0)), ValueError, "at least one above 0"),
        (lambda: Recipe((Flip(),), fill=np.nan), ValueError, "fill is nan; expected finite"),
    ],
)
def test_a_transform_that_makes_no_sense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("recipe", "sample", "error", "message"),
    [
        (Recipe(), Sample({}), ValueError, "images is empty"),
        (Recipe(), Sample({"x": np.zeros((4, 4, 1), np.uint8)}), TypeError, "image 'x' is uint8; .* as a mask"),
        (Recipe(), Sample({"x": np.zeros((4, 4), np.float32)}), ValueError, r"image 'x' has shape \(4, 4\)"),
        (
            Recipe(),
            Sample({"x": np.zeros((4, 4, 1), np.float32)}, masks={"m": np.zeros((4, 5, 1), bool)}),
            ValueError,
            r"mask 'm' has shape \(4, 5, 1\) and image 'x' \(4, 4, 1\); expected one grid",
        ),
        (
            Recipe(),
            Sample({"x": np.zeros((3, 4, 4, 1), np.float32)}, boxes=np.zeros((1, 4), np.float32)),
            ValueError,
            "boxes are of 2-D images",
        ),
        (
            Recipe(),
            Sample({"x": np.zeros((4, 4, 1), np.float32)}, box_valid=np.ones(2, bool)),
            ValueError,
            "box_valid is given without boxes",
        ),
        (Recipe((Flip(2),)), Sample({"x": np.zeros((4, 4, 1), np.float32)}), ValueError, "Flip: axis is 2 for 2"),
        (
            Recipe((AffineJitter(10.0),)),
            Sample({"x": np.zeros((24, 20, 1), np.float32)}),
            ValueError,
            r"AffineJitter: limit is 10.0 positions for an image of \(24, 20\) .*less than 3,.*smaller limit",
        ),
        (
            Recipe((Blur((9,)),)),
            Sample({"x": np.zeros((20, 4, 1), np.float32)}),
            ValueError,
            "Blur: the window reaches 4 positions on an axis of 4",
        ),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(recipe, sample, error, message, key):
    with pytest.raises(error, match=message):
        jax.eval_shape(partial(augment_sample, recipe), sample, key)


def test_recipes_are_values():
    assert breast_mip_recipe() == breast_mip_recipe()
    assert hash(petct_recipe()) == hash(petct_recipe())
    assert breast_mip_recipe() != breast_mip_test_time_recipe()
    assert Recipe((Flip(),), fill={"a": 1, "b": 2}) == Recipe((Flip(),), fill=(("a", 1.0), ("b", 2.0)))


def test_every_public_name_is_exported():
    assert sorted(augment.__all__) == augment.__all__
    assert all(hasattr(augment, name) for name in augment.__all__)


def test_a_batch_moves_with_its_masks_and_boxes_and_keeps_the_rest():
    recipe = Recipe((Flip(p=1.0),))
    pictures = RNG.random((3, *SIZES, 1)).astype(np.float32)
    target = {
        "label": np.array([1, 0, 1], np.int32),
        "masks": {"lung": (pictures > 0.5).astype(np.uint8)},
        "boxes": np.tile(np.array([[2.0, 3.0, 7.0, 9.0]], np.float32), (3, 1, 1)),
        "classes": np.ones((3, 1), np.int32),
        "box_valid": np.ones((3, 1), bool),
    }
    valid = np.array([True, True, False])
    batch = Batch(
        {"xray": pictures, "clinical": np.ones((3, 4), np.float32)},
        target,
        valid,
        {"xray": valid, "clinical": valid},
        np.array([4, 9, -1], np.int32),
    )
    moved = quickly(augmented)(recipe, batch, case_keys(jax.random.key(0), 1, batch.index))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), moved) == jax.tree.map(lambda a: (a.shape, a.dtype), batch)
    for now, before in ((moved.inputs["xray"], pictures), (moved.target["masks"]["lung"], target["masks"]["lung"])):
        np.testing.assert_array_equal(now[:2], before[:2, :, ::-1])
        np.testing.assert_array_equal(now[2], before[2])  # padding
    assert moved.target["boxes"][0].tolist() == [[13.0, 3.0, 18.0, 9.0]]
    for name in ("label", "classes"):
        np.testing.assert_array_equal(moved.target[name], target[name])
    np.testing.assert_array_equal(moved.inputs["clinical"], 1)


@pytest.mark.parametrize("kind", [AffineTransform, ValueTransform])
def test_a_transform_that_does_nothing_cannot_be_made(kind):
    unfinished = type("Unfinished", (kind,), {})
    with pytest.raises(TypeError, match="abstract"):
        unfinished()
