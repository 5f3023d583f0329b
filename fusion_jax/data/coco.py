"""Cohorts from and to COCO's JSON: images with boxes, a clinical table beside them, and what detectors found.

Cases are called by the `id` of their image, as `fusion-jax evaluate-boxes` calls them, so that detections of a cohort
read here can be judged against the same file. Segmentations are not read: a mask that a detector learns is its box.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fusion_jax.data.cohort import Boxes, Cohort, Columns, Lazy
from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.tables import as_written, read_table
from fusion_jax.records import write_json
from fusion_jax.records.detections import BOX_COLUMNS, BoxTruth, coco_truth
from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["CocoIds", "coco_ids", "read_coco", "write_coco", "write_coco_results"]

logger = logging.getLogger("fusion_jax.data.coco")

FilePath = str | os.PathLike[str]

ID_KEYS = ("case_id", "image_id")
FILE_KEYS = ("file_name", "filename")
PATIENT = "patient_id"
OWN_COLUMNS = ("file_name", "image_height", "image_width")
"""Columns of the cohort's table that come from the annotations."""


class CocoIds(NamedTuple):
    """How one set of COCO files calls images and classes.

    Attributes:
      images: case id to the `id` of its image, a number or text.
      categories: class to the `id` of its category.
    """

    images: Mapping[str, int | str]
    categories: Mapping[str, int]


def read_coco(
    annotations: FilePath,
    images: FilePath | None = None,
    *,
    table: "FilePath | pandas.DataFrame | None" = None,
    case: str | None = None,
    patient: str | None = None,
    inputs: Sequence[str] | None = None,
    name: str | None = None,
) -> Cohort:
    """Cohort of the images, boxes and categories of a COCO file, with a clinical table of the same images.

    Images are read when asked for (PNG, JPEG, TIFF, DICOM …). Those without a box stay. Boxes of a crowd are left out,
    and so is a box that its image has already, with the same class; boxes that reach over the edge of their image end
    there. The log counts all three. An image without a row of the table lacks the source `clinical`, and a row without
    an image is left out; the log names both.

    Args:
      annotations: JSON with `images` (`id`, `file_name`; `width`, `height` and `patient_id` are optional), `categories`
        and `annotations` with `bbox` [x, y, width, height] in pixels.
      images: folder that the file names are relative to; that of the annotations by default.
      table: CSV, Excel or Parquet file, or a data frame; one row an image.
      case: column of the table that names the image, by its `id` or its file name, with or without folder and suffix;
        `case_id`, `image_id`, `file_name` or `filename` by default.
      patient: column of the table with the patient; `patient_id` by default, if it is there. Without any patient, in
        the table or in the annotations, every image counts as a patient of its own, and the log warns.
      inputs: columns of the table that a model may read; by default all but those that name image and patient (any of
        the names above): leave outcomes out of the table, or name the inputs.
      name: of the cohort; by default that of the annotations' file.

    Returns:
      Cohort with the sources `image` and, with a table, `clinical`; boxes with the categories, in the order of their
      ids, as classes; no label.

    Raises:
      FileNotFoundError: the annotations, the table or an image is missing; the message names the file.
      UnreadableFile: the annotations are no JSON, or the table no table.
      ValueError: images, boxes or rows that do not fit together; the message names file and image or row.

    Example:
      >>> cohort = read_coco("train.json", "images/", table="vitals.csv")  # doctest: +SKIP
      >>> cohort.box_classes  # doctest: +SKIP
      ('mass', 'nodule')

    References:
      Lin et al. 2014, and https://cocodataset.org/#format-data.
    """
    import pandas as pd

    path = Path(annotations)
    content = _json(path)
    truth = coco_truth(content, where=str(path))
    entries = {str(entry["id"]): entry for entry in content["images"]}
    folder = path.parent if images is None else Path(images)
    names = [_file_name(path, case_id, entries[case_id]) for case_id in truth.cases]
    files = tuple(f"{folder}{os.sep}{os.path.normpath(own)}" for own in names)
    _check_files(path, truth.cases, files)
    sizes = [_size(path, case_id, entries[case_id], file) for case_id, file in zip(truth.cases, files, strict=True)]
    own = pd.DataFrame(
        dict(zip(OWN_COLUMNS, (names, *zip(*sizes, strict=True)), strict=True)),
        index=pd.Index(truth.cases, dtype=object, name="case_id"),
    )
    joined = None
    patients = None if truth.patients is None else dict(zip(truth.cases, truth.patients, strict=True))
    if table is not None:
        joined = _joined(table, names, truth.cases, case, patient, inputs)
        own = pd.concat([own, joined.cells], axis=1)
        patients = _one_patient(joined, patients)
    elif case or patient or inputs is not None:
        raise ValueError(f"{path}: columns of a table are named, and no table is given. Give it as `table`.")
    if patients is None:
        logger.warning(
            "%s: no patient ids; each of %d images counts as a patient of its own. Two images of one patient may then "
            "fall on both sides of a split",
            path,
            len(truth.cases),
        )
    cohort = Cohort.from_arrays(
        {"image": Lazy(_Files(files, tuple(sizes)), np.arange(len(files)), "image", _Extents(files, tuple(names)))},
        table=own,
        patient_id=None if patients is None else [patients[case_id] for case_id in truth.cases],
        roles=None if joined is None else dict.fromkeys(joined.inputs, "input"),
        boxes=_boxes(path, truth, sizes),
        box_classes=truth.classes,
        name=name or path.stem,
    )
    if joined is None:
        return cohort
    return cohort.with_source("clinical", Columns(joined.inputs, len(cohort)), joined.known)


