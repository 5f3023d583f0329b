"""Array kernels: convolution, pooling, resampling, boxes, suppression and RoIAlign."""

from fusion_jax.ops.boxes import (
    box_area,
    box_giou,
    box_iobb,
    box_iou,
    clip_boxes,
    convert_boxes,
    decode_boxes,
    encode_boxes,
)
from fusion_jax.ops.conv import conv, conv_transpose
from fusion_jax.ops.nms import Kept, Rescored, nms, soft_nms
from fusion_jax.ops.pool import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
)
from fusion_jax.ops.resize import resize
from fusion_jax.ops.roi_align import multilevel_roi_align, roi_align
from fusion_jax.ops.warp import affine_matrix, affine_warp, elastic_displacement, elastic_warp, warp

__all__ = [
    "Kept",
    "Rescored",
    "adaptive_average_pool",
    "adaptive_max_pool",
    "affine_matrix",
    "affine_warp",
    "average_pool",
    "box_area",
    "box_giou",
    "box_iobb",
    "box_iou",
    "clip_boxes",
    "conv",
    "conv_transpose",
    "convert_boxes",
    "decode_boxes",
    "elastic_displacement",
    "elastic_warp",
    "encode_boxes",
    "global_average_pool",
    "global_max_pool",
    "max_pool",
    "multilevel_roi_align",
    "nms",
    "resize",
    "roi_align",
    "soft_nms",
    "warp",
]
