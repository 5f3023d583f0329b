"""Detectors of a few thousand parameters on images of 32 pixels, and batches for them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Batch
from fusion_jax.detection.detector import named_config

SIZE = 32

# The programs are tiny: most of their time is that of compiling them.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

CHANGES = {
    "classes": ("first", "second"),
    "image_size": (SIZE, SIZE),
    "numeric": 2,
    "levels": (2,),
    "vector": 8,
    "backbone": "cnn",
    "width": 0.25,
    "channels": 8,
    "hidden": 8,
    "mask_hidden": 4,
    "mask_rois": 2,
    "anchors": {"sizes": [[8, 16]], "ratios": [1], "strides": [4]},
    "rpn_batch": 8,
    "roi_batch": 8,
    "rpn_before_train": 16,
    "rpn_before": 16,
    "rpn_after_train": 8,
    "rpn_after": 8,
    "score_threshold": 0.0,
    "detections": 4,
}


def tiny(name="mdf-net", **changes):
    """The config of a tiny detector."""
    return named_config(name, **{**CHANGES, **changes})


def batch_of(rows=3, boxes=2, seed=0, columns=3, size=SIZE):
    """Cases that differ in everything; the categories are 0 and 1 in turn."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5 * size, (rows, boxes, 2))
    extent = rng.uniform(0.2 * size, 0.5 * size, (rows, boxes, 2))
    clinical = rng.normal(size=(rows, columns))
    clinical[:, -1] = np.arange(rows) % 2
    there = np.ones(rows, bool)
    return Batch(
        {
            "image": rng.normal(size=(rows, size, size, 3)).astype(np.float32),
            "clinical": clinical.astype(np.float32),
        },
        {
            "boxes": np.concatenate([corner, corner + extent], axis=2).astype(np.float32),
            "classes": rng.integers(0, 2, (rows, boxes)).astype(np.int32),
            "box_valid": np.ones((rows, boxes), bool),
        },
        there,
        {"image": there, "clinical": there},
        np.arange(10, 10 + rows, dtype=np.int32),
    )


def shapes_of(batch):
    """The same batch without values."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)


def random_variables(detector, batch, seed=0):
    """Variables of the right shapes that no program has to be compiled for, large enough for boxes to move.

    Scales and running variances are near 1, so that nothing explodes.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(detector.model.init, jax.random.key(0), batch)

    def value(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        if name == "mean" or (name == "bias" and leaf.ndim == 1):
            return jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32)
        fan = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(0, fan**-0.5, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)
