"""Folders of MIMIC and REFLACX with made-up contents: the documented tables and layout, and synthetic X-rays.

For running the join and everything after it without access to the data. Nobody's record is in it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from experiments.chest_xray_detection.cohort import MimicFolders
from fusion_jax.data import Cohort
from fusion_jax.data.mimic import ABNORMALITIES, VITALS
from fusion_jax.data.synthetic import LESIONS, TRIAGE, chest_opacities

__all__ = ["write_made_up"]

FIRST_SUBJECT, FIRST_STUDY, FIRST_STAY = 10_000_032, 50_414_267, 30_000_012
DAY = np.datetime64("2180-01-01")
MOST = 300
"""Cases: one a day, all within the year of the ages."""

EVERY_SECOND_READER, EVERY_OUTSIDE, EVERY_DISCARDED = 5, 7, 9
"""Of so many cases one has another reading, and one reading more that has no stay or no eye tracking."""

PHASES = {
    1: {"Pleural effusion": 2},
    2: {"Pleural abnormality": 2, "Airway wall thickening": None},
    3: {"Pleural abnormality": 2, "Fracture": None},
}
"""Columns of each phase besides those that all have: index into `ABNORMALITIES`, None for another finding."""


def write_made_up(folder: str | Path, n: int = 60, *, size: int = 96, seed: int = 0) -> tuple[MimicFolders, Cohort]:
    """Write folders that `mimic_cohort` reads.

    A stay, an image and a reading for each of `n` synthetic cases (`chest_opacities`); besides, second readings of some
    images, which stay in, and readings without a stay or without eye tracking, which fall out.

    Args:
      folder: to write to, empty or new.
      n: cases, 40 to 300.
      size: of the images in pixels.
      seed: of all draws.

    Returns:
      The folders, and the synthetic cohort whose images, boxes, vitals and labels they hold. Age and gender are those
      of the first case of a patient.

    Raises:
      ValueError: more cases than a year has days for.
    """
    if n > MOST:
        raise ValueError(f"{n} cases; expected at most {MOST}: one is taken a day, within one year.")
    import pandas as pd

    folder = Path(folder)
    cohort = chest_opacities(n, size=size, seed=seed).cohort
    subjects = dict(zip(dict.fromkeys(cohort.patient_id), range(FIRST_SUBJECT, 2 * FIRST_SUBJECT), strict=False))
    subject = np.array([subjects[patient] for patient in cohort.patient_id])
    table: Any = cohort.table.assign(subject=subject)
    first = table.drop_duplicates("subject")
    dicom = [f"{seed:04x}{row:04x}-made-up" for row in range(n)]
    cxr: list[tuple[Any, ...]] = []
    for row in range(n):
        cxr.append((dicom[row], subject[row], FIRST_STUDY + row, _date(row), 93000.25, table["view"].iloc[row]))
        _write_jpeg(folder / "mimic-cxr-jpg", cxr[-1], cohort.sources["image"][row])
    readings = [(row, dicom[row], False) for row in range(n)]
    readings += [(row, dicom[row], False) for row in range(0, n, EVERY_SECOND_READER)]
    readings += [(row, dicom[row], True) for row in range(0, n, EVERY_DISCARDED)]
    for row in range(0, n, EVERY_OUTSIDE):
        # The evening of the day, after the stay.
        image = (f"{dicom[row]}-late", subject[row], FIRST_STUDY + n + row, _date(row), 203000.0, "AP")
        cxr.append(image)
        readings.append((row, image[0], False))

    day = [str(DAY + row) for row in range(n)]
    stays = pd.DataFrame({"subject_id": subject, "stay_id": FIRST_STAY + np.arange(n)})
    stays = stays.assign(intime=[f"{date} 08:00:00" for date in day], outtime=[f"{date} 12:00:00" for date in day])
    triage = table[list(TRIAGE[1:9])].set_axis(list(VITALS), axis=1).assign(stay_id=FIRST_STAY + np.arange(n))
    people = {
        "subject_id": first["subject"],
        "gender": first["gender"],
        "anchor_age": first["age_years"].astype(int) - 1,
    }
    _write(folder / "mimic-iv" / "hosp" / "patients.csv.gz", pd.DataFrame(people).assign(anchor_year=2179))
    _write(folder / "mimic-iv-ed" / "ed" / "edstays.csv.gz", stays)
    _write(folder / "mimic-iv-ed" / "ed" / "triage.csv.gz", triage)
    names = ("dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime", "ViewPosition")
    _write(folder / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz", pd.DataFrame(cxr, columns=list(names)))
    _write_reflacx(folder / "reflacx" / "main_data", cohort, subject, readings, size)
    return MimicFolders(
        cxr=str(folder / "mimic-cxr-jpg"),
        ed=str(folder / "mimic-iv-ed" / "ed"),
        patients=str(folder / "mimic-iv" / "hosp" / "patients.csv.gz"),
        reflacx=str(folder / "reflacx" / "main_data"),
    ), cohort


def _date(row: int) -> int:
    return int(str(DAY + row).replace("-", ""))


def _write(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def _write_jpeg(folder: Path, image: tuple[Any, ...], values: np.ndarray) -> None:
    dicom, subject, study = image[:3]
    path = folder / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.rint(values[..., 0] * 255).astype(np.uint8)).save(path, quality=95)


def _write_reflacx(
    folder: Path, cohort: Cohort, subject: np.ndarray, readings: list[tuple[int, str, bool]], size: int
) -> None:
    """One file of readings a phase, and one folder with ellipses a reading."""
    import pandas as pd

    labels = cohort.table[list(LESIONS)].to_numpy()
    per_phase: dict[int, list[dict[str, Any]]] = {phase: [] for phase in PHASES}
    for number, (row, dicom, discarded) in enumerate(readings):
        phase = 1 + number % len(PHASES)
        reading = f"P{phase}{number % 5:02d}R{number:06d}"
        columns = {name: index for index, name in enumerate(ABNORMALITIES) if index != 2} | PHASES[phase]
        about = {"id": reading, "dicom_id": dicom, "subject_id": subject[row], "eye_tracking_data_discarded": discarded}
        about |= {"image_size_x": size, "image_size_y": size}
        # Certainty 1 (unlikely) to 5 (consistent with) where it was marked.
        about |= {
            name: 0 if index is None or not labels[row, index] else 2 + (row + index) % 4
            for name, index in columns.items()
        }
        per_phase[phase].append(about)
        ellipses: list[dict[str, Any]] = []
        corners, classes = (cohort.boxes or ())[row]
        for box, kind in zip(corners.tolist(), classes.tolist(), strict=True):
            ellipse = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) | {"certainty": 4}
            ellipses.append(ellipse | {name: index == kind for name, index in columns.items()})
        names = ["xmin", "ymin", "xmax", "ymax", "certainty", *columns]
        _write(folder / reading / "anomaly_location_ellipses.csv", pd.DataFrame(ellipses, columns=names))
    for phase, rows in per_phase.items():
        _write(folder / f"metadata_phase_{phase}.csv", pd.DataFrame(rows))
