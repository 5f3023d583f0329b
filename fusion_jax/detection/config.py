"""What a detector is made of, as one value that JSON holds; and the published ones by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from fusion_jax.detection.anchors import PUBLISHED, Anchors, read_anchors
from fusion_jax.encoders.norm import NormKind
from fusion_jax.records.arguments import as_json, from_json

__all__ = ["PUBLISHED_DETECTORS", "BackboneKind", "DetectorConfig", "FuseKind", "named_config"]

BackboneKind = Literal["mobilenet-v3-small", "resnet-50", "resnet-18", "cnn"]
FuseKind = Literal["add", "concatenate", "gate", "film"]
HeadKind = Literal["mask-rcnn", "retinanet"]

TRUNK_STRIDES = {
    "mobilenet-v3-small": (4, 8, 16, 32),
    "resnet-50": (4, 8, 16, 32),
    "resnet-18": (4, 8, 16, 32),
    "cnn": (4, 8, 16, 32),
}
"""Pixels a position of the maps that a trunk has."""

COARSEST = 128
"""Pixels a position of the coarsest level that a pyramid adds above its trunk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A detector; the defaults are those of Hsieh et al., on the baseline without clinical data.

    Attributes:
      classes: names of what is found, without the background.
      image_size: height and width that every image has, pixels.
      head: two stages with masks, or one stage.
      maps_fusion: add a map made of the clinical vector to the feature maps (3-D fusion).
      roi_fusion: append the clinical vector to what the head reads of a region (1-D fusion); with one stage, to every
        cell of the maps.
      numeric: clinical columns that are numbers; they come first in the source `clinical`.
      levels: number of levels of each categorical column; the columns follow as codes from 0, and any other code is
        a missing value.
      vector: width of the clinical vector where there is a categorical column: its embeddings share what the numbers
        leave. Numbers alone are the vector.
      spatialise: "blocks" that double the size up to that of an image, read by a second trunk; or "repeat", one dense
        layer whose answer stands in every position of the map.
      fuse: how two maps become one.
      fuse_depth: convolutions behind that, with norm and ReLU.
      fuse_residual: add both maps to what leaves these convolutions.
      clinical_mlp: widths of dense layers with norm and leaky ReLU before the map is made.
      backbone: trunk of the images, and another of the same kind for the clinical map.
      width: factor of the trunk's channels.
      pyramid: join the maps of several strides (FPN).
      channels: of the feature maps that heads read.
      anchors: their strides say which maps are read: one without a pyramid, several with it. Strides above 32 are made
        by halving the coarsest map.
      hidden: width of the dense layers of the box head, and of the convolutions of a one-stage head.
      masks: predict masks; a truth box is its own mask, filled.
      mask_hidden: width of the mask head.
      mask_rois: places for regions on which masks are trained, times the images of a batch, which share them. Regions
        with an object fill them in turn, image by image; those beyond are left out. The published detector trains all
        of them: `roi_batch * roi_positive`, or 128.
      rpn_foreground, rpn_background: overlap from which an anchor holds an object, and below which it holds none.
      rpn_batch, rpn_positive: anchors of an image that are trained on, and the largest part with an object.
      rpn_before_train, rpn_before: best anchors of each level that suppression looks at, in training and in use.
      rpn_after_train, rpn_after: proposals of an image that remain.
      rpn_overlap: at which a proposal suppresses another.
      roi_foreground, roi_background: overlaps of a proposal, as for anchors.
      roi_batch, roi_positive: proposals of an image that are trained on, and the largest part with an object.
      score_threshold: lowest score of a detection.
      overlap: at which a detection suppresses another of its class.
      detections: of an image, at most.
      one_stage_foreground, one_stage_background: overlaps of an anchor where there is one stage.
      one_stage_before: best candidates, anchor and class, that suppression looks at where there is one stage.
      norm: as in `fusion_jax.encoders.Norm`.
      dtype: of the computation; parameters, statistics, losses, boxes and scores are float32.
      remat: compute the blocks of trunks and of the clinical map again for the gradient, which saves memory.

    Example:
      >>> config = named_config("mdf-net", classes=("nodule",), numeric=2, levels=(2,))
      >>> DetectorConfig.from_json(config.to_json()) == config
      True

    References:
      Hsieh et al., "MDF-Net"; specs/mdf_net.md, sections 4 and 5.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int] = (512, 512)
    head: HeadKind = "mask-rcnn"
    maps_fusion: bool = False
    roi_fusion: bool = False
    numeric: int = 0
    levels: tuple[int, ...] = ()
    vector: int = 64
    spatialise: Literal["blocks", "repeat"] = "blocks"
    fuse: FuseKind = "add"
    fuse_depth: int = 0
    fuse_residual: bool = False
    clinical_mlp: tuple[int, ...] = ()
    backbone: BackboneKind = "mobilenet-v3-small"
    width: float = 1.0
    pyramid: bool = False
    channels: int = 64
    anchors: Anchors = PUBLISHED
    hidden: int = 64
    masks: bool = True
    mask_hidden: int = 256
    mask_rois: int = 8
    rpn_foreground: float = 0.7
    rpn_background: float = 0.3
    rpn_batch: int = 256
    rpn_positive: float = 0.5
    rpn_before_train: int = 2000
    rpn_before: int = 1000
    rpn_after_train: int = 2000
    rpn_after: int = 1000
    rpn_overlap: float = 0.3
    roi_foreground: float = 0.5
    roi_background: float = 0.5
    roi_batch: int = 512
    roi_positive: float = 0.25
    score_threshold: float = 0.05
    overlap: float = 0.2
    detections: int = 10
    one_stage_foreground: float = 0.5
    one_stage_background: float = 0.4
    one_stage_before: int = 1000
    norm: NormKind = "batch"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse what no network can be built of, before anything is compiled."""
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes are {self.classes}; expected at least one name, each of them once.")
        _check_choices(self)
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number between 0 and 1.")
        for stage in ("rpn", "roi", "one_stage"):
            high, low = getattr(self, f"{stage}_foreground"), getattr(self, f"{stage}_background")
            if low > high:
                raise ValueError(
                    f"{stage}_background is {low} and {stage}_foreground {high}; expected the background at or below "
                    "the foreground: between them a box counts as neither."
                )
        if len(self.image_size) != 2 or min(self.image_size) < 32:
            raise ValueError(f"image_size is {self.image_size}; expected height and width of at least 32 pixels.")
        if self.width <= 0:
            raise ValueError(f"width is {self.width}; expected a positive factor of the trunk's channels.")
        if self.fuse_residual and not self.fuse_depth:
            raise ValueError("fuse_residual needs fuse_depth above 0: without convolutions it would double the maps.")
        _check_anchors(self)
        _check_clinical(self)

    @property
    def reads_clinical(self) -> bool:
        """Whether the source `clinical` is read at all."""
        return self.maps_fusion or self.roi_fusion

    @property
    def clinical_columns(self) -> int:
        """Width of the source `clinical`: its numbers, and one code for each categorical column."""
        return self.numeric + len(self.levels)

    @property
    def clinical_width(self) -> int:
        """Width of the clinical vector."""
        return self.vector if self.levels else self.numeric

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that training returns, in order."""
        if self.head == "retinanet":
            return ("classes", "boxes")
        return ("objectness", "proposal_boxes", "classes", "boxes", *(("masks",) if self.masks else ()))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return as_json(fields | {"anchors": self.anchors._asdict()})

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "detector") -> "DetectorConfig":
        """The detector of such a mapping; fields that are left out have their defaults.

        Args:
          value: name of a field to its value.
          where: what a message calls the mapping, such as the path of a file.

        Raises:
          ValueError: an unknown field, `classes` missing, or a value that cannot be; the message names it.
          TypeError: a value of another type.
        """
        if not isinstance(value, Mapping) or "classes" not in value:
            raise ValueError(f"{where}: the field 'classes' is missing; expected the names of what is found.")
        try:
            anchors = read_anchors(value.get("anchors", PUBLISHED))
            others = {name: found for name, found in value.items() if name != "anchors"}
            return from_json(cls, others, where=where, fixed={"anchors": anchors})
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None


