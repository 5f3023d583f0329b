"""What a folder of DICOM files holds: one entry a series, from headers alone."""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers.dicom import read_dataset
from fusion_jax.data.readers.guard import reading

if TYPE_CHECKING:
    import pydicom

__all__ = ["Inventory", "Series", "inventory"]

DRAWN = ("RTSTRUCT", "SEG")
"""Modalities that hold regions of another series; every file of them is an entry of its own."""


class Series(NamedTuple):
    """One series of an export, or one file of regions (RTSTRUCT, SEG). What the headers do not say is empty or None.

    Attributes:
      patient_id, study_uid, study_date, accession: of the study; the date as in ISO 8601.
      series_uid, series_number, modality, description: of the series.
      kernel: reconstruction kernel of CT.
      phase_seconds: from the start of the contrast agent to the first slice, where both times are written.
      slices: images, frames of multi-frame files counted; 0 for RTSTRUCT.
      rows, columns: pixels of a slice.
      spacing: mm along slices (its thickness or the stated distance), rows and columns.
      frame_of_reference: UID; series that share it share their coordinates.
      references: UIDs of the series that regions were drawn on.
      regions: names of the regions.
      files: paths below the folder of the export.
    """

    patient_id: str
    study_uid: str
    study_date: str
    accession: str
    series_uid: str
    series_number: str
    modality: str
    description: str
    kernel: str
    phase_seconds: float | None
    slices: int
    rows: int | None
    columns: int | None
    spacing: tuple[float, ...] | None
    frame_of_reference: str
    references: tuple[str, ...]
    regions: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders that its files lie in."""
        return tuple(dict.fromkeys(Path(file).parent.as_posix() for file in self.files))


class Inventory(NamedTuple):
    """A folder of DICOM files.

    Attributes:
      folder: that was looked at, with the folders below it.
      series: by patient, date, study and number.
      unreadable: path and reason of every file that is no readable DICOM file.
    """

    folder: Path
    series: tuple[Series, ...]
    unreadable: tuple[tuple[str, str], ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat row a series, as `write_csv` takes them."""
        rows = []
        for one in self.series:
            row = one._asdict()
            for name in ("references", "regions"):
                row[name] = "; ".join(row[name])
            row["spacing"] = "" if one.spacing is None else " x ".join(f"{length:g}" for length in one.spacing)
            row["files"] = len(one.files)
            rows.append({**row, "folder": "; ".join(one.folders)})
        return rows


