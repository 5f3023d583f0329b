"""A small scanner export: patients with studies, phases, kernels and regions, written with pydicom."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.data.readers.conftest import UID, dataset, items, save, write_slices

SQUARE = [4.5, 4.5, 2, 10.5, 4.5, 2, 10.5, 12.5, 2, 4.5, 12.5, 2]
"""A contour around 6 x 8 pixels in the second slice."""

RULES = """\
[series.ct]
modality = "CT"
description = "(?i)portal"
kernel = "B30"
min_slices = 3
phase_seconds = [50, 80]
nearest = "ct_date"
within_days = 30

[series.tumour]
modality = "RTSTRUCT"
of = "ct"
region = "GTV"

[series.pet]
modality = "PT"
required = false
"""


def write_series(
    folder: Path,
    number: int,
    *,
    patient: str,
    date: str = "20200110",
    description: str = "portal venous",
    kernel: str | None = "B30f",
    modality: str = "CT",
    slices: int = 4,
    acquired: str | None = "100110",
    contrast: str | None = "100000",
    prefix: str = "s",
) -> str:
    """Slices of one series beside those of others; returns its UID. `number` is to differ over the export."""
    uid = f"{UID}9.{number}"
    tags: dict[str, Any] = {
        "PatientID": patient,
        "StudyDate": date,
        "StudyInstanceUID": f"{UID}8.{date}.{sum(patient.encode())}",
        "SeriesInstanceUID": uid,
        "SeriesNumber": number,
        "SeriesDescription": description,
        "ConvolutionKernel": kernel,
        "AcquisitionTime": acquired,
        "ContrastBolusStartTime": contrast,
        "FrameOfReferenceUID": f"{UID}7.{number}",
    }

    def change(k: int, found: Any) -> None:
        del k
        for name, value in tags.items():
            if value is not None:
                setattr(found, name, value)

    pixels = np.full((slices, 20, 20), 1000 + number, np.int16) + np.arange(slices, dtype=np.int16)[:, None, None]
    return (
        write_slices(
            folder,
            pixels,
            origin=(0, 0, 0),
            spacing=(1, 1),
            step=2,
            modality=modality,
            names=f"{prefix}{number:02d}_{{:03d}}.dcm".format,
            change=change,
            RescaleSlope=1,
            RescaleIntercept=-1024,
        )
        and uid
    )


def write_regions(
    path: Path,
    number: int,
    *,
    patient: str,
    date: str = "20200110",
    names: tuple[str, ...] = ("Heart", "GTV"),
    refers: bool = True,
) -> Path:
    """A structure set on the series of that number."""
    frame = f"{UID}7.{number}"
    contour = items({"ContourGeometricType": "CLOSED_PLANAR", "NumberOfContourPoints": 4, "ContourData": SQUARE})
    found = dataset(
        "RTSTRUCT",
        PatientID=patient,
        StudyDate=date,
        StudyInstanceUID=f"{UID}8.{date}.{sum(patient.encode())}",
        SeriesInstanceUID=f"{UID}6.{number}",
        FrameOfReferenceUID=None,
        SeriesDescription="contours",
        StructureSetROISequence=items(
            *(
                {"ROINumber": n, "ROIName": name, "ReferencedFrameOfReferenceUID": frame}
                for n, name in enumerate(names, start=1)
            )
        ),
        ROIContourSequence=items(
            *({"ReferencedROINumber": n, "ContourSequence": contour} for n in range(1, len(names) + 1))
        ),
    )
    if refers:
        series = items({"SeriesInstanceUID": f"{UID}9.{number}"})
        studies = items({"ReferencedSOPInstanceUID": f"{UID}5", "RTReferencedSeriesSequence": series})
        found.ReferencedFrameOfReferenceSequence = items(
            {"FrameOfReferenceUID": frame, "RTReferencedStudySequence": studies}
        )
    return save(path, found)


def write_export(folder: Path) -> Path:
    """PAT-A with phases, kernels, PET and contours; PAT-B with two studies; PAT-C with a scout alone."""
    a, b, c = folder / "A", folder / "B", folder / "C"
    write_series(a, 1, patient="PAT-A", description="scout", kernel=None, slices=1, acquired=None, contrast=None)
    write_series(a, 2, patient="PAT-A", description="arterial", acquired="100035")
    write_series(a, 3, patient="PAT-A", description="PORTAL venous")
    write_series(a, 4, patient="PAT-A", kernel="B70f")
    write_series(a / "pet", 5, patient="PAT-A", description="FDG", kernel=None, modality="PT", contrast=None)
    write_regions(a / "rs_old.dcm", 2, patient="PAT-A")
    write_regions(a / "rs.dcm", 3, patient="PAT-A")
    write_series(b / "first", 6, patient="PAT-B", date="20200201")
    write_series(b / "second", 7, patient="PAT-B", date="20200301")
    write_regions(b / "second" / "rs.dcm", 7, patient="PAT-B", date="20200301", refers=False)
    write_series(c, 8, patient="PAT-C", description="scout", slices=1, kernel=None)
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "readme.txt").write_text("exported on Monday", encoding="utf-8")
    return folder


def write_study(folder: Path, cases: int = 2) -> tuple[Path, Path, Path, Path]:
    """Table, export, rules and id map; with two cases everything is found."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["c1,61,2020-01-12,0", "c2,055,2020-02-25,1", "c3,70,2020-01-01,0", "c4,58,,1"]
    header = "case_id,age_years,ct_date,died"
    (folder / "table.csv").write_text("\n".join([header, *rows[:cases]]) + "\n", encoding="utf-8")
    (folder / "rules.toml").write_text(RULES, encoding="utf-8")
    ids = "case_id,dicom_patient_id\nc1,PAT-A\nc2,PAT-B\nc3,PAT-C\n"
    (folder / "ids.csv").write_text(ids, encoding="utf-8")
    return folder / "table.csv", write_export(folder / "export"), folder / "rules.toml", folder / "ids.csv"
