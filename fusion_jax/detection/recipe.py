"""A detector and how it is trained: from a cohort with boxes to a folder, and from the folder to detections."""

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Key
from fusion_jax.data.clinical import ClinicalValues
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split
from fusion_jax.detection.anchors import Anchors, anchor_recall, fit_anchors, read_anchors
from fusion_jax.detection.columns import ClinicalVector, Missing, fit_clinical
from fusion_jax.detection.config import PUBLISHED_DETECTORS, DetectorConfig
from fusion_jax.detection.inputs import DetectorInputs, at_size, box_image, fit_window, own_boxes
from fusion_jax.detection.trained import DIVISION, FORMAT, KIND, RECORD, WEIGHTS, find
from fusion_jax.evaluation.detection_matching import Overlap
from fusion_jax.records import run_record, write_json
from fusion_jax.records.arguments import as_json, close_to, from_json
from fusion_jax.wording import counted

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["DetectionRecipe", "Prepared", "check", "checked_trunks", "make_detection_recipe", "prepare"]

ANCHORS = "anchors.json"

RECALL_WARNING = 0.9
"""Part of the boxes that the anchors should reach; at 512 pixels the published ones reach 11 % of the nodules of
JSRT."""

FEWEST_BOXES = 4
"""Rows of boxes of a case; more come in powers of two, so that folds share their programs."""

logger = logging.getLogger("fusion_jax.detection.recipe")

