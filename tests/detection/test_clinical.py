"""Clinical data as a vector, as a map, joined with maps and appended to features."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.detection import clinical
from fusion_jax.detection.clinical import (
    ClinicalEmbedding,
    ClinicalMLP,
    FuseMaps,
    Repeat,
    Spatialise,
    append_vector,
    doublings,
    embedding_widths,
)
from fusion_jax.encoders import count_parameters
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
BOTH = jnp.array([True, True])
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def values_for(module, *arguments, **keywords):
    shapes = jax.eval_shape(partial(module.init, **keywords), jax.random.key(0), *arguments)
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.uniform(0.2, 1, leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    ("vector", "numeric", "categories"), [(64, 9, 1), (64, 2, 1), (64, 0, 3), (8, 3, 5), (8, 3, 0)]
)
def test_embeddings_fill_what_numbers_leave(vector, numeric, categories):
    widths = embedding_widths(vector, numeric, categories)
    assert len(widths) == categories
    assert sum(widths) == (vector - numeric if categories else 0)
    assert not widths or max(widths) - min(widths) <= 1


def test_the_vector_holds_numbers_and_then_embeddings():
    module = ClinicalEmbedding(numeric=2, levels=(2, 3), vector=7)
    rows = jnp.array([[80.0, 36.6, 1.0, 2.0], [81.0, 36.7, 0.0, 0.0]])
    variables = values_for(module, rows, BOTH)
    found = module.apply(variables, rows, BOTH)
    tables = variables["params"]
    assert tables["embedding_0"].shape == (2, 3)
    assert tables["embedding_1"].shape == (3, 2)
    expected = [
        [80.0, 36.6, *tables["embedding_0"][1], *tables["embedding_1"][2]],
        [81.0, 36.7, *tables["embedding_0"][0], *tables["embedding_1"][0]],
    ]
    assert_close(found, np.array(expected, np.float32), 0)


def test_a_missing_category_and_an_absent_case_are_zeros():
    module = ClinicalEmbedding(numeric=1, levels=(2,), vector=4)
    rows = jnp.array([[5.0, -1.0], [6.0, 2.0], [jnp.nan, 1.0]])
    there = jnp.array([True, True, False])
    variables = values_for(module, rows, there)
    found = module.apply(variables, rows, there)
    assert found.tolist() == [[5.0, 0, 0, 0], [6.0, 0, 0, 0], [0, 0, 0, 0]]
    slopes = jax.grad(lambda v: jnp.sum(module.apply(v, rows, there)))(variables)
    assert not np.asarray(slopes["params"]["embedding_0"]).any()


def test_numbers_alone_are_the_vector():
    rows = normal(2, 3)
    assert_close(ClinicalEmbedding(numeric=3).apply({}, rows, BOTH), rows, 0)


def test_other_columns_than_declared_are_refused():
    with pytest.raises(ValueError, match="has 3 columns; expected 1 numbers and then 1 codes"):
        ClinicalEmbedding(numeric=1, levels=(2,)).init(jax.random.key(0), jnp.zeros((2, 3)), BOTH)


def test_the_published_spatialiser_has_447_369_parameters_and_doubles_nine_times():
    sizes = []

    def record(call, args, keywords, context):
        found = call(*args, **keywords)
        if isinstance(context.module, clinical._Doubling):
            sizes.append(found.shape[1:])
        return found

    initial = partial(Spatialise(512, 512).init_with_output, jax.random.key(0), train=False, mask=BOTH)
    with nn.intercept_methods(record):
        image, variables = jax.eval_shape(initial, jax.ShapeDtypeStruct((2, 64), jnp.float32))
    assert count_parameters(variables) == 447_369
    assert image.shape == (2, 512, 512, 3)
    assert sizes == [*((2**i, 2**i, 64) for i in range(1, 9)), (512, 512, 3)]


@pytest.mark.parametrize("size", [(512, 512), (384, 512), (640, 640), (500, 333), (32, 96)])
def test_every_size_is_made_with_little_waste(size):
    count = doublings(*size)
    made = [-(-extent // 2**count) * 2**count for extent in size]
    assert all(extent <= covered < 1.35 * extent for extent, covered in zip(size, made, strict=True))


def test_spatialised_rows_are_their_own_vectors_and_padding_moves_nothing():
    module = Spatialise(4, 6, channels=3)
    vectors = normal(3, 4)
    mask = jnp.array([True, True, False])
    variables = values_for(module, vectors, train=False, mask=mask)

    @quickly
    def images(vectors):
        used = module.apply(variables, vectors, train=False, mask=mask)
        trained, moved = module.apply(variables, vectors, train=True, mask=mask, mutable=["batch_stats"])
        return used, trained[:2], moved

    used, trained, moved = images(vectors)
    assert used.shape == (3, 4, 6, 3)
    swapped = images(vectors[jnp.array([1, 0, 2])])
    assert_close(swapped[0], used[jnp.array([1, 0, 2])], 1e-6)
    assert np.abs(np.asarray(used[0] - used[1])).max() > 1e-3
    # What stands in padding: neither statistics nor the other rows notice.
    junk = images(vectors.at[2].set(1e6))
    assert_close(junk[1:], (trained, moved), 1e-6)


def test_repeat_is_one_dense_layer_everywhere():
    vectors, dense = normal(2, 4), {"kernel": normal(4, 3), "bias": normal(3)}
    wide, narrow = Repeat(channels=3).apply({"params": {"dense": dense}}, vectors, ((2, 3), (1, 1)))
    expected = vectors @ dense["kernel"] + dense["bias"][None]
    assert_close(narrow[:, 0, 0], expected, 1e-6)
    assert_close(wide, jnp.broadcast_to(expected[:, None, None], (2, 2, 3, 3)), 1e-6)


def test_dense_layers_before_the_map_ignore_padding():
    module, vectors = ClinicalMLP((5, 3)), normal(3, 4)
    mask = jnp.array([True, True, False])
    variables = values_for(module, vectors, train=False, mask=mask)
    train = partial(module.apply, variables, train=True, mask=mask, mutable=["batch_stats"])
    found, moved = train(vectors)
    assert found.shape == (3, 3)
    junk, junk_moved = train(vectors.at[2].set(1e6))
    assert_close((junk[:2], junk_moved), (found[:2], moved), 1e-6)


KINDS = {
    "add": lambda i, c, p: i + c,
    "concatenate": lambda i, c, p: jnp.concatenate([i, c], axis=-1) @ p["join"]["kernel"][0, 0] + bias(p["join"]),
    "gate": lambda i, c, p: (
        i + jax.nn.sigmoid(jnp.concatenate([i, c], axis=-1) @ p["gate"]["kernel"][0, 0] + bias(p["gate"])) * c
    ),
    "film": lambda i, c, p: (
        i * (1 + c @ p["scale"]["kernel"][0, 0] + bias(p["scale"]))
        + (c @ p["shift"]["kernel"][0, 0] + bias(p["shift"]))
    ),
}


def bias(layer):
    return layer["bias"][None, None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_join_by_their_formula_and_an_absent_one_adds_nothing(kind):
    image, other = normal(2, 2, 2, 3), normal(2, 2, 2, 3)
    there = jnp.array([True, False])
    module = FuseMaps(kind)
    variables = values_for(module, image, other, there, train=False, mask=BOTH)
    fused = module.apply(variables, image, other, there, train=False, mask=BOTH)
    parameters = variables.get("params", {})
    assert_close(fused[0], KINDS[kind](image, other, parameters)[0], 1e-5)
    alone = module.apply(variables, image, 9 * other, there, train=False, mask=BOTH)
    assert_close(alone[1], fused[1], 0)
    if kind != "concatenate":
        assert_close(fused[1], image[1], 0)


def test_convolutions_behind_the_sum_and_the_residual():
    image, other = normal(2, 3, 3, 2), normal(2, 3, 3, 2)
    plain, residual = FuseMaps("add", depth=1), FuseMaps("add", depth=1, residual=True)
    variables = values_for(plain, image, other, BOTH, train=False, mask=BOTH)
    apply = partial(FuseMaps.apply, train=False, mask=BOTH)
    found: Any = apply(plain, variables, image, other, BOTH)
    assert found.shape == image.shape
    assert (np.asarray(found) >= 0).all()
    assert_close(apply(residual, variables, image, other, BOTH), found + image + other, 1e-6)


def test_an_unknown_way_to_fuse_is_named(unchecked):
    x = jnp.zeros((2, 1, 1, 1))
    with pytest.raises(ValueError, match="kind is 'multiply'; expected 'add', 'concatenate', 'gate' or 'film'"):
        FuseMaps("multiply").apply({}, x, x, BOTH, train=False, mask=BOTH)


@pytest.mark.parametrize("middle", [(), (3,), (2, 2)])
def test_the_vector_is_appended_to_every_feature_of_its_case(middle):
    features, vectors = normal(2, *middle, 3), normal(2, 4)
    found = append_vector(features, vectors)
    assert found.shape == (2, *middle, 7)
    flat = np.asarray(found).reshape(2, -1, 7)
    assert_close(flat[..., :3], np.asarray(features).reshape(2, -1, 3), 0)
    for case in range(2):
        assert_close(flat[case, :, 3:], np.broadcast_to(vectors[case], (flat.shape[1], 4)), 0)
