"""The soft-tissue sarcomas that come with the package, as arrays; `fusion_jax.data.collections` makes a cohort of them.

PET, CT, tumour mask and clinical sheet of 51 patients with soft-tissue sarcoma of the extremities, on one isotropic
grid. `sample_files/README.md` has source, licence, citations, columns and what was changed; the file was
made by `experiments/fusion_quality/prepare.py`.
"""

import hashlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["CLINICAL_INPUTS", "OUTCOME_COLUMNS", "SarcomaSample", "clinical_inputs", "soft_tissue_sarcoma"]

SAMPLE_FILE = Path(__file__).with_name("sample_files") / "soft_tissue_sarcoma.npz"
SHA256 = "12fa8d0460b89bfe0c85da9718ce7872c43b5f47ac51ac4b383e02ca8d3afb08"

CLINICAL_INPUTS = ("age_years", "sex", "grade")
"""Columns known at diagnosis that a model of this cohort may read."""

# The flag of the 48 is here too: who is left out was decided by a recurrence during follow-up. The days to MRI and PET
# are not outcomes, but they tell how the course of care went and stay out with the other dates.
OUTCOME_COLUMNS = (
    "days_diagnosis_to_mri",
    "days_mri_to_pet",
    "treatment",
    "outcome_text",
    "days_diagnosis_to_outcome",
    "status",
    "days_diagnosis_to_last_follow_up",
    "lung_metastases",
    "distant_metastases",
    "local_or_regional_recurrence",
    "paper_cohort_48",
)
"""Columns that are an outcome, follow from it or date the course of care: targets and strata, never inputs."""

SEX_CODES = {"Female": 0.0, "Male": 1.0}
GRADE_CODES = {"Low": 1.0, "Intermediate": 2.0, "High": 3.0}
OLDEST_YEARS = 130


class SarcomaSample(NamedTuple):
    """PET-CT of patients with soft-tissue sarcoma, one entry a patient in every field, all in the order of the table.

    The first voxel axis runs from feet to head, the second from front to back, the third from the patient's right to
    the left: `pet[i][d]` drawn with row 0 on top is the usual axial view. Boxes differ from patient to patient.

    Attributes:
      patient_id: `STS_001` and so on.
      pet: standardised uptake values, float32, each of its own shape `(d, h, w)`.
      ct: Hounsfield units, float32, the shapes of `pet`.
      mask: whether at least half of the voxel lies in the tumour contour of the CT, the shapes of `pet`.
      spacing: distance of voxel centres in mm, `(dz, dy, dx)`, the same for all.
      table: clinical sheet and full-resolution figures, indexed by `patient_id`; columns in `sample_files/README.md`.
      affine: per patient the matrix from voxel index `(d, h, w, 1)` to `(x, y, z, 1)` in mm, where x grows to the
        patient's right, y to the front and z to the head (RAS+, as in NIfTI), shape `(4, 4)`.
    """

    patient_id: tuple[str, ...]
    pet: tuple[Float[np.ndarray, "d h w"], ...]
    ct: tuple[Float[np.ndarray, "d h w"], ...]
    mask: tuple[Bool[np.ndarray, "d h w"], ...]
    spacing: tuple[float, float, float]
    table: "pandas.DataFrame"
    affine: tuple[Float[np.ndarray, "4 4"], ...]


def soft_tissue_sarcoma(*, paper_cohort: bool = False) -> SarcomaSample:
    """PET, CT, tumour mask and clinical table of 51 patients with soft-tissue sarcoma, on a 4 mm grid.

    Tumour volume, SUVmax, SUVmean and mean HU of the table were measured on the source's own grids: at 4 mm the SUVmax
    is 1 to 37 % lower. Columns in `OUTCOME_COLUMNS` are never inputs of a prediction.

    Args:
      paper_cohort: only the 48 patients without local or regional recurrence, of whom 24 developed distant
        metastases; these are the ones that Peng et al. 2020 most likely used.

    Returns:
      The sample, in the order of the patients' numbers.

    Raises:
      FileNotFoundError: if the file of the sample is not beside this module.
      ValueError: if it is not the file that this version of the package was released with.

    Example:
      >>> sample = soft_tissue_sarcoma(paper_cohort=True)
      >>> len(sample.patient_id), sample.spacing, int(sample.table["distant_metastases"].sum())
      (48, (4.0, 4.0, 4.0), 24)
      >>> sample.pet[0].shape == sample.ct[0].shape == sample.mask[0].shape
      True

    References:
      Vallières et al. 2015, doi:10.7937/K9/TCIA.2015.7GO2GSKS and doi:10.1088/0031-9155/60/14/5471; CC BY 3.0.
    """
    with np.load(io.BytesIO(_checked_bytes()), allow_pickle=False) as file:
        table = _table(file)
        if paper_cohort:
            table = table.loc[table["paper_cohort_48"]]
        patients = tuple(table.index)
        dz, dy, dx = file["spacing_mm"].tolist()
        return SarcomaSample(
            patient_id=patients,
            pet=tuple(file[f"{patient}/pet"].astype(np.float32) for patient in patients),
            ct=tuple(file[f"{patient}/ct"].astype(np.float32) for patient in patients),
            mask=tuple(file[f"{patient}/mask"] for patient in patients),
            spacing=(dz, dy, dx),
            table=table,
            affine=tuple(file[f"{patient}/affine"] for patient in patients),
        )