def inventory(folder: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Inventory:
    """Inventory of a folder of DICOM files and of all folders below it, by patient, study and series.

    Headers are read, pixels are not. A DICOMDIR and hidden files are passed over; every other file that is not DICOM
    or is damaged is listed with the reason.

    Args:
      folder: what the scanner, the PACS or a public archive exported.
      progress: called with the number of files read and the number of all files.

    Returns:
      The series and the files that could not be read.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it holds no readable DICOM file.
      ImportError: pydicom is not installed.

    Example:
      >>> [(s.patient_id, s.modality, s.slices) for s in inventory("export").series]  # doctest: +SKIP
      [('PAT-0001', 'CT', 112), ('PAT-0001', 'RTSTRUCT', 0)]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the DICOM files of an export. Check the path.")
    paths = _files_below(folder)
    found: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    unreadable = []
    for number, path in enumerate(paths, start=1):
        try:
            facts = _facts(folder / path)
        except (UnreadableFile, PermissionError) as error:
            unreadable.append((path, error.found if isinstance(error, UnreadableFile) else "may not be read"))
        else:
            key = (facts.patient_id, facts.study_uid, facts.series_uid)
            found.setdefault((*key, facts.instance) if facts.modality in DRAWN else key, []).append((path, facts))
        if progress is not None:
            progress(number, len(paths))
    if not found:
        raise ValueError(
            f"{folder}: {len(paths)} files, none of them DICOM"
            + (f" ({unreadable[0][0]} {unreadable[0][1]})" if unreadable else "")
            + "; expected a scanner export. Name the folder that holds it."
        )
    series = sorted((_merged(files) for files in found.values()), key=_order)
    return Inventory(folder, tuple(series), tuple(unreadable))


def _files_below(folder: Path) -> list[str]:
    """Paths below a folder in order, hidden ones and DICOMDIRs left out."""
    paths = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths += [
            (Path(place) / name).relative_to(folder).as_posix()
            for name in sorted(names)
            if not name.startswith(".") and name.upper() != "DICOMDIR"
        ]
    return paths


def _order(series: Series) -> tuple[Any, ...]:
    number = int(series.series_number) if series.series_number.lstrip("-").isdigit() else 0
    return series.patient_id, series.study_date, series.study_uid, number, series.series_uid, series.files


class _Facts(NamedTuple):
    """Of one file."""

    instance: str
    patient_id: str
    study_uid: str
    study_date: str
    accession: str
    series_uid: str
    series_number: str
    modality: str
    description: str
    kernel: str
    acquired: dt.datetime | None
    contrast: dt.datetime | None
    frames: int
    rows: int | None
    columns: int | None
    spacing: tuple[float, ...] | None
    frame_of_reference: str
    references: tuple[str, ...]
    regions: tuple[str, ...]


def _facts(path: Path) -> _Facts:
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        for name in ("SeriesInstanceUID", "StudyInstanceUID"):
            if not dataset.get(name):
                raise UnreadableFile(path, f"has no {name}", "Export it again.")
        modality = _text(dataset, "Modality")
        frame, references, regions = _drawn(dataset, modality)
        date = _date(dataset.get("StudyDate")) or _date(dataset.get("SeriesDate"))
        return _Facts(
            instance=_text(dataset, "SOPInstanceUID") or str(path),
            patient_id=_text(dataset, "PatientID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            study_date="" if date is None else date.isoformat(),
            accession=_text(dataset, "AccessionNumber"),
            series_uid=_text(dataset, "SeriesInstanceUID"),
            series_number=_text(dataset, "SeriesNumber"),
            modality=modality,
            description=_text(dataset, "SeriesDescription"),
            kernel=_text(dataset, "ConvolutionKernel"),
            acquired=_moment(dataset, "AcquisitionDate", "AcquisitionTime"),
            contrast=_moment(dataset, "AcquisitionDate", "ContrastBolusStartTime"),
            frames=0 if modality == "RTSTRUCT" else int(dataset.get("NumberOfFrames") or 1),
            rows=_whole(dataset, "Rows"),
            columns=_whole(dataset, "Columns"),
            spacing=_spacing(dataset),
            frame_of_reference=frame,
            references=references,
            regions=regions,
        )


def _merged(files: list[tuple[str, _Facts]]) -> Series:
    first = files[0][1]
    # A file that was exported twice is one slice.
    frames = {facts.instance: facts.frames for _, facts in files}
    started = [facts.acquired for _, facts in files if facts.acquired is not None]
    contrast = [facts.contrast for _, facts in files if facts.contrast is not None]
    phase = (min(started) - min(contrast)).total_seconds() if started and contrast else None
    shared = {name: getattr(first, name) for name in Series._fields if name in _Facts._fields}
    return Series(**shared, phase_seconds=phase, slices=sum(frames.values()), files=tuple(path for path, _ in files))


def _drawn(dataset: "pydicom.Dataset", modality: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Frame of reference, series drawn on and names of the regions."""
    frame = _text(dataset, "FrameOfReferenceUID")
    references: list[str] = []
    regions: list[str] = []
    if modality == "RTSTRUCT":
        regions = [_text(item, "ROIName") for item in dataset.get("StructureSetROISequence") or []]
        for place in dataset.get("ReferencedFrameOfReferenceSequence") or []:
            frame = _text(place, "FrameOfReferenceUID") or frame
            for study in place.get("RTReferencedStudySequence") or []:
                references += [
                    _text(series, "SeriesInstanceUID") for series in study.get("RTReferencedSeriesSequence") or []
                ]
        if not frame:
            items = dataset.get("StructureSetROISequence") or []
            frame = next((_text(item, "ReferencedFrameOfReferenceUID") for item in items), "")
    elif modality == "SEG":
        regions = [_text(item, "SegmentLabel") for item in dataset.get("SegmentSequence") or []]
        references = [_text(item, "SeriesInstanceUID") for item in dataset.get("ReferencedSeriesSequence") or []]
    return frame, tuple(dict.fromkeys(filter(None, references))), tuple(regions)


def _text(dataset: "pydicom.Dataset", name: str) -> str:
    value = dataset.get(name)
    if value is None:
        return ""
    parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return " ".join(str(part) for part in parts).strip()


def _whole(dataset: "pydicom.Dataset", name: str) -> int | None:
    value = dataset.get(name)
    return None if value is None else int(value)


def _spacing(dataset: "pydicom.Dataset") -> tuple[float, ...] | None:
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    measures = shared[0].get("PixelMeasuresSequence") or [dataset]
    plane = measures[0].get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if plane is None:
        return None
    step = measures[0].get("SpacingBetweenSlices") or measures[0].get("SliceThickness")
    return tuple(map(float, plane)) if step is None else (float(step), *map(float, plane))


def _date(value: Any) -> dt.date | None:
    """A DICOM date, also in the form of files before 1993 (2020.01.31)."""
    try:
        return dt.datetime.strptime(str(value).replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def _moment(dataset: "pydicom.Dataset", date: str, time: str) -> dt.datetime | None:
    """A time of day with its date; only differences of two of them are used."""
    day = _date(dataset.get(date)) or dt.date(2000, 1, 1)
    text = str(dataset.get(time) or "").replace(":", "")
    for layout in ("%H%M%S.%f", "%H%M%S", "%H%M"):
        try:
            return dt.datetime.combine(day, dt.datetime.strptime(text, layout).time())
        except ValueError:
            continue
    return None