PUBLISHED_DETECTORS: dict[str, dict[str, Any]] = {
    "mask-rcnn": {},
    "msf-net-1d": {"roi_fusion": True},
    "msf-net-3d": {"maps_fusion": True},
    "mdf-net": {"maps_fusion": True, "roi_fusion": True},
    "retinanet": {"head": "retinanet"},
    "retinanet-1d": {"head": "retinanet", "roi_fusion": True},
    "retinanet-3d": {"head": "retinanet", "maps_fusion": True},
    "retinanet-dual": {"head": "retinanet", "maps_fusion": True, "roi_fusion": True},
}
"""Name to what it changes of the defaults.

Parameters with five classes, nine numbers and sex: Mask R-CNN 3,689,423; MSF-Net (1D) 3,693,629; MSF-Net (3D)
5,395,750; MDF-Net 5,399,846, or 5,399,860 with two numbers and sex."""


def named_config(name: str, **changes: Any) -> DetectorConfig:
    """A published detector with changes.

    Args:
      name: one of `PUBLISHED_DETECTORS`.
      changes: fields of `DetectorConfig`; `classes` has to be among them, and the clinical columns of a fused one.

    Raises:
      ValueError: an unknown name, or fields that do not fit.

    Example:
      >>> named_config("msf-net-1d", classes=("nodule",), numeric=3).roi_fusion
      True
    """
    if name not in PUBLISHED_DETECTORS:
        raise ValueError(f"there is no detector {name!r}; known: {', '.join(PUBLISHED_DETECTORS)}.")
    return DetectorConfig.from_json({**PUBLISHED_DETECTORS[name], **changes}, name)


