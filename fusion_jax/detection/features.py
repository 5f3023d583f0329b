"""From a batch to the feature maps that heads read: the part that detectors of one and of two stages share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, Batch, Key
from fusion_jax.detection.backbones import make_neck, make_trunk
from fusion_jax.detection.clinical import ClinicalEmbedding, ClinicalMLP, FuseMaps, Repeat, Spatialise
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.ops.pool import global_average_pool

__all__ = ["TRUNKS", "Fused", "FusedMaps", "Inputs", "Truth", "image_keys", "inputs_of", "truth_of"]

TRUNKS = {"image": ("maps", "image_trunk"), "clinical": ("maps", "clinical_trunk")}
"""Names of the modules that lead to each trunk, for pretrained weights; the second where the clinical map is made by
blocks (`maps_fusion`, `spatialise="blocks"`)."""


class Inputs(NamedTuple):
    """What a detector reads of a batch when it looks for objects.

    Attributes:
      image: `(b, h, w, c)`.
      there: rows that are cases with an image, `(b,)`.
      clinical: `(b, t)`; None where the detector reads none.
      clinical_there: which of the rows have clinical data, `(b,)`.
    """

    image: Array
    there: Array
    clinical: Array | None
    clinical_there: Array


class Truth(NamedTuple):
    """What training reads besides; padded boxes are zeros.

    Attributes:
      boxes: `(b, m, 4)`, pixels.
      label: class from 0, `(b, m)`.
      valid: whether there is a box, and an image that counts, `(b, m)`.
    """

    boxes: Array
    label: Array
    valid: Array


class Fused(NamedTuple):
    """Maps of every level, finest first, and what they were made of.

    Attributes:
      image, fused: maps `(b, h_l, w_l, c)`; the same where nothing is fused.
      clinical: maps likewise; empty where none are made.
      spatialised: the image `(b, h, w, 3)` that the clinical trunk reads; None where there is none.
      vector: the clinical vector `(b, f)`, zeros where a case has none; None where the detector reads none.
    """

    image: tuple[Array, ...]
    clinical: tuple[Array, ...]
    fused: tuple[Array, ...]
    spatialised: Array | None
    vector: Array | None

    def maps(self) -> dict[str, Array]:
        """The finest level of every map, `(b, h, w, c)`, float32."""
        finest = {"image": self.image[0], "fused": self.fused[0]}
        if self.clinical:
            finest["clinical"] = self.clinical[0]
        return {name: one.astype(jnp.float32) for name, one in finest.items()}

    def pooled(self) -> dict[str, Array]:
        """Features of every source, `(b, f)`, float32."""
        found = {"image": global_average_pool(self.image[0].astype(jnp.float32))}
        if self.clinical:
            found["clinical"] = global_average_pool(self.clinical[0].astype(jnp.float32))
        elif self.vector is not None:
            found["clinical"] = self.vector
        return found


def inputs_of(batch: Batch, config: DetectorConfig) -> Inputs:
    """What a detector reads of a batch, checked; rows without an image are zeros.

    Raises:
      ValueError: a source that is missing, or an image of another size or number of channels.
    """
    wanted = ("image", *(("clinical",) if config.reads_clinical else ()))
    lacking = [name for name in wanted if name not in batch.inputs or name not in batch.present]
    if lacking:
        raise ValueError(
            f"the detector reads {', '.join(wanted)}; the batch holds {', '.join(sorted(batch.inputs)) or 'no source'} "
            f"and lacks {', '.join(lacking)}. Name the sources of the cohort so, or leave the fusion out."
        )
    valid = jnp.asarray(batch.valid)
    image = jnp.asarray(batch.inputs["image"])
    if image.ndim != 4 or image.shape[1:] != (*config.image_size, 3):
        raise ValueError(
            f"images have shape {image.shape}; expected (b, {config.image_size[0]}, {config.image_size[1]}, 3). "
            "Resize them, boxes with them, or set image_size."
        )
    there = valid & jnp.asarray(batch.present["image"])
    image = jnp.where(there[:, None, None, None], image, 0)
    if not config.reads_clinical:
        return Inputs(image, there, None, jnp.zeros_like(there))
    clinical = jnp.asarray(batch.inputs["clinical"])
    return Inputs(image, there, clinical, there & jnp.asarray(batch.present["clinical"]))


def truth_of(batch: Batch, inputs: Inputs) -> Truth:
    """The boxes of a batch, for training.

    Raises:
      ValueError: the target lacks them.
    """
    lacking = [name for name in ("boxes", "classes", "box_valid") if name not in batch.target]
    if lacking:
        raise ValueError(
            f"training a detector reads boxes, classes and box_valid of the target; it lacks {', '.join(lacking)}. "
            "Give the cohort a table of boxes, or call with train=False to find objects."
        )
    valid = jnp.asarray(batch.target["box_valid"]) & inputs.there[:, None]
    boxes = jnp.where(valid[:, :, None], jnp.asarray(batch.target["boxes"]).astype(jnp.float32), 0)
    return Truth(boxes, jnp.where(valid, jnp.asarray(batch.target["classes"]).astype(jnp.int32), 0), valid)


def image_keys(key: Key, batch: Batch) -> Array:
    """A key of every case, which follows from the case and not from its place in the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(batch.index).astype(jnp.uint32))


class FusedMaps(nn.Module):
    """Feature maps of the image, joined with those of the clinical data where the detector fuses maps.

    Attributes:
      config: of the detector.
    """

    config: DetectorConfig

    def setup(self) -> None:
        """Modules by the parts of the paper's Figure 2."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.image_trunk, self.image_neck = make_trunk(config), make_neck(config)
        if config.reads_clinical:
            self.embedding = ClinicalEmbedding(config.numeric, config.levels, config.vector)
        if not config.maps_fusion:
            return
        if config.clinical_mlp:
            self.clinical_mlp = ClinicalMLP(config.clinical_mlp, config.norm, dtype)
        if config.spatialise == "blocks":
            height, width = config.image_size
            self.spatialise = Spatialise(height, width, config.vector, 3, config.norm, config.remat, dtype)
            self.clinical_trunk, self.clinical_neck = make_trunk(config), make_neck(config)
        else:
            self.repeat = Repeat(config.channels, dtype)
        self.fuse = [
            FuseMaps(config.fuse, config.fuse_depth, config.fuse_residual, config.norm, dtype)
            for _ in config.anchors.strides
        ]

    def __call__(self, inputs: Inputs, *, train: bool) -> Fused:
        """Maps of every level."""
        image = self.image_neck(self.image_trunk(inputs.image, train=train, mask=inputs.there))
        if inputs.clinical is None:
            return Fused(image, (), image, None, None)
        there = inputs.clinical_there
        vector = self.embedding(inputs.clinical, there)
        if not self.config.maps_fusion:
            return Fused(image, (), image, None, vector)
        described = vector
        if self.config.clinical_mlp:
            described = self.clinical_mlp(vector, train=train, mask=there)
        if self.config.spatialise == "blocks":
            spatialised = self.spatialise(described, train=train, mask=there)
            clinical = self.clinical_neck(self.clinical_trunk(spatialised, train=train, mask=there))
            spatialised = spatialised.astype(jnp.float32)
        else:
            spatialised = None
            clinical = self.repeat(described, tuple(one.shape[1:3] for one in image))
        clinical = tuple(jnp.where(there[:, None, None, None], one, 0) for one in clinical)
        fused = tuple(
            fuse(one, other, there, train=train, mask=inputs.there)
            for fuse, one, other in zip(self.fuse, image, clinical, strict=True)
        )
        return Fused(image, clinical, fused, spatialised, vector)
