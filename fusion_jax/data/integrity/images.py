"""Findings about images and masks, from the facts of one pass over them."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.integrity.duplicates import Pair, equal_groups, joined, near_pairs
from fusion_jax.data.integrity.findings import Finding, Severity
from fusion_jax.data.integrity.opening import Opened
from fusion_jax.data.integrity.pixels import ImageFacts
from fusion_jax.data.plausible import IMAGE_RANGES
from fusion_jax.wording import listed

__all__ = ["check_duplicates", "check_images", "image_summary"]

Facts = Mapping[str, Sequence[ImageFacts | None]]

SAME_PLACE_MM = 5.0
"""Distance of the centres of two outlines of one object from which a person should look."""

SAME_GRID_MM = 1e-3
"""Largest distance between the voxels of a mask and those of its image that counts as one grid."""


def check_images(opened: Opened, facts: Facts) -> Iterator[Finding]:
    """Findings about every source by itself, masks on their images, and boxes."""
    for name, found in facts.items():
        yield from _files(opened.cohort, name, found)
        yield from _values(opened.cohort, name, found)
        yield from _geometry(opened, name, found)
        if opened.cohort.sources[name].kind == "mask":
            yield from _masks(opened.cohort, name, found)
            yield from _grid(opened, name, facts)
        tags = {tag for one in found if one is not None for tag in one.personal}
        if tags:
            cases = _cases(opened.cohort, [one is not None and bool(one.personal) for one in found])
            yield Finding(
                "warning",
                "personal data",
                f"DICOM elements of {len(cases)} cases may tell who the patient is: {listed(sorted(tags), 8)}.",
                "De-identify the files (DICOM PS3.15, basic profile) before anybody else gets them.",
                cases,
                source=name,
            )
    yield from _places(opened.cohort, facts)
    if opened.cohort.boxes is not None:
        yield from _boxes(opened, facts)


def _cases(cohort: Cohort, wanted: Sequence[bool]) -> tuple[str, ...]:
    return tuple(case for case, is_wanted in zip(cohort.case_id, wanted, strict=True) if is_wanted)


def _those(
    cohort: Cohort, found: Sequence[ImageFacts | None], wanted: Any
) -> tuple[tuple[str, ...], list[tuple[str, ImageFacts]]]:
    """Cases whose facts are as wanted, alone and with their facts."""
    chosen = [(case, one) for case, one in zip(cohort.case_id, found, strict=True) if one is not None and wanted(one)]
    return tuple(case for case, _ in chosen), chosen


def _files(cohort: Cohort, name: str, found: Sequence[ImageFacts | None]) -> Iterator[Finding]:
    cases, chosen = _those(cohort, found, lambda one: one.problem == "unreadable file")
    if cases:
        shown = listed((f"{case}: {one.message.rstrip('.')}" for case, one in chosen), 2)
        yield Finding(
            "error",
            "unreadable file",
            f"{len(cases)} images cannot be read. {shown}.",
            "Copy or export the files again, or leave the cases out.",
            cases,
            source=name,
        )
    by_message: dict[str, list[str]] = {}
    for case, one in _those(cohort, found, lambda one: one.problem == "preprocessing")[1]:
        # One cause has one message but for the numbers in it.
        by_message.setdefault(one.message.split(": ", 1)[0], []).append(case)
    for start, them in by_message.items():
        first = next(one.message for case, one in zip(cohort.case_id, found, strict=True) if one and case == them[0])
        yield Finding(
            "error",
            "preprocessing",
            f"{len(them)} images cannot be preprocessed ({start}). {them[0]}: {first}",
            "Change the step, the options of the reader, or the files.",
            tuple(them),
            source=name,
        )


def _values(cohort: Cohort, name: str, found: Sequence[ImageFacts | None]) -> Iterator[Finding]:
    cases, chosen = _those(cohort, found, lambda one: one.not_finite)
    if cases:
        shown = listed(f"{one.not_finite} of {int(np.prod(one.shape))} values in {case}" for case, one in chosen)
        yield Finding(
            "error",
            "not finite",
            f"{len(cases)} files hold NaN or infinity: {shown}.",
            "Find out what they stand for (often outside of the field of view) and write that value.",
            cases,
            source=name,
        )
    cases, _ = _those(cohort, found, lambda one: not one.not_finite and one.final_not_finite)
    if cases:
        yield Finding(
            "error",
            "not finite",
            f"Preprocessing makes NaN or infinity in {len(cases)} images: {listed(cases)}.",
            "Look at the steps that divide, such as scaling a constant image.",
            cases,
            source=name,
        )
    is_mask = cohort.sources[name].kind == "mask"
    constant, chosen = _those(cohort, found, lambda one: one.shape and not one.not_finite and one.low == one.high)
    if constant and not is_mask:
        shown = listed(f"{case} is {one.low:g}" for case, one in chosen)
        yield Finding(
            "error",
            "constant image",
            f"{len(constant)} images are one value throughout: {shown}.",
            "Export them again, or leave the cases out.",
            constant,
            source=name,
        )
    flattened, _ = _those(cohort, found, lambda one: one.final_constant and one.final_shape and one.low != one.high)
    if flattened and not is_mask:
        yield Finding(
            "error",
            "constant image",
            f"{len(flattened)} images are one value throughout after preprocessing: {listed(flattened)}.",
            "Look at the window and the crop: they leave nothing to see.",
            flattened,
            source=name,
        )
    yield from _units(cohort, name, found)


def _units(cohort: Cohort, name: str, found: Sequence[ImageFacts | None]) -> Iterator[Finding]:
    units = Counter(one.unit for one in found if one is not None and one.shape)
    if len(units) > 1:
        shown = listed(f"{unit or 'none'} in {count} cases" for unit, count in units.most_common())
        rare = units.most_common()[-1][0]
        cases, _ = _those(cohort, found, lambda one: one.shape and one.unit == rare)
        yield Finding(
            "error",
            "mixed units",
            f"Files differ in their unit: {shown}.",
            "Convert the files, or say in cohort.toml which unit holds for all.",
            cases,
            source=name,
        )
    for unit, (low, high, why) in IMAGE_RANGES.items():
        cases, chosen = _those(
            cohort, found, lambda one, unit=unit, low=low, high=high: one.shape
            and one.unit == unit
            and (one.low < low or one.high > high),
        )  # fmt: skip
        if cases:
            shown = listed(f"{case} from {one.low:g} to {one.high:g}" for case, one in chosen)
            yield Finding(
                "warning",
                "implausible value",
                f"{len(cases)} images hold values outside {low:g} to {high:g} {unit} ({why}): {shown}.",
                "Check rescaling and unit; set padding to a value of air.",
                cases,
                source=name,
            )
    unscaled, chosen = _those(cohort, found, lambda one: one.unit == "HU" and one.low >= 0 and one.high > 500)
    if unscaled:
        shown = listed(f"{case} from {one.low:g} to {one.high:g}" for case, one in chosen)
        yield Finding(
            "warning",
            "implausible value",
            f"{len(unscaled)} CT images hold no value below 0 HU, as stored values before rescaling do: {shown}.",
            "Check that slope and intercept were applied (the intercept is usually −1024).",
            unscaled,
            source=name,
        )


def _geometry(opened: Opened, name: str, found: Sequence[ImageFacts | None]) -> Iterator[Finding]:
    cohort = opened.cohort
    for what, of in (
        ("number of axes", lambda one: len(one.shape)),
        ("number of channels", lambda one: one.shape[-1]),
    ):
        counted = Counter(of(one) for one in found if one is not None and one.shape)
        if len(counted) > 1:
            usual = counted.most_common(1)[0][0]
            cases, chosen = _those(cohort, found, lambda one, of=of, usual=usual: one.shape and of(one) != usual)
            shown = listed(f"{case} is {_by(one.shape)}" for case, one in chosen)
            yield Finding(
                "error",
                "shape",
                f"{len(cases)} of {sum(counted.values())} images differ from the others in their {what}: {shown} "
                f"(channels last; usual is {usual}).",
                "Convert them; a source holds one kind of image.",
                cases,
                source=name,
            )
            return
    shapes = Counter(one.final_shape for one in found if one is not None and one.final_shape)
    if len(shapes) > 1:
        smallest, largest = (_by(choose(shapes, key=np.prod)) for choose in (min, max))
        yield Finding(
            "note",
            "shape",
            f"Images have {len(shapes)} shapes{' after preprocessing' if opened.files else ''}, from {smallest} to "
            f"{largest}.",
            "Batches need one shape: end `preprocess` with a step such as resize or crop_or_pad.",
            source=name,
        )
    spacings = Counter(
        tuple(round(step, 2) for step in one.final_spacing) for one in found if one is not None and one.final_spacing
    )
    if len(spacings) > 1:
        low, high = np.min([*spacings], axis=0), np.max([*spacings], axis=0)
        # A tenth more or less is the variation of fields of view; more than that changes what a filter sees.
        if (high > 1.1 * low).any():
            yield Finding(
                "warning",
                "spacing",
                f"Voxels have {len(spacings)} sizes{' after preprocessing' if opened.files else ''}, from "
                f"{_by(low.tolist())} to {_by(high.tolist())} mm: an object of one size has several in voxels.",
                "Add a step `resample` with one spacing.",
                source=name,
            )
    unknown, _ = _those(cohort, found, lambda one: one.shape and one.spacing is None)
    if unknown and spacings:
        yield Finding(
            "warning",
            "spacing",
            f"{len(unknown)} files do not say their voxel size, the others do: {listed(unknown)}.",
            "Export them with it, or leave the cases out.",
            unknown,
            source=name,
        )


def _by(shape: Sequence[float]) -> str:
    return " x ".join(f"{length:g}" for length in shape)


def _masks(cohort: Cohort, name: str, found: Sequence[ImageFacts | None]) -> Iterator[Finding]:
    kinds: tuple[tuple[Severity, Any, str, str], ...] = (
        ("error", lambda mask: not mask.voxels, "are empty", "Draw them, or mark the mask absent in these cases."),
        (
            "note",
            lambda mask: set(mask.values) - {0.0, 1.0},
            "hold values other than 0 and 1",
            "Whatever is not zero counts as inside; write one mask a label where that is not meant.",
        ),
        (
            "note",
            lambda mask: mask.on_border,
            "touch the border of the image",
            "Check whether the object is cut off.",
        ),
        ("note", lambda mask: mask.parts > 1, "are in several pieces", "Check for stray voxels, or keep the largest."),
    )
    for severity, is_so, what, advice in kinds:
        cases, chosen = _those(cohort, found, lambda one, is_so=is_so: one.mask is not None and is_so(one.mask))
        if not cases:
            continue
        more = ""
        if "values" in what:
            values = sorted({value for _, one in chosen for value in (one.mask.values if one.mask else ())})
            more = f", such as {listed((f'{value:g}' for value in values if value not in (0, 1)), 8)}"
        shown = "" if len(cases) == len(cohort) else f": {listed(cases)}"
        yield Finding(
            severity,
            "mask",
            f"{len(cases)} of {len(cohort)} masks {what}{more}{shown}.",
            advice,
            cases,
            source=name,
        )


def _grid(opened: Opened, name: str, facts: Facts) -> Iterator[Finding]:
    """Masks that lie on another grid than their image; on that of any image where it is not said which."""
    cohort = opened.cohort
    declared = opened.mask_of.get(name)
    images = (
        [declared]
        if declared is not None and declared in facts
        else [one for one in facts if cohort.sources[one].kind == "image"]
    )
    off, shown = [], []
    for row, case in enumerate(cohort.case_id):
        mask = facts[name][row]
        there = [image for other in images if (image := facts[other][row]) is not None and image.final_shape]
        if mask is None or not mask.final_shape or not there:
            continue
        reasons = [_other_grid(mask, image) for image in there]
        if all(reasons):
            off.append(case)
            shown.append(f"{case} {reasons[0]}")
    if off:
        yield Finding(
            "error",
            "grid",
            f"{len(off)} masks do not lie on the grid of {declared or 'any image'}"
            f"{' after preprocessing' if opened.files else ''}: {listed(shown)}.",
            f'Add a step {{op = "onto", reference = "{declared or "IMAGE"}"}}, or export mask and image together.',
            tuple(off),
            source=name,
        )


def _other_grid(mask: ImageFacts, image: ImageFacts) -> str:
    """In which way the grid of a mask is not that of an image; "" if it is."""
    if mask.final_shape[:-1] != image.final_shape[:-1]:
        return f"has {_by(mask.final_shape[:-1])} voxels, the image {_by(image.final_shape[:-1])}"
    if mask.final_affine is not None and image.final_affine is not None:
        corners = np.array(np.meshgrid(*((0, length - 1) for length in mask.final_shape[:-1]))).reshape(3, -1)
        places = np.vstack([corners, np.ones((1, corners.shape[1]))])
        apart = (mask.final_affine - image.final_affine) @ places
        distance = float(np.linalg.norm(apart[:3], axis=0).max())
        return f"lies {distance:.3g} mm away" if distance > SAME_GRID_MM else ""
    if mask.final_spacing is not None and image.final_spacing is not None:
        extent = np.abs(np.subtract(mask.final_spacing, image.final_spacing)) * (np.array(mask.final_shape[:-1]) - 1)
        return f"has another voxel size ({_by(mask.final_spacing)} mm)" if extent.max() > SAME_GRID_MM else ""
    return ""


def _places(cohort: Cohort, facts: Facts) -> Iterator[Finding]:
    """Masks that outline one object on two images, and lie apart in some cases."""
    masks = [name for name in facts if cohort.sources[name].kind == "mask"]
    for first, second in itertools.combinations(masks, 2):
        apart: dict[str, float] = {}
        for case, one, other in zip(cohort.case_id, facts[first], facts[second], strict=True):
            if one is None or other is None or one.mask is None or other.mask is None:
                continue
            a, b = one.mask, other.mask
            if a.centre is not None and b.centre is not None and 0.8 < a.volume / b.volume < 1.25:
                apart[case] = float(np.linalg.norm(np.subtract(a.centre, b.centre)))
        # One object: most cases have both in one place and of one volume.
        if len(apart) < max(3, len(cohort) // 2) or np.median([*apart.values()]) > SAME_PLACE_MM / 2:
            continue
        far = {case: distance for case, distance in apart.items() if distance > SAME_PLACE_MM}
        if far:
            yield Finding(
                "note",
                "grid",
                f"Masks {first} and {second} lie in one place in most cases, but apart in {len(far)}: "
                f"{listed(f'{distance:.1f} mm in {case}' for case, distance in far.items())}.",
                "Check the affines and the registration of the two images in these cases.",
                tuple(far),
                source=second,
            )


def _boxes(opened: Opened, facts: Facts) -> Iterator[Finding]:
    cohort = opened.cohort
    image = cohort.boxes_of or next((name for name in facts if cohort.sources[name].kind == "image"), None)
    if image is None or cohort.boxes is None:
        return
    off, shown = [], []
    for case, boxes, one in zip(cohort.case_id, cohort.boxes, facts[image], strict=True):
        if one is None or not one.shape or not len(boxes.corners):
            continue
        height, width = one.shape[-3:-1]
        corners = boxes.corners
        outside = (corners < 0).any(axis=1) | (corners[:, 2] > width) | (corners[:, 3] > height)
        if outside.any():
            off.append(case)
            first = ", ".join(f"{value:g}" for value in corners[outside][0])
            shown.append(f"{case} ({first}) in {width} x {height}")
    if off:
        yield Finding(
            "error",
            "box",
            f"Boxes of {len(off)} cases reach outside their image: {listed(shown)} pixels (x0, y0, x1, y1; width x "
            "height).",
            "Check the order of the corners and the size of the image they were drawn on; clip them if they are right.",
            tuple(off),
            source=image,
        )
    if cohort.box_classes and not any(len(boxes.corners) for boxes in cohort.boxes):
        yield Finding("warning", "box", "No case has a box.", "Check the case ids in the table of boxes.", source=image)


# Duplicates.


def check_duplicates(cohort: Cohort, facts: Facts, *, flips: bool = False) -> tuple[list[Finding], list[list[str]]]:
    """Findings about copies of images, and the groups of cases that hold them."""
    findings: list[Finding] = []
    links: list[tuple[int, int]] = []
    labels = _labels(cohort)
    for name, found in facts.items():
        if cohort.sources[name].kind != "image":
            continue
        usable = [row for row, one in enumerate(found) if one is not None and one.shape and one.low != one.high]
        exact = [[usable[k] for k in group] for group in equal_groups([_key(found[row]) for row in usable])]
        findings += _exact(cohort, name, exact, labels)
        links += [(group[0], other) for group in exact for other in group[1:]]
        first_of = {row: group[0] for group in exact for row in group}
        single = [row for row in usable if first_of.get(row, row) == row]
        thumbnails = [one.thumbnail for row in single if (one := found[row]) is not None and one.thumbnail is not None]
        if len(thumbnails) > 1:
            pairs = [
                pair._replace(first=single[pair.first], second=single[pair.second])
                for pair in near_pairs(np.stack(thumbnails), flips=flips)
            ]
            findings += _near(cohort, name, pairs)
            links += [(pair.first, pair.second) for pair in pairs]
    groups = [[cohort.case_id[row] for row in group] for group in joined(len(cohort), links)]
    return findings, groups


def _key(one: ImageFacts | None) -> bytes:
    return b"" if one is None else one.digest


def _labels(cohort: Cohort) -> list[tuple[str, ...]]:
    columns = cohort.columns("label")
    cells = cohort.table[list(columns)].astype(object)
    return [tuple(str(cell) for cell in row) for row in cells.itertuples(index=False)]


def _exact(cohort: Cohort, name: str, groups: list[list[int]], labels: list[tuple[str, ...]]) -> Iterator[Finding]:
    across, within = [], []
    for group in groups:
        apart = len({cohort.patient_id[row] for row in group}) > 1 or len({labels[row] for row in group}) > 1
        (across if apart else within).append(group)
    if across:
        contradict = sum(len({labels[row] for row in group}) > 1 for group in across)
        shown = listed((_group(cohort, group) for group in across), 3)
        yield Finding(
            "error",
            "exact duplicate",
            f"{len(across)} images stand for several patients or labels ({contradict} of them with different labels): "
            f"{shown}.",
            "Find out whose they are. Until then a copy may be in training and in test.",
            tuple(cohort.case_id[row] for group in across for row in group),
            source=name,
        )
    if within:
        yield Finding(
            "note",
            "exact duplicate",
            f"{len(within)} images stand twice or more for one patient with one label: "
            f"{listed((_group(cohort, group) for group in within), 3)}.",
            "Copies add nothing but weight; consider leaving them out.",
            tuple(cohort.case_id[row] for group in within for row in group),
            source=name,
        )


def _group(cohort: Cohort, rows: list[int]) -> str:
    return " = ".join(cohort.case_id[row] for row in rows[:4]) + (" = ..." if len(rows) > 4 else "")


def _near(cohort: Cohort, name: str, pairs: list[Pair]) -> Iterator[Finding]:
    same = [pair for pair in pairs if cohort.patient_id[pair.first] == cohort.patient_id[pair.second]]
    for them, severity, who, advice in (
        (
            [pair for pair in pairs if pair not in same],
            "warning",
            "of two patients",
            (
                "Look at them (`fusion-jax cohort show`). Give the splits the groups in integrity.json, so that copies "
                "stay together."
            ),
        ),
        (same, "note", "of one patient", "Nothing to do as long as splits are by patient."),
    ):
        if not them:
            continue
        shown = listed(
            (
                f"{cohort.case_id[pair.first]} and {cohort.case_id[pair.second]} (r = {pair.correlation:.3f}"
                f"{', inverted' if pair.correlation < 0 else ''}{', ' + pair.flip if pair.flip else ''})"
                for pair in sorted(them, key=lambda pair: -abs(pair.correlation))
            ),
            3,
        )
        rows = sorted({row for pair in them for row in (pair.first, pair.second)})
        chosen: Any = severity
        yield Finding(
            chosen,
            "near duplicate",
            f"{len(them)} pairs of images {who} resemble each other like copies: {shown}.",
            advice,
            tuple(cohort.case_id[row] for row in rows),
            source=name,
        )


# Facts for the report.


def image_summary(cohort: Cohort, facts: Facts) -> dict[str, Any]:
    """What every source looks like: number, shapes, spacing, range of values."""
    summary = {}
    for name, source in cohort.sources.items():
        entry: dict[str, Any] = {"kind": source.kind, "cases": int(cohort.present[name].sum())}
        found = [one for one in facts.get(name, ()) if one is not None and one.shape]
        if found:
            shapes = Counter(one.shape for one in found).most_common()
            spacings = [one.spacing for one in found if one.spacing is not None]
            entry |= {
                "read": len(found),
                "shapes": {_by(shape): count for shape, count in shapes[:8]},
                "dtypes": dict(Counter(one.dtype for one in found).most_common()),
                "low": min(one.low for one in found),
                "high": max(one.high for one in found),
                "units": sorted({one.unit for one in found}),
                "spacing_mm": None
                if not spacings
                else [np.round(np.min(spacings, axis=0), 4).tolist(), np.round(np.max(spacings, axis=0), 4).tolist()],
            }
        summary[name] = entry
    return summary
