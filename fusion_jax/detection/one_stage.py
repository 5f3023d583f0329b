"""One stage: class and box of every anchor at once. The clinical modules are those of two stages, unchanged."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array
from fusion_jax.detection.anchors import anchors_per_cell, anchors_per_level, make_anchors
from fusion_jax.detection.clinical import append_vector
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.detection.features import Fused, FusedMaps, Inputs, Truth
from fusion_jax.detection.heads import DenseHead
from fusion_jax.detection.losses import focal_loss, l1_loss
from fusion_jax.detection.matching import match
from fusion_jax.detection.outputs import DetectorOutputs, Stages
from fusion_jax.detection.postprocessing import postprocess_anchors
from fusion_jax.detection.proposals import Proposals
from fusion_jax.ops import clip_boxes, decode_boxes, encode_boxes

__all__ = ["RetinaNet"]


class RetinaNet(nn.Module):
    """RetinaNet whose maps, and every cell of them, may read clinical data.

    Methods are those of `fusion_jax.detection.mask_rcnn.MaskRCNN`.

    Attributes:
      config: of the detector. Its regions are the cells of the maps: `roi_fusion` appends the clinical vector to each.

    References:
      Lin et al. 2017, "Focal loss for dense object detection". With clinical data it is the future work that Hsieh et
      al. name: the same fusion in another detector.
    """

    config: DetectorConfig

    def setup(self) -> None:
        """The shared maps and one head."""
        config = self.config
        self.maps = FusedMaps(config)
        cell, dtype = anchors_per_cell(config.anchors), jnp.dtype(config.dtype)
        self.head = DenseHead(len(config.classes), cell, config.hidden, dtype)

    def losses(self, inputs: Inputs, truth: Truth, keys: Array, *, train: bool) -> DetectorOutputs:
        """The losses of a batch; nothing is sampled, and the keys are not used."""
        config = self.config
        del keys
        fused = self.maps(inputs, train=train)
        logits, deltas = self._answers(fused)
        anchors = jnp.asarray(make_anchors(config.anchors, *config.image_size))

        def of_image(truth: Truth, there: Array) -> tuple[Array, ...]:
            matched = match(
                anchors,
                truth.boxes,
                truth.valid,
                foreground=config.one_stage_foreground,
                background=config.one_stage_background,
                low_quality=True,
            )
            target = encode_boxes(truth.boxes[matched.row], anchors)
            valid = (matched.positive | matched.negative) & there
            return truth.label[matched.row], target, matched.positive & there, valid

        label, target, positive, valid = jax.vmap(of_image)(truth, inputs.there)
        losses = {
            "classes": focal_loss(logits, label, positive, valid),
            "boxes": l1_loss(deltas, target, positive, valid),
        }
        return DetectorOutputs(losses, None, None, fused.pooled())

    def detect(self, inputs: Inputs) -> tuple[DetectorOutputs, Stages]:
        """Objects of a batch, and the best anchors as if they were proposals; reads no truth."""
        config = self.config
        fused = self.maps(inputs, train=False)
        logits, deltas = self._answers(fused)
        anchors = jnp.asarray(make_anchors(config.anchors, *config.image_size))
        final = partial(
            postprocess_anchors,
            anchors=anchors,
            image_size=config.image_size,
            levels=anchors_per_level(config.anchors, *config.image_size),
            before=config.one_stage_before,
            score_threshold=config.score_threshold,
            overlap=config.overlap,
            size=config.detections,
        )
        detections = jax.vmap(final)(logits, deltas)
        there = inputs.there[:, None] & detections.valid
        detections = jax.tree.map(
            lambda a: jnp.where(there.reshape(*there.shape, *(1,) * (a.ndim - 2)), a, jnp.zeros_like(a)), detections
        )

        def candidates(logits: Array, deltas: Array, there: Array) -> Proposals:
            score = jnp.max(logits, axis=1)
            best, rows = jax.lax.top_k(score, min(config.one_stage_before, len(score)))
            boxes = clip_boxes(decode_boxes(deltas[rows], anchors[rows]), *config.image_size)
            return Proposals(boxes, best, jnp.broadcast_to(there, best.shape))

        proposals = jax.vmap(candidates)(logits, deltas, inputs.there)
        stages = Stages(proposals, detections, None, fused.maps(), fused.spatialised)
        return DetectorOutputs({}, detections, None, fused.pooled()), stages

    def _answers(self, fused: Fused) -> tuple[Array, Array]:
        maps = fused.fused
        if self.config.roi_fusion and fused.vector is not None:
            maps = tuple(append_vector(one, fused.vector) for one in maps)
        return self.head(maps)