Report = Callable[[Any], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionRecipe:
    """A published detector, with or without clinical data, and its training.

    The defaults are the published ones (stochastic gradient descent, 100 epochs, images of 512 x 512), with clinical
    values scaled by the training cases. The epoch with the highest average precision on the validation cases is taken;
    a split without validation cases, or without boxes in them, is trained to the last epoch.

    Attributes:
      name: of the detector, one of `fusion_jax.detection.config.PUBLISHED_DETECTORS`.
      config: changes of `fusion_jax.detection.config.DetectorConfig`, such as `backbone`, `fuse` or `rpn_batch`.
      image: source of the images; by default the one that the boxes lie on.
      columns: declarations of clinical columns; suggested from the training cases by default.
      features: clinical columns that are read; all by default.
      clinical_values: "encoded" (scaled by the training cases) or "native" (in their units, as published).
      missing: what fills gaps: the "mean" of the training cases, or that and a "mask" that the model sees.
      image_size: rows and columns that images of any size are brought to.
      window: values of the images that become 0 and 1; by default the full scale that holds the training images.
      anchors: "published", "fit" to the boxes of the training cases (on one map of stride 8, 16 or 32, or with a
        pyramid on all three), or `sizes`, `ratios` and `strides`.
      weights: trunk ("image" or "clinical") to a file of pretrained weights: `file`, and if wanted `sha256`, `origin`.
      objective: the losses weighted by trained uncertainties as the published code has them ("homoscedastic"), as the
        paper prints them ("homoscedastic-paper"), or their "sum".
      optimiser, learning_rate, momentum, weight_decay, decayed, schedule, warmup, decay_every, decay_factor, clip_norm,
        rates: see `fusion_jax.training.optimiser.Optimiser`.
      epochs: at most, or exactly where there are no validation cases.
      patience: epochs without improvement that are let pass; None trains to the last epoch, and takes the best.
      min_epochs: in any case.
      overlap: what average precision on the validation cases counts as a hit: half of the union (iou) or half of the
        detection's own box (iobb).
      batch_size: cases of a step.
      augment: "flip" mirrors half of the images, with their boxes.
      precision: of the computation.
      gigabytes: of memory that images may take; what does not fit is read again in every epoch.

    References:
      Hsieh et al., MDF-Net; specs/mdf_net.md, section 5.
    """

    name: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image: str | None = None
    columns: tuple[Mapping[str, Any], ...] | None = None
    features: tuple[str, ...] = ()
    clinical_values: ClinicalValues = "encoded"
    missing: Missing = "mean"
    image_size: tuple[int, ...] = (512, 512)
    window: tuple[float, ...] | None = None
    anchors: str | Mapping[str, Any] = "published"
    weights: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    objective: Literal["homoscedastic", "homoscedastic-paper", "sum"] = "homoscedastic"
    optimiser: Literal["adam", "adamw", "sgd"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-5
    decayed: Literal["kernels", "all"] = "all"
    schedule: Literal["constant", "step", "cosine", "plateau"] = "constant"
    warmup: float = 0.0
    decay_every: int = 20
    decay_factor: float = 0.1
    clip_norm: float | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: int = 100
    patience: int | None = None
    min_epochs: int = 0
    overlap: Overlap = "iou"
    batch_size: int = 4
    augment: Literal["flip", "none"] = "flip"
    precision: Literal["float32", "bfloat16"] = "float32"
    gigabytes: float = 4.0

    def __post_init__(self) -> None:
        where = f"recipe {self.name!r}"
        if self.name not in PUBLISHED_DETECTORS:
            raise ValueError(f"no detector {self.name!r}; {close_to(self.name, PUBLISHED_DETECTORS)}")
        limits = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "gigabytes": (self.gigabytes >= 0, "0 or more"),
            "image_size": (len(self.image_size) == 2 and min(self.image_size) >= 1, "rows and columns"),
            "window": (
                self.window is None or (len(self.window) == 2 and self.window[0] < self.window[1]),
                "the value that becomes 0 and a larger one that becomes 1",
            ),
            "anchors": (
                not isinstance(self.anchors, str) or self.anchors in ("published", "fit"),
                "'published', 'fit', or an object with sizes, ratios and strides",
            ),
        }
        for field, (fits, expected) in limits.items():
            if not fits:
                raise ValueError(f"{where}: {field} is {getattr(self, field)!r}; expected {expected}.")
        for key, field in OF_THE_RECIPE.items():
            if key in self.config:
                raise ValueError(f"{where}: config has {key!r}, which follows from {field}. Leave it out there.")
        if not isinstance(self.anchors, str):
            read_anchors(self.anchors)

    def arguments(self) -> dict[str, Any]:
        """What differs from the defaults."""
        default = DetectionRecipe(name=self.name)
        fields = [field.name for field in dataclasses.fields(self) if field.name != "name"]
        given = {field: as_json(getattr(self, field)) for field in fields}
        return {field: value for field, value in given.items() if value != as_json(getattr(default, field))}

    @property
    def reads_clinical(self) -> bool:
        """Whether the detector reads clinical data."""
        given = {**PUBLISHED_DETECTORS[self.name], **self.config}
        return bool(given.get("maps_fusion")) or bool(given.get("roi_fusion"))

    def fit(self, cohort: Cohort, split: Split, key: Key, folder: Path, *, report: Report | None = None) -> None:
        """Train the detector on a split, and leave all that predictions need in a folder.

        Called again on the same folder it goes on where it was killed.

        Args:
          cohort: with boxes, and with the training and validation cases of the split; no other case of it is read.
          split: `train` is fitted; `validation` decides on the epoch.
          key: of everything random.
          folder: of this training alone.
          report: told how far it is.

        Raises:
          ValueError: a cohort, columns, anchors or settings that do not fit; the message names them. All of them are
            found before anything is compiled.
        """
        from fusion_jax.detection.training import train
        from fusion_jax.encoders.stored import save_arrays

        started = time.perf_counter()
        folder = Path(folder)
        prepared = prepare(self, cohort, split)
        write_json(folder / DIVISION, {"train": prepared.split.train, "validation": prepared.split.validation})
        write_json(folder / ANCHORS, prepared.anchors_record())
        settings = {
            "recipe": self.name,
            "arguments": self.arguments(),
            "inputs": _digest([prepared.inputs.to_json(), prepared.config.to_json()]),
            "cases": _digest([prepared.split.train, prepared.split.validation]),
        }
        trained = train(self, prepared, key=key, folder=folder, settings=settings, report=report)
        save_arrays(folder / WEIGHTS, trained.variables)
        facts = {
            **trained.facts,
            "left_out": prepared.left_out,
            "cases": {"train": len(prepared.split.train), "validation": len(prepared.split.validation)},
            "anchor_recall": prepared.recall.overall,
            "seconds": time.perf_counter() - started,
        }
        content = {
            "format": FORMAT,
            "kind": KIND,
            "name": self.name,
            "arguments": self.arguments(),
            "cohort": cohort.name,
            "inputs": prepared.inputs.to_json(),
            "config": prepared.config.to_json(),
            "facts": facts,
            "run": run_record(),
        }
        write_json(folder / RECORD, content)

    def predict(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> "pandas.DataFrame":
        """Detections in rows of any cohort with such images and columns; boxes are not looked at.

        Returns:
          One row a detection with the columns of `fusion_jax.detection.tables.DETECTION_COLUMNS`, boxes in the pixels
          of the cohort's images.
        """
        return find(folder, cohort, rows).table


OF_THE_RECIPE = {
    "classes": "the boxes of the cohort",
    "image_size": "the argument `image_size`",
    "anchors": "the argument `anchors`",
    "numeric": "the clinical columns",
    "levels": "the clinical columns",
    "dtype": "the argument `precision`",
}
"""Fields of the detector that follow from something else."""


def make_detection_recipe(name: str, arguments: Mapping[str, Any] | None = None) -> DetectionRecipe:
    """The recipe of a detector.

    Args:
      name: of the detector.
      arguments: of `DetectionRecipe` as JSON holds them; the others have their defaults.

    Raises:
      ValueError: no such detector, argument or choice; the message names the close ones.
      TypeError: an argument of another type.

    Example:
      >>> make_detection_recipe("mdf-net", {"epochs": 5}).arguments()
      {'epochs': 5}
    """
    if name not in PUBLISHED_DETECTORS:
        raise ValueError(f"no detector {name!r}; {close_to(name, PUBLISHED_DETECTORS)}")
    return from_json(DetectionRecipe, arguments, where=f"recipe {name!r}", fixed={"name": name})


class Prepared(NamedTuple):
    """What a detector is trained on.

    Attributes:
      split: the training and validation cases that have an image.
      left_out: training cases without an image.
      inputs: fitted to the training cases.
      cohort: ready for batches.
      config: the detector.
      recall: of its anchors on the training boxes.
      max_boxes: rows of boxes of a case.
    """

    split: Split
    left_out: int
    inputs: DetectorInputs
    cohort: Cohort
    config: DetectorConfig
    recall: Any
    max_boxes: int

    def anchors_record(self) -> dict[str, Any]:
        """Design and recall of the anchors, for a file."""
        # The last classes may have no training box.
        by_class = dict(itertools.zip_longest(self.inputs.classes, self.recall.by_class, fillvalue=math.nan))
        return {
            **self.config.to_json()["anchors"],
            "boxes": len(self.recall.best),
            "recall": self.recall.overall,
            "recall_by_class": {name: None if np.isnan(part) else part for name, part in by_class.items()},
        }


def prepare(recipe: DetectionRecipe, cohort: Cohort, split: Split) -> Prepared:
    """Everything that training needs and that can be refused: images, columns, anchors and the detector.

    The part of the training boxes that the anchors reach is told to the log, as a warning below 90 %.

    Args:
      recipe: settings.
      cohort: with the training and validation cases.
      split: of it; test cases are not looked at.

    Raises:
      ValueError: no boxes or columns, images or settings that do not fit; the message names them.
    """
    fold = f"r{split.repeat}_f{split.fold}"
    image, split, lacking, clinical = _chosen(recipe, cohort, split)
    if lacking:
        logger.warning("%s: %s without %r left out of training", cohort.name, counted(lacking, "case"), image)
    size = (int(recipe.image_size[0]), int(recipe.image_size[1]))
    sized = at_size(cohort, image, size, gigabytes=recipe.gigabytes)
    sized = sized.take(np.sort(np.concatenate([*split.rows(sized)])))
    train = split.rows(sized).train
    window = fit_window(sized, image, train) if recipe.window is None else (recipe.window[0], recipe.window[1])
    inputs = DetectorInputs(image, size, window, clinical, tuple(cohort.box_classes))
    ready = inputs.apply(sized, split.train)
    boxes = [own_boxes(ready)[row] for row in train.tolist()]
    corners = np.concatenate([np.zeros((0, 4)), *(own.corners for own in boxes)])
    codes = np.concatenate([np.zeros(0, np.int64), *(own.classes for own in boxes)])
    if not len(corners):
        raise ValueError(
            f"{cohort.name}: no box in {counted(len(train), 'training case')}; expected some to learn from. Draw other "
            "folds, or check the table of boxes."
        )
    config = _draft(recipe, inputs.classes, size, clinical, corners)
    recall = anchor_recall(config.anchors, corners, size, classes=codes)
    _tell_recall(cohort, fold, config.anchors, recall.overall, len(corners), recipe)
    return Prepared(split, lacking, inputs, ready, config, recall, _rows_of_boxes(ready))


def check(recipe: DetectionRecipe, cohort: Cohort, split: Split) -> None:
    """Refuse what `prepare` would refuse, as far as no image has to be read for it.

    Raises:
      ValueError: as `prepare`.
    """
    _chosen(recipe, cohort, split)


def _chosen(recipe: DetectionRecipe, cohort: Cohort, split: Split) -> tuple[str, Split, int, ClinicalVector | None]:
    """Image, cases that have it, how many do not, and the clinical vector; settings are checked."""
    image = box_image(cohort, recipe.image)
    if not cohort.box_classes:
        raise ValueError(f"{cohort.name}: its boxes have no classes; expected `box_classes`, one name or more.")
    rows = split._replace(test=()).rows(cohort)
    kept, lacking = [], 0
    for part in (rows.train, rows.validation):
        there = cohort.present[image][part]
        lacking += int((~there).sum())
        kept.append(tuple(cohort.case_id[int(row)] for row in part[there]))
    if not kept[0]:
        raise ValueError(f"{cohort.name}: no training case has {image!r}; expected some.")
    split = split._replace(train=kept[0], validation=kept[1], test=())
    clinical = None
    if recipe.reads_clinical:
        clinical = fit_clinical(
            cohort,
            split.train,
            fold=f"r{split.repeat}_f{split.fold}",
            columns=recipe.columns,
            features=recipe.features,
            values=recipe.clinical_values,
            missing=recipe.missing,
        )
    size = int(recipe.image_size[0]), int(recipe.image_size[1])
    checked_trunks(recipe, _draft(recipe, cohort.box_classes, size, clinical, None))
    return image, split, lacking, clinical


def checked_trunks(recipe: DetectionRecipe, config: DetectorConfig) -> tuple[str, ...]:
    """Trunks of a detector that may have pretrained weights; those of the recipe are there.

    Raises:
      ValueError: weights of another trunk, or something else than a file.
      FileNotFoundError: no such file.
    """
    trunks = ("image", "clinical") if config.maps_fusion and config.spatialise == "blocks" else ("image",)
    for name, file in recipe.weights.items():
        if name not in trunks:
            raise ValueError(f"recipe {recipe.name!r}: weights: no trunk {name!r}; {close_to(name, trunks)}")
        if "file" not in file or set(file) - {"file", "sha256", "origin"}:
            raise ValueError(
                f"recipe {recipe.name!r}: weights of {name!r} are {dict(file)}; expected file, and perhaps sha256 and "
                "origin."
            )
        if not Path(file["file"]).is_file():
            raise FileNotFoundError(f"{file['file']}: no such file; expected pretrained weights of the trunk {name!r}.")
    return trunks


def _draft(
    recipe: DetectionRecipe,
    classes: Sequence[str],
    size: tuple[int, int],
    clinical: ClinicalVector | None,
    boxes: Float[np.ndarray, "m 4"] | None,
) -> DetectorConfig:
    """The detector, with the anchors that fit the boxes where they are asked for and known."""
    fields: dict[str, Any] = {**PUBLISHED_DETECTORS[recipe.name], **recipe.config}
    fields |= {"classes": list(classes), "image_size": list(size), "dtype": recipe.precision}
    if clinical is not None:
        fields |= {"numeric": len(clinical.numbers), "levels": list(clinical.levels)}
    if not isinstance(recipe.anchors, str):
        fields["anchors"] = read_anchors(recipe.anchors)
    where = f"recipe {recipe.name!r}: config"
    config = DetectorConfig.from_json(fields, where)
    if recipe.anchors == "published" and config.pyramid:
        raise ValueError(
            f"{where} has a pyramid, and the published anchors stand on one map. Fit anchors "
            '({"anchors": "fit"}), or name sizes and strides of several levels.'
        )
    if recipe.anchors == "fit" and boxes is not None:
        fitted = fit_anchors(boxes, size, pyramid=config.pyramid)
        config = DetectorConfig.from_json({**fields, "anchors": fitted}, where)
    for side, pixels in zip(("rows", "columns"), size, strict=True):
        stride = max(config.anchors.strides)
        if pixels % stride:
            raise ValueError(
                f"recipe {recipe.name!r}: image_size has {pixels} {side}; expected a multiple of {stride}, the stride "
                f"of the anchors, such as {max(1, round(pixels / stride)) * stride}."
            )
    return config


def _tell_recall(
    cohort: Cohort, fold: str, anchors: Anchors, recall: float, boxes: int, recipe: DetectionRecipe
) -> None:
    sizes = ", ".join(f"{size:g}" for level in anchors.sizes for size in level)
    text = (
        f"{cohort.name}, fold {fold}: anchors of sizes {sizes} on stride {', '.join(map(str, anchors.strides))} reach "
        f"{recall:.0%} of {boxes} training boxes at IoU 0.5"
    )
    if recall >= RECALL_WARNING:
        logger.info("%s.", text)
    else:
        way_out = 'Fit them: {"anchors": "fit"}' if recipe.anchors != "fit" else "Use larger images, or a finer stride"
        logger.warning("%s; what no anchor reaches is seldom found. %s.", text, way_out)


def _rows_of_boxes(cohort: Cohort) -> int:
    most = max([1, *(len(own.corners) for own in own_boxes(cohort))])
    return max(FEWEST_BOXES, 1 << (most - 1).bit_length())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
