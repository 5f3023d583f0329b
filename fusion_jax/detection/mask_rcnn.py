"""Two stages: proposals from the maps, then class, box and mask of each; with or without clinical data."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Float, Key
from fusion_jax.detection.anchors import anchors_per_cell, anchors_per_level, make_anchors
from fusion_jax.detection.backbones import read_strides
from fusion_jax.detection.clinical import append_vector
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.detection.features import Fused, FusedMaps, Inputs, Truth
from fusion_jax.detection.heads import BoxHead, BoxPredictor, MaskHead, MaskPredictor, ProposalHead
from fusion_jax.detection.losses import box_regression_loss, classification_loss, mask_loss, objectness_loss
from fusion_jax.detection.matching import match, sample
from fusion_jax.detection.outputs import DetectorOutputs, Stages
from fusion_jax.detection.postprocessing import postprocess
from fusion_jax.detection.proposals import Proposals, add_truth, propose
from fusion_jax.ops import encode_boxes, multilevel_roi_align, roi_align

__all__ = ["BOX_BINS", "BOX_WEIGHTS", "MASK_BINS", "MaskRCNN", "box_masks"]

BOX_BINS, MASK_BINS = 7, 14
"""Positions an axis that the heads see of a region."""

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def box_masks(truth: Float[ArrayLike, "p 4"], regions: Float[ArrayLike, "p 4"], size: int) -> Float[Array, "p s s"]:
    """The filled truth box as a mask inside a region: the part of each cell that the box covers.

    Args:
      truth: boxes in pixels, one for every region.
      regions: boxes in pixels, on which a grid of `size` by `size` cells lies. Regions without area give zeros.
      size: cells an axis.

    Returns:
      Masks in [0, 1], rows first.

    Example:
      >>> box_masks(jnp.array([[0.0, 0.0, 3.0, 4.0]]), jnp.array([[0.0, 0.0, 4.0, 4.0]]), 2).tolist()
      [[[1.0, 0.5], [1.0, 0.5]]]

    References:
      specs/mdf_net.md, M11: the published masks are the boxes, filled.
    """
    truth, regions = jnp.asarray(truth), jnp.asarray(regions)

    def covered(low: Array, high: Array, start: Array, end: Array) -> Array:
        extent = jnp.where(end > start, end - start, 1)[:, None] / size
        edges = start[:, None] + extent * jnp.arange(size, dtype=start.dtype)[None, :]
        inside = jnp.minimum(edges + extent, high[:, None]) - jnp.maximum(edges, low[:, None])
        return jnp.where((end > start)[:, None], jnp.clip(inside / extent, 0, 1), 0)

    columns = covered(truth[:, 0], truth[:, 2], regions[:, 0], regions[:, 2])
    rows = covered(truth[:, 1], truth[:, 3], regions[:, 1], regions[:, 3])
    return rows[:, :, None] * columns[:, None, :]


class _Regions(NamedTuple):
    """Proposals that the second stage learns from, `(b, k, ...)`; positives come first."""

    boxes: Array
    truth: Array
    label: Array
    positive: Array
    valid: Array


class MaskRCNN(nn.Module):
    """Mask R-CNN whose maps and regions may read clinical data.

    Methods are called with `module.apply(..., method=...)`; `fusion_jax.detection.make_detector` does.

    Attributes:
      config: of the detector.

    References:
      He et al. 2017, "Mask R-CNN"; Hsieh et al., "MDF-Net", Figure 2 and Eq. 2 to 4.
    """

    config: DetectorConfig

    def setup(self) -> None:
        """Modules by their published names."""
        config = self.config
        dtype, classes = jnp.dtype(config.dtype), len(config.classes) + 1
        self.maps = FusedMaps(config)
        self.rpn = ProposalHead(anchors_per_cell(config.anchors), dtype)
        self.box_head, self.box_predictor = BoxHead(config.hidden, dtype), BoxPredictor(classes, dtype)
        if config.masks:
            self.mask_head = MaskHead(config.mask_hidden, dtype)
            self.mask_predictor = MaskPredictor(classes, config.mask_hidden, dtype)

    def losses(self, inputs: Inputs, truth: Truth, keys: Array, *, train: bool) -> DetectorOutputs:
        """The losses of a batch.

        Args:
          inputs, truth: the batch.
          keys: one of every row, for what is sampled.
          train: whether batch norm takes the moments of the batch and moves the running ones.
        """
        config = self.config
        fused = self.maps(inputs, train=train)
        objectness, deltas = self.rpn(fused.fused)
        keys = jax.vmap(jax.random.split)(keys)
        losses = self._proposal_losses(objectness, deltas, inputs, truth, keys[:, 0])
        proposals = self._propose(objectness, deltas, config.rpn_before_train, config.rpn_after_train)
        proposals = jax.vmap(add_truth)(proposals, truth.boxes, truth.valid)
        regions = jax.vmap(self._sampled)(proposals, truth, inputs.there, keys[:, 1])
        logits, moved = self._classified(fused, regions.boxes, regions.valid)
        # The deltas of the true class; those of the background are never trained.
        own = jnp.take_along_axis(moved, regions.label[:, :, None, None], axis=2)[:, :, 0]
        target = encode_boxes(regions.truth, regions.boxes, weights=BOX_WEIGHTS)
        losses["classes"] = classification_loss(logits, regions.label, regions.valid)
        losses["boxes"] = box_regression_loss(own, target, regions.positive, regions.valid)
        if config.masks:
            losses["masks"] = self._mask_loss(fused, regions)
        return DetectorOutputs(losses, None, None, fused.pooled())

    def detect(self, inputs: Inputs) -> tuple[DetectorOutputs, Stages]:
        """Objects of a batch, and how they were found; reads no truth."""
        config = self.config
        fused = self.maps(inputs, train=False)
        objectness, deltas = self.rpn(fused.fused)
        proposals = self._propose(objectness, deltas, config.rpn_before, config.rpn_after)
        proposals = proposals._replace(valid=proposals.valid & inputs.there[:, None])
        logits, moved = self._classified(fused, proposals.boxes, proposals.valid)
        final = partial(
            postprocess,
            image_size=config.image_size,
            score_threshold=config.score_threshold,
            overlap=config.overlap,
            size=config.detections,
            weights=BOX_WEIGHTS,
        )
        detections = jax.vmap(final)(logits, moved, proposals)
        masks = None
        if config.masks:
            seen = self._aligned(fused, detections.boxes, detections.valid, MASK_BINS)
            logits = self._mask_logits(seen.reshape(-1, *seen.shape[2:]), detections.label.reshape(-1) + 1)
            masks = nn.sigmoid(logits.reshape(*seen.shape[:2], *logits.shape[1:]))
            masks = jnp.where(detections.valid[:, :, None, None], masks, 0)
        stages = Stages(proposals, detections, masks, fused.maps(), fused.spatialised)
        return DetectorOutputs({}, detections, masks, fused.pooled()), stages

    def _proposal_losses(
        self, objectness: Array, deltas: Array, inputs: Inputs, truth: Truth, keys: Array
    ) -> dict[str, Array]:
        config = self.config
        anchors = jnp.asarray(make_anchors(config.anchors, *config.image_size))

        def of_image(logits: Array, deltas: Array, truth: Truth, there: Array, key: Key) -> tuple[Array, ...]:
            matched = match(
                anchors,
                truth.boxes,
                truth.valid,
                foreground=config.rpn_foreground,
                background=config.rpn_background,
                low_quality=True,
            )
            drawn = sample(key, matched, size=config.rpn_batch, positive_fraction=config.rpn_positive)
            rows = drawn.rows
            target = encode_boxes(truth.boxes[matched.row[rows]], anchors[rows])
            return logits[rows], deltas[rows], target, drawn.positive & there, drawn.valid & there

        logits, moved, target, positive, valid = jax.vmap(of_image)(objectness, deltas, truth, inputs.there, keys)
        return {
            "objectness": objectness_loss(logits, positive, valid),
            "proposal_boxes": box_regression_loss(moved, target, positive, valid),
        }

    def _propose(self, objectness: Array, deltas: Array, before: int, after: int) -> Proposals:
        config = self.config
        one = partial(
            propose,
            anchors=make_anchors(config.anchors, *config.image_size),
            image_size=config.image_size,
            levels=anchors_per_level(config.anchors, *config.image_size),
            before=before,
            after=after,
            overlap=config.rpn_overlap,
        )
        return jax.vmap(one)(objectness, deltas)

    def _sampled(self, proposals: Proposals, truth: Truth, there: Array, key: Key) -> _Regions:
        """Proposals of one image that the second stage learns from."""
        config = self.config
        matched = match(
            proposals.boxes,
            truth.boxes,
            truth.valid,
            foreground=config.roi_foreground,
            background=config.roi_background,
            low_quality=False,
            valid=proposals.valid,
        )
        drawn = sample(key, matched, size=config.roi_batch, positive_fraction=config.roi_positive)
        row = matched.row[drawn.rows]
        label = jnp.where(drawn.positive, truth.label[row] + 1, 0)
        return _Regions(
            proposals.boxes[drawn.rows], truth.boxes[row], label, drawn.positive & there, drawn.valid & there
        )

    def _classified(self, fused: Fused, boxes: Array, valid: Array) -> tuple[Array, Array]:
        """Class logits and deltas of every region."""
        regions = self._aligned(fused, boxes, valid, BOX_BINS)
        flat = regions.reshape(*regions.shape[:2], -1)
        if self.config.roi_fusion and fused.vector is not None:
            flat = append_vector(flat, fused.vector)
        return self.box_predictor(self.box_head(flat))

    def _mask_loss(self, fused: Fused, regions: _Regions) -> Array:
        # The mask head is most of a training step (55 of 75 GMAC with 32 regions an image of 512 pixels), and an image
        # seldom has as many positives: all images share `mask_rois` places each. Aligning costs little beside it.
        config = self.config
        images, most = len(regions.boxes), max(1, int(config.roi_batch * config.roi_positive))
        few = jax.tree.map(lambda a: a[:, :most], regions)
        seen = self._aligned(fused, few.boxes, few.positive, MASK_BINS)
        # Positives first: the first of every image, which is any of them, then the second, and so on.
        taken = jnp.argsort(~few.positive.T.reshape(-1), stable=True)[: images * config.mask_rois]

        def drawn(rows: Array) -> Array:
            return jnp.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:])[taken]

        rows, seen = jax.tree.map(drawn, few), drawn(seen)
        logits = self._mask_logits(seen, rows.label)
        return mask_loss(logits, box_masks(rows.truth, rows.boxes, logits.shape[-1]), rows.positive)

    def _mask_logits(self, seen: Array, label: Array) -> Array:
        """Mask logits of regions `(n, 14, 14, c)`, for the class that each is said to be, `(n, 28, 28)`."""
        logits = self.mask_predictor(self.mask_head(seen))
        return jnp.take_along_axis(logits, label[:, None, None, None], axis=3)[..., 0]

    def _aligned(self, fused: Fused, boxes: Array, valid: Array, bins: int) -> Array:
        """Features of every region, `(b, p, bins, bins, c)`; from the maps of the trunk, not those beyond it."""
        scales = tuple(1 / stride for stride in read_strides(self.config))
        maps = fused.fused[: len(scales)]
        if len(scales) == 1:
            one = partial(roi_align, size=bins, scale=scales[0])
            return jax.vmap(lambda features, boxes, valid: one(features, boxes, valid=valid))(maps[0], boxes, valid)
        many = partial(multilevel_roi_align, scales=scales, size=bins)
        # One image after the other: under vmap every region would be read on every level, and its gradient is not
        # defined (vmap turns the choice of levels into `stop_gradient` of what is linear, which has no transpose).
        return jax.lax.map(lambda row: many(row[0], row[1], valid=row[2]), (maps, boxes, valid))