def write_coco(path: FilePath, cohort: Cohort) -> CocoIds:
    """Write the images, patients and boxes of a cohort as COCO's JSON, with categories numbered from 1.

    The ids of images are the case ids: numbers where all of them are, text otherwise. Sizes come from the columns that
    `read_coco` makes, otherwise every image is read.

    Args:
      path: of the JSON.
      cohort: with boxes.

    Returns:
      The ids that were written.

    Raises:
      ValueError: the cohort has no boxes, or several images of which none is named in `boxes_of`.

    Example:
      >>> import tempfile
      >>> box = Boxes(np.array([[1.0, 2.0, 4.0, 8.0]]), np.zeros(1, np.int32))
      >>> cohort = Cohort.from_arrays({"image": np.zeros((1, 9, 9, 1))}, boxes=[box], box_classes=("mass",))
      >>> path = Path(tempfile.mkdtemp()) / "truth.json"
      >>> write_coco(path, cohort).images
      {'case_0': 'case_0'}
      >>> json.loads(path.read_text())["annotations"][0]["bbox"]
      [1.0, 2.0, 3.0, 6.0]
    """
    if cohort.boxes is None:
        raise ValueError(f"{cohort.name}: no boxes; expected a cohort with boxes, as of a detection study.")
    ids = coco_ids(cohort)
    names = cohort.table["file_name"].tolist() if "file_name" in cohort.table.columns else None
    listed_images, found = [], []
    for row, case_id in enumerate(cohort.case_id):
        height, width = _image_size(cohort, row)
        listed_images.append(
            {
                "id": ids.images[case_id],
                "file_name": f"{case_id}.png" if names is None else names[row],
                "width": width,
                "height": height,
                PATIENT: str(cohort.patient_id[row]),
            }
        )
        for corners, kind in zip(cohort.boxes[row].corners, cohort.boxes[row].classes, strict=True):
            x, y, right, bottom = (float(value) for value in corners)
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": ids.images[case_id],
                    "category_id": ids.categories[cohort.box_classes[int(kind)]],
                    "bbox": [x, y, right - x, bottom - y],
                    "area": (right - x) * (bottom - y),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.categories.items()]
    write_json(Path(path), {"images": listed_images, "categories": categories, "annotations": found})
    return ids


