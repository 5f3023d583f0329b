"""Heads: published sizes, the order of anchors, float32 whatever they compute in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.detection.anchors import Anchors, anchors_per_level, make_anchors
from fusion_jax.detection.heads import BoxHead, BoxPredictor, DenseHead, MaskHead, MaskPredictor, ProposalHead
from fusion_jax.encoders import count_parameters
from tests.helpers import assert_close

quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(module, *arguments):
    return jax.eval_shape(partial(module.init_with_output, jax.random.key(0)), *arguments)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("head", "x", "parameters"),
    [
        (ProposalHead(15), (floats(1, 16, 16, 64),), 41_803),
        (BoxHead(64), floats(2, 3200), 209_024),
        (BoxHead(64), floats(2, 3136), 209_024 - 64 * 64),
        (BoxPredictor(6), floats(2, 64), 1_950),
        (MaskHead(256), floats(2, 14, 14, 64), 1_917_952),
        (MaskPredictor(6, 256), floats(2, 14, 14, 256), 263_942),
    ],
)
def test_heads_have_their_published_size(head, x, parameters):
    assert count_parameters(shapes(head, x)[1]) == parameters


@pytest.mark.parametrize("head", [ProposalHead(2), DenseHead(3, 2, 4)])
def test_answers_stand_in_the_order_of_the_anchors(head):
    """A head that answers with the place of its cell names the corner of its anchor."""
    design = Anchors(((4.0, 8.0), (8.0, 16.0)), (1.0,), (8, 16))
    anchors = make_anchors(design, 24, 32)
    places = []
    for height, width, stride in ((3, 4, 8), (2, 2, 16)):
        y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
        places.append(jnp.asarray(np.stack([y, x], axis=-1)[None], jnp.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(head, tuple(places))[1])
    params = variables["params"]
    for name in params:
        if "conv" in name and not name.startswith("classes"):
            kernel = params[name]["kernel"]
            kernel[1, 1, 0, 0] = kernel[1, 1, 1, 1] = 1
    last = params["deltas" if isinstance(head, ProposalHead) else "boxes"]
    middle = last["kernel"].shape[0] // 2
    for anchor in range(2):
        last["kernel"][middle, middle, 1, 4 * anchor] = last["kernel"][middle, middle, 0, 4 * anchor + 1] = 1
        # Which anchor of the cell it is follows from the bias.
        last["bias"][4 * anchor + 2] = anchor
    _, deltas = quickly(head.apply)(variables, tuple(places))
    assert deltas.shape == (1, len(anchors), 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert_close(deltas[0, :, :2], centres, 0)
    assert len(anchors) == sum(anchors_per_level(design, 24, 32))
    assert deltas[0, :, 2].tolist() == [0.0, 1.0] * (len(anchors) // 2)


def test_an_untrained_head_of_one_stage_expects_one_object_in_a_hundred_anchors():
    head, maps = DenseHead(3, 2, 4), (jnp.zeros((1, 2, 2, 4)),)
    (logits, deltas), _ = quickly(head.init_with_output)(jax.random.key(0), maps)
    assert logits.shape == (1, 8, 3)
    assert_close(jax.nn.sigmoid(logits), np.full((1, 8, 3), 0.01, np.float32), 1e-5)
    assert not np.asarray(deltas).any()


@pytest.mark.parametrize(
    ("head", "x"),
    [
        (ProposalHead(2, jnp.bfloat16), (floats(1, 2, 2, 4),)),
        (DenseHead(2, 1, 4, jnp.bfloat16), (floats(1, 2, 2, 4),)),
        (BoxPredictor(3, jnp.bfloat16), floats(2, 4)),
        (MaskPredictor(3, 4, jnp.bfloat16), floats(2, 2, 2, 4)),
    ],
)
def test_answers_are_single_precision(head, x):
    found, variables = shapes(head, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, variables))} == {jnp.dtype(jnp.float32)}