def clinical_inputs(
    table: "pandas.DataFrame",
) -> tuple[Float[np.ndarray, "n t"], Bool[np.ndarray, "n t"], tuple[str, ...]]:
    """Age, sex and tumour grade as numbers, with what is missing marked and not guessed.

    Age in years; sex 0 for female, 1 for male; grade 1 for low, 2 for intermediate, 3 for high. Scaling and imputation
    are left to the caller, who knows the training patients.

    Args:
      table: one row a patient, indexed by patient, with the columns `CLINICAL_INPUTS` as in the sample's table.

    Returns:
      values: the numbers, 0 where missing, float64, shape `(n, t)`.
      present: where there is a value, shape `(n, t)`.
      names: the columns in their order, `CLINICAL_INPUTS`.

    Raises:
      ValueError: if a column is absent, or a cell is neither empty nor one of the expected words or numbers.

    Example:
      >>> values, present, names = clinical_inputs(soft_tissue_sarcoma().table)
      >>> names, values[0].tolist(), (~present).sum(axis=0).tolist()
      (('age_years', 'sex', 'grade'), [59.0, 1.0, 3.0], [0, 0, 3])
    """
    import pandas as pd

    for column in CLINICAL_INPUTS:
        if column not in table.columns:
            raise ValueError(
                f"clinical table: no column {column!r}; it has {', '.join(map(repr, table.columns))}. "
                f"Give the columns {', '.join(map(repr, CLINICAL_INPUTS))}."
            )
    values = np.zeros((len(table), len(CLINICAL_INPUTS)))
    present = np.zeros(values.shape, dtype=bool)
    for j, column in enumerate(CLINICAL_INPUTS):
        for i, (patient, cell) in enumerate(zip(table.index, table[column], strict=True)):
            # A cell read from CSV by other means than pandas may hold an empty string for a missing value.
            if pd.isna(cell) or cell == "":
                continue
            values[i, j] = _clinical_value(patient, column, cell)
            present[i, j] = True
    return values, present, CLINICAL_INPUTS


def _clinical_value(patient: Any, column: str, cell: Any) -> float:
    codes = {"sex": SEX_CODES, "grade": GRADE_CODES}.get(column)
    if codes is None:
        is_number = isinstance(cell, int | float | np.integer | np.floating) and not isinstance(cell, bool)
        if is_number and math.isfinite(cell) and 0 <= cell <= OLDEST_YEARS:
            return float(cell)
        expected = f"years as a number from 0 to {OLDEST_YEARS}"
    else:
        if isinstance(cell, str) and cell in codes:
            return codes[cell]
        expected = f"one of {', '.join(map(repr, codes))}"
    raise ValueError(
        f"clinical table: patient {patient!r}, column {column!r} holds {cell!r}; expected {expected}, "
        "or an empty cell where it is not known. Fix the cell."
    )


def _checked_bytes() -> bytes:
    """The sample file, if it is the one whose checksum this module states."""
    try:
        content = SAMPLE_FILE.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{SAMPLE_FILE}: the soft-tissue-sarcoma sample is missing. Install fusion-jax again; in a checkout, "
            "restore the file from git or make it with `python -m experiments.fusion_quality.prepare`."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{SAMPLE_FILE}: SHA-256 is {found}, expected {SHA256}; the file is damaged or from another version. "
            "Install fusion-jax again; in a checkout, restore the file from git."
        )
    return content


def _table(file: "np.lib.npyio.NpzFile") -> "pandas.DataFrame":
    """Columns named `table/...`, indexed by patient; an empty text is a missing value."""
    import pandas as pd

    columns = {}
    for name in file.files:
        if name.startswith("table/"):
            column = file[name]
            columns[name.removeprefix("table/")] = (
                [cell or None for cell in column.tolist()] if column.dtype.kind == "U" else column
            )
    index = pd.Index(file["patient_id"].tolist(), name="patient_id")
    return pd.DataFrame(columns, index=index)