def coco_ids(truth: FilePath | Cohort) -> CocoIds:
    """How a COCO file, or the file that `write_coco` makes of a cohort, calls images and classes.

    Args:
      truth: the JSON with the annotations, or a cohort with boxes.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableFile: it is no JSON.
      ValueError: it is no truth of COCO.

    Example:
      >>> cohort = Cohort.from_arrays(
      ...     {"image": np.zeros((1, 9, 9, 1))}, case_id=["12"], boxes=[Boxes(np.zeros((0, 4)), np.zeros(0, int))],
      ...     box_classes=("mass", "nodule"),
      ... )
      >>> coco_ids(cohort)
      CocoIds(images={'12': 12}, categories={'mass': 1, 'nodule': 2})
    """
    if isinstance(truth, Cohort):
        numbers = all(
            case_id.isascii() and case_id.isdecimal() and case_id == str(int(case_id)) for case_id in truth.case_id
        )
        images = {case_id: int(case_id) if numbers else case_id for case_id in truth.case_id}
        return CocoIds(images, {name: number for number, name in enumerate(truth.box_classes, start=1)})
    path = Path(truth)
    content = _json(path)
    checked = coco_truth(content, where=str(path))
    categories = dict(zip(checked.classes, checked.categories or (), strict=True))
    return CocoIds({str(entry["id"]): entry["id"] for entry in content["images"]}, categories)


