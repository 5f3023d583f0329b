"""Boxes from a user's files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_jax.commands.evaluate_boxes import Config
from fusion_jax.data.tables import NoRowsError, read_table
from fusion_jax.records.detections import (
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    BoxDetections,
    BoxTruth,
    check_case_list,
    check_detections,
    check_truth,
    coco_detections,
    coco_truth,
)
from fusion_jax.wording import counted

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["read_boxes"]


def read_boxes(config: Config) -> tuple[BoxTruth, list[BoxDetections], list[str]]:
    """Truth, detections of every model, and what a reader of the results has to know about them.

    Raises:
      ValueError: boxes that cannot be used; the message names file and row.
      OSError: a file that cannot be read.
    """
    cases = None if config.cases is None else check_case_list(_table(config.cases), where=str(config.cases))
    where = str(config.truth)
    if config.truth.suffix.lower() == ".json":
        if cases is not None or config.classes:
            raise ValueError(f"{where} lists all images and categories; leave --cases and --classes out.")
        truth = coco_truth(_json(config.truth), where=where)
    else:
        truth = check_truth(_table(config.truth), where=where, cases=cases, classes=config.classes or None)
    models: list[BoxDetections] = []
    sources: dict[str, Path] = {}
    for path, name in zip(config.detections, _names(config.detections), strict=True):
        if path.suffix.lower() == ".json":
            found = coco_detections(_json(path), truth, where=str(path), model=name)
        else:
            found = check_detections(_table(path, none_found=True), truth, where=str(path), model=name)
        for model in found:
            if model.model in sources:
                raise ValueError(
                    f"{path} and {sources[model.model]} both hold detections of model {model.model!r}. Put them into "
                    "one file, or give the models different names in a column `model`."
                )
            sources[model.model] = path
        models += found
    notes = []
    if config.min_score is not None:
        models, notes = _above(models, config.min_score)
    return truth, models, notes


def _above(models: Sequence[BoxDetections], least: float) -> tuple[list[BoxDetections], list[str]]:
    left, notes = [], []
    for model in models:
        kept = model.score >= least
        left.append(
            BoxDetections(model.model, model.case[kept], model.label[kept], model.boxes[kept], model.score[kept])
        )
        notes.append(
            f"{model.model}: {counted(int((~kept).sum()), 'detection')} of {len(kept)} with a score below {least:g} "
            "were left out."
        )
    return left, notes


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of files without their suffixes, and with their folders where that is not enough."""
    stems = [path.name.split(".")[0] or path.name for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]


def _table(path: Path, *, none_found: bool = False) -> "pandas.DataFrame":
    """A table; a detector may have found nothing, but somebody has looked at some cases."""
    try:
        return read_table(path, text=TEXT_COLUMNS, types=dict.fromkeys(NUMBER_COLUMNS, "number"))
    except NoRowsError as error:
        if not none_found:
            raise
        import pandas as pd

        return pd.DataFrame(columns=list(error.columns))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); expected COCO's, or a table with the suffix .csv.") from None