_AT_LEAST_ONE = (
    *("vector", "channels", "hidden", "mask_hidden", "mask_rois", "rpn_batch", "rpn_before_train", "rpn_before"),
    *("rpn_after_train", "rpn_after", "roi_batch", "detections", "one_stage_before"),
)
_FRACTIONS = (
    *("rpn_foreground", "rpn_background", "rpn_positive", "rpn_overlap", "roi_foreground", "roi_background"),
    *("roi_positive", "score_threshold", "overlap", "one_stage_foreground", "one_stage_background"),
)
_CHOICES = {
    "head": get_args(HeadKind),
    "spatialise": ("blocks", "repeat"),
    "fuse": get_args(FuseKind),
    "backbone": get_args(BackboneKind),
    "norm": get_args(NormKind),
    "dtype": ("float32", "bfloat16"),
}


def _check_choices(config: DetectorConfig) -> None:
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name} is {getattr(config, name)!r}; expected one of {', '.join(choices)}.")


def _check_anchors(config: DetectorConfig) -> None:
    strides = config.anchors.strides
    read_anchors(config.anchors)
    there = TRUNK_STRIDES[config.backbone]
    if not config.pyramid and (len(strides) != 1 or strides[0] not in there):
        raise ValueError(
            f"anchors.strides are {strides}; without a pyramid {config.backbone} gives one map, of stride "
            f"{', '.join(map(str, there))}. Choose one of them, or set pyramid."
        )
    expected = tuple(strides[0] * 2**level for level in range(len(strides)))
    if strides != expected or strides[0] not in there or strides[-1] > COARSEST:
        raise ValueError(
            f"anchors.strides are {strides}; expected strides that double, from one of "
            f"{', '.join(map(str, there))} up to at most {COARSEST}."
        )


def _check_clinical(config: DetectorConfig) -> None:
    if not config.reads_clinical:
        return
    if config.numeric < 0 or any(levels < 1 for levels in config.levels):
        raise ValueError(f"numeric is {config.numeric} and levels {config.levels}; expected counts of columns.")
    if not config.clinical_columns:
        raise ValueError(
            "a detector with maps_fusion or roi_fusion reads clinical columns, and numeric is 0 and levels are empty. "
            "Say how many numbers there are and how many levels each category has, or leave the fusion out."
        )
    if config.levels and config.vector - config.numeric < len(config.levels):
        raise ValueError(
            f"vector is {config.vector}: {config.numeric} numbers leave no room for the embeddings of "
            f"{len(config.levels)} categories. Expected at least {config.numeric + len(config.levels)}."
        )