def write_coco_results(
    path: FilePath,
    detections: "pandas.DataFrame",
    ids: CocoIds,
    *,
    segmentations: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write the detections of one model as COCO's results: a list with `image_id`, `category_id`, `bbox`, `score`.

    Args:
      path: of the JSON.
      detections: one row a detection with `case_id`, `x0`, `y0`, `x1`, `y1` in pixels of the original image, `class`
        and `score`.
      ids: of the truth, from `coco_ids` or `write_coco`.
      segmentations: of every row, as from `run_length`.

    Raises:
      ValueError: a column is missing, several models, a case or class that the truth does not have, a box or score that
        is not finite, or segmentations that are not one a row; the message names the row.

    Example:
      >>> import pandas as pd, tempfile
      >>> found = {"case_id": ["12"], "x0": [1.0], "y0": [2.0], "x1": [4.0], "y1": [8.0], "class": ["mass"]}
      >>> path = Path(tempfile.mkdtemp()) / "results.json"
      >>> write_coco_results(path, pd.DataFrame(found | {"score": [0.9]}), CocoIds({"12": 12}, {"mass": 1}))
      >>> json.loads(path.read_text())
      [{'image_id': 12, 'category_id': 1, 'bbox': [1.0, 2.0, 3.0, 6.0], 'score': 0.9}]
    """
    lacking = [column for column in ("case_id", *BOX_COLUMNS, "class", "score") if column not in detections.columns]
    if lacking:
        raise ValueError(f"detections: no column {listed(lacking)}; the table has {listed(detections.columns, 12)}.")
    models = set(detections["model"].astype(str)) if "model" in detections.columns else set()
    if len(models) > 1:
        raise ValueError(
            f"detections: of several models ({listed(sorted(models))}); COCO's results are of one. Write one file each."
        )
    if segmentations is not None and len(segmentations) != len(detections):
        raise ValueError(f"{len(segmentations)} segmentations of {len(detections)} detections; expected one a row.")
    cases, classes = detections["case_id"].astype(str).tolist(), detections["class"].astype(str).tolist()
    for what, column, known in (("case", cases, ids.images), ("class", classes, ids.categories)):
        for row, word in enumerate(column):
            if word not in known:
                raise ValueError(
                    f"detections: row {row} is of {what} {word!r}, which the truth does not have; it has "
                    f"{listed(known, 6)}. Take the ids from the truth of these images (`coco_ids`)."
                )
    numbers = detections[[*BOX_COLUMNS, "score"]].to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise ValueError(f"detections: row {bad[0]} holds {numbers[bad[0]].tolist()}; expected finite box and score.")
    results = []
    for row, (case_id, kind, (x, y, right, bottom, score)) in enumerate(
        zip(cases, classes, numbers.tolist(), strict=True)
    ):
        result = {
            "image_id": ids.images[case_id],
            "category_id": ids.categories[kind],
            "bbox": [x, y, right - x, bottom - y],
            "score": score,
        }
        if segmentations is not None:
            result["segmentation"] = segmentations[row]
        results.append(result)
    write_json(Path(path), results)


# Images.


@dataclasses.dataclass(frozen=True)
class _Files:
    """Image files with the sizes that their boxes count in; loader workers get this by pickle."""

    paths: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def __call__(self, row: int) -> Image:
        from fusion_jax.data.readers import read_image

        image = read_image(self.paths[row])
        if image.values.ndim != 3:
            found = f"is a volume of shape {image.values.shape[:-1]}"
            raise UnreadableFile(self.paths[row], found, "Boxes of COCO lie on images of one plane; give those.")
        if image.values.shape[:2] != self.sizes[row]:
            height, width = image.values.shape[:2]
            stated = self.sizes[row]
            raise UnreadableFile(
                self.paths[row],
                f"is {width} pixels wide and {height} high, its annotations say {stated[1]} and {stated[0]}",
                "The boxes would lie elsewhere: give the images that the annotations were drawn on.",
            )
        return image


@dataclasses.dataclass(frozen=True)
class _Extents:
    """Names and sizes in bytes of files, read when a fingerprint is asked for."""

    paths: tuple[str, ...]
    names: tuple[str, ...]

    def __call__(self) -> str:
        sizes = [Path(path).stat().st_size for path in self.paths]
        return hashlib.sha256(json.dumps([self.names, sizes]).encode()).hexdigest()


def _json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; expected annotations of COCO as JSON. Check the path."
        ) from None
    except UnicodeDecodeError as error:
        raise UnreadableFile(path, f"is no text ({error})", "Give annotations of COCO as JSON.") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableFile(path, f"is no JSON ({error})", "Give annotations of COCO as JSON.") from None


def _file_name(path: Path, case_id: str, entry: Mapping[str, Any]) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{path}: image {case_id} has no file_name; expected the name of its file below the folder.")
    name = name.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise ValueError(
            f"{path}: image {case_id} has the file_name {name!r}, which leads out of the folder of the images; "
            "expected a path below it."
        )
    return name


def _check_files(path: Path, cases: Sequence[str], files: Sequence[str]) -> None:
    from fusion_jax.data.folder import existing

    gaps = np.flatnonzero(~existing(files))
    if len(gaps):
        raise FileNotFoundError(
            f"{files[gaps[0]]}: no such file, of image {cases[gaps[0]]} in {path} ({len(gaps)} of {len(files)} images "
            "lack theirs). Give the folder that the file names are relative to, or take the images out."
        )


def _size(path: Path, case_id: str, entry: Mapping[str, Any], file: str) -> tuple[int, int]:
    """Height and width, from the annotations or else from the header of the file."""
    stated: tuple[Any, Any] = entry.get("height"), entry.get("width")
    if None in stated:
        from fusion_jax.data.readers import peek_image

        height, width = peek_image(file).shape[:2]
        return int(height), int(width)
    if not all(isinstance(side, int | float) and side > 0 and side == int(side) for side in stated):
        raise ValueError(f"{path}: image {case_id} has height and width {stated}; expected whole numbers of pixels.")
    return int(stated[0]), int(stated[1])


def _image_size(cohort: Cohort, row: int) -> tuple[int, int]:
    if {"image_height", "image_width"} <= set(cohort.table.columns):
        height, width = cohort.table[["image_height", "image_width"]].iloc[row]
        return int(height), int(width)
    names = [name for name, source in cohort.sources.items() if source.kind == "image"]
    of = cohort.boxes_of or (names[0] if len(names) == 1 else "")
    if not of:
        raise ValueError(
            f"{cohort.name}: boxes lie on one of {', '.join(names) or 'no image'}; expected `boxes_of` to name it. Set "
            "it: `dataclasses.replace(cohort, boxes_of=...)`."
        )
    height, width = cohort.image(of, row).values.shape[:2]
    return int(height), int(width)


def _boxes(path: Path, truth: BoxTruth, sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
    """Boxes of every case that count, within their image, every one once."""
    kept = np.flatnonzero(~truth.crowd)
    extents = np.array(sizes, np.float64)[truth.case[kept]][:, [1, 0, 1, 0]]
    corners = truth.boxes[kept]
    cut: Float[np.ndarray, "g 4"] = np.clip(corners, 0, extents)
    outside = np.flatnonzero((cut[:, 2:] <= cut[:, :2]).any(axis=1))
    if len(outside):
        at = outside[0]
        x, y, right, bottom = corners[at].tolist()
        raise ValueError(
            f"{path}: image {truth.cases[truth.case[kept][at]]}: a box from ({x:g}, {y:g}) to ({right:g}, {bottom:g}) "
            f"lies outside of its image of {extents[at, 0]:g} x {extents[at, 1]:g} pixels ({len(outside)} such boxes). "
            "Fix the box, or the width and height of the image."
        )
    if crowd := int(truth.crowd.sum()):
        logger.warning(
            "%s: %s for a crowd left out: nothing is learnt from them, and a detection there counts as false, but in "
            "`fusion-jax evaluate-boxes` with this file as the truth",
            path,
            counted(crowd, "annotation"),
        )
    if moved := int((cut != corners).any(axis=1).sum()):
        logger.warning("%s: %d boxes reach over the edge of their image; they end there", path, moved)
    case, label = truth.case[kept], truth.label[kept].astype(np.int32)
    first = np.sort(np.unique(np.column_stack([case, label, cut]), axis=0, return_index=True)[1])
    if repeats := len(kept) - len(first):
        logger.warning("%s: %d boxes left out that their image has already, with the same class", path, repeats)
    case, label, cut = case[first], label[first], cut[first]
    # Stable, so that boxes of a case stay in the order of the file.
    order = np.argsort(case, kind="stable")
    bounds = np.searchsorted(case[order], np.arange(len(truth.cases) + 1))
    return [
        Boxes(cut[order[start:end]], label[order[start:end]])
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


# The clinical table.


class _Joined(NamedTuple):
    """Cells of the table in the order of the cases."""

    where: str
    cells: "pandas.DataFrame"
    known: Bool[np.ndarray, "n"]
    inputs: tuple[str, ...]
    patients: Sequence[str] | None


def _joined(
    table: "FilePath | pandas.DataFrame",
    names: Sequence[str],
    cases: Sequence[str],
    case: str | None,
    patient: str | None,
    inputs: Sequence[str] | None,
) -> _Joined:
    keys = (*ID_KEYS, *FILE_KEYS) if case is None else (case,)
    where, cells, first_row = _opened(table, keys, patient)
    key = next((column for column in keys if column in cells.columns), None)
    if key is None:
        raise ValueError(
            f"{where}: no column {' or '.join(map(repr, keys))} that names the image; it has "
            f"{listed(cells.columns, 12)}. Name the column as `case`."
        )
    for column in (*([] if patient is None else [patient]), *(inputs or ())):
        if column not in cells.columns:
            raise ValueError(f"{where}: no column {column!r}; it has {listed(cells.columns, 12)}.")
    who = patient or (PATIENT if PATIENT in cells.columns else None)
    names_it = {key, who, PATIENT, *ID_KEYS, *FILE_KEYS, *OWN_COLUMNS}
    kept = [column for column in cells.columns if column not in names_it]
    chosen = tuple(kept if inputs is None else inputs)
    for column in chosen:
        if column in names_it:
            raise ValueError(
                f"{where}: column {column!r} names the image or its patient and is no input. Leave it out."
            )
    if not chosen:
        raise ValueError(f"{where}: no column beside {key!r} is an input; expected at least one.")
    words = _words(cells[key])
    row_of = _rows(where, key, words, _namings(key, cases, names), first_row)
    if not row_of:
        raise ValueError(
            f"{where}: column {key!r} names none of the {len(cases)} images; it holds {listed(words)}, the images have "
            f"the ids {listed(cases)} and the files {listed(names)}."
        )
    at = np.array([row_of.get(case_id, -1) for case_id in cases])
    unused = sorted(set(range(len(words))) - set(at.tolist()))
    if unused:
        logger.warning(
            "%s: %d of %d rows are of no image, such as %r; left out", where, len(unused), len(words), words[unused[0]]
        )
    if (at < 0).any():
        without = [case_id for case_id, row in zip(cases, at, strict=True) if row < 0]
        logger.warning("%s: no row for %d of %d images: %s", where, len(without), len(cases), listed(without))
    own: Any = cells.reindex(at).set_axis(list(cases), axis=0)
    patients = None if who is None else _words(own[who])
    # Not whether a cell is filled: of the columns that a model reads, another table may have others filled.
    return _Joined(where, own[kept], at >= 0, chosen, patients)


def _opened(
    table: "FilePath | pandas.DataFrame", keys: Iterable[str], patient: str | None
) -> "tuple[str, pandas.DataFrame, int]":
    """Its name for messages, its cells and the number that its first row has there."""
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return "table", table.reset_index(drop=table.index.name is None), 0
    text = [*keys, PATIENT if patient is None else patient]
    return str(table), read_table(table, text=text), 2


def _namings(key: str, cases: Sequence[str], names: Sequence[str]) -> list[dict[str, str]]:
    """Ways to name an image, each a mapping to the case; those under which two images have one name are left out."""
    paths = [PurePosixPath(name) for name in names]
    files = [names, [own.name for own in paths], [own.stem for own in paths]]
    ways = [] if key in FILE_KEYS else [cases]
    ways += files
    return [dict(zip(way, cases, strict=True)) for way in ways if len(set(way)) == len(way)]


def _rows(
    where: str, key: str, words: Sequence[str], namings: Sequence[Mapping[str, str]], first_row: int
) -> dict[str, int]:
    """Row of each case, by the first naming that knows a row."""
    seen: dict[str, int] = {}
    for row, word in enumerate(words):
        number = row + first_row
        if not word:
            raise ValueError(f"{where}: column {key!r} is empty in row {number}; expected the image of every row.")
        if seen.setdefault(word, number) != number:
            raise ValueError(
                f"{where}: {key} {word!r} stands in rows {seen[word]} and {number}; expected one an image."
            )
    found = [{way[word]: row for row, word in enumerate(words) if word in way} for way in namings]
    found = [own for own in found if own]
    if not found:
        return {}
    if key not in (*ID_KEYS, *FILE_KEYS) and any(own != found[0] for own in found[1:]):
        raise ValueError(
            f"{where}: column {key!r} can be read as ids and as names of files, which say different images. Call it "
            "'image_id' or 'file_name'."
        )
    return found[0]


def _one_patient(joined: _Joined, stated: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Patients from the table and the annotations, which must not contradict each other."""
    if joined.patients is None:
        return stated
    together = {}
    for case_id, word in zip(joined.cells.index, joined.patients, strict=True):
        other = "" if stated is None else stated[case_id]
        if word and other and word != other:
            raise ValueError(
                f"{joined.where}: image {case_id} is of patient {word}, and of {other} in the annotations; they must "
                "agree."
            )
        if not word and not other:
            raise ValueError(
                f"{joined.where}: no patient for image {case_id}. Give every image its row and patient, or take the "
                "image out."
            )
        together[case_id] = word or other
    return together


def _words(column: Any) -> list[str]:
    return ["" if gap else as_written(cell) for cell, gap in zip(column.tolist(), column.isna().tolist(), strict=True)]
