"""Detectors as pure functions: what training, prediction and pictures call.

A batch has the source `image`, `(b, h, w, 3)`, and where the detector reads clinical data the source `clinical`,
`(b, t)`: numbers first, then a code for every category.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from fusion_jax.arrays import Array, Batch, Key, Model, Variables
from fusion_jax.detection.backbones import make_trunk
from fusion_jax.detection.config import PUBLISHED_DETECTORS, DetectorConfig, named_config
from fusion_jax.detection.features import TRUNKS, image_keys, inputs_of, truth_of
from fusion_jax.detection.mask_rcnn import MaskRCNN
from fusion_jax.detection.one_stage import RetinaNet
from fusion_jax.detection.outputs import Detector, DetectorOutputs, Stages
from fusion_jax.encoders.pretrained import Loaded, load_pretrained
from fusion_jax.training.keys import named_key

__all__ = [
    "PUBLISHED_DETECTORS",
    "TRUNKS",
    "Detector",
    "DetectorConfig",
    "DetectorOutputs",
    "Stages",
    "load_trunk",
    "make_detector",
    "named_config",
]

STATISTICS = "batch_stats"


@functools.lru_cache(maxsize=32)
def make_detector(config: DetectorConfig) -> Detector:
    """The detector of a config; the same object for equal configs, so that folds and seeds share compiled programs.

    Args:
      config: what it is made of.

    Returns:
      Its functions. They raise ValueError for a batch that lacks what they read, before anything is compiled.

    Example:
      >>> from fusion_jax.encoders import count_parameters
      >>> config = named_config("mdf-net", classes=("a", "b", "c", "d", "e"), numeric=9, levels=(2,))
      >>> rows = jax.ShapeDtypeStruct((2,), bool)
      >>> inputs = {"image": jax.ShapeDtypeStruct((2, 512, 512, 3), jnp.float32),
      ...           "clinical": jax.ShapeDtypeStruct((2, 10), jnp.float32)}
      >>> index = jax.ShapeDtypeStruct((2,), jnp.int32)
      >>> batch = Batch(inputs, {}, rows, {"image": rows, "clinical": rows}, index)
      >>> count_parameters(jax.eval_shape(make_detector(config).model.init, jax.random.key(0), batch))
      5399846
    """
    module = RetinaNet(config) if config.head == "retinanet" else MaskRCNN(config)

    def init(key: Key, batch: Batch) -> Variables:
        def initial(key: Key, batch: Batch) -> Variables:
            rngs = {"params": named_key(key, "params")}
            return dict(module.init(rngs, inputs_of(batch, config), method="detect"))

        # One program: the network itself is no part of it, since nothing of what it answers is returned.
        return jax.jit(initial)(key, batch._replace(target={}))

    def apply(
        variables: Variables, batch: Batch, *, train: bool, key: Key | None = None
    ) -> tuple[DetectorOutputs, Variables]:
        inputs, collections = inputs_of(batch, config), _collections(variables)
        if not train:
            outputs, _ = module.apply(collections, inputs, method="detect")
            return outputs, variables
        if key is None:
            raise ValueError(
                "a detector draws anchors and proposals while training and got no key. Call `apply(variables, batch, "
                "train=True, key=key)`."
            )
        truth = truth_of(batch, inputs)
        keys = image_keys(named_key(key, "sample"), batch)
        outputs, moved = module.apply(
            collections, inputs, truth, keys, train=True, mutable=[STATISTICS], method="losses"
        )
        return outputs, {**variables, **({STATISTICS: moved[STATISTICS]} if moved.get(STATISTICS) else {})}

    def losses(variables: Variables, batch: Batch, key: Key) -> dict[str, Array]:
        inputs = inputs_of(batch, config)
        truth, keys = truth_of(batch, inputs), image_keys(named_key(key, "sample"), batch)
        outputs: Any = module.apply(_collections(variables), inputs, truth, keys, train=False, method="losses")
        return outputs.losses

    def stages(variables: Variables, batch: Batch) -> Stages:
        found: Any = module.apply(_collections(variables), inputs_of(batch, config), method="detect")
        return found[1]

    return Detector(config, Model(init, cast("Any", apply)), losses, stages)


def load_trunk(
    config: DetectorConfig,
    variables: Variables,
    trunk: Literal["image", "clinical"],
    path: str | Path,
    *,
    sha256: str | None = None,
    origin: str = "",
) -> Loaded:
    """Variables of a detector with published weights in one of its trunks.

    A trunk whose later stages the detector does not read takes the part it has.

    Args:
      config: of the detector.
      variables: of it, as `init` gives them.
      trunk: that of the images, or that of the clinical map.
      path, sha256, origin: see `fusion_jax.encoders.load_pretrained`.

    Returns:
      The variables and the record of the file.

    Raises:
      ValueError: the detector has no such trunk, or one of which no weights are published, or the file does not fit.
      FileNotFoundError, ImportError: as `load_pretrained`.
    """
    if trunk not in TRUNKS:
        raise ValueError(f"there is no trunk {trunk!r}; expected one of {', '.join(TRUNKS)}.")
    if config.backbone == "cnn":
        raise ValueError(f"{path}: no weights are published for the backbone 'cnn'. Choose another, or no weights.")
    outer, inner = TRUNKS[trunk]
    if inner not in variables["params"][outer]:
        raise ValueError(
            f"the detector has no trunk {trunk!r}: it reads a clinical map only with maps_fusion and "
            "spatialise='blocks'. Leave these weights out."
        )
    whole = make_trunk(config, (32,))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: whole.init(jax.random.key(0), x, train=False), image)
    loaded = load_pretrained(path, shapes, sha256=sha256, origin=origin)
    found = dict(variables)
    for collection in ("params", STATISTICS):
        if collection in variables:
            own = variables[collection][outer][inner]
            taken = {name: loaded.variables[collection][name] for name in own}
            found[collection] = {
                **variables[collection],
                outer: {**variables[collection][outer], inner: taken},
            }
    return Loaded(found, loaded.initialisation)


def _collections(variables: Variables) -> dict[str, Any]:
    """Flax takes mappings only; what else is kept beside them is not the module's."""
    return {name: value for name, value in variables.items() if isinstance(value, Mapping)}
