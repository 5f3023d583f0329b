"""Make the bundled soft-tissue-sarcoma sample from the source volumes.

    python -m experiments.fusion_quality.prepare      # 51 patients, 3 s on 2 cores

Reads `sts_petct` in the data folder (`--data`, else FUSION_JAX_DATA, else `../shared/data` beside the checkout), checks
every file against its SHA256SUMS and writes one compressed npz. The same input gives the same bytes. Expected: tumour
volumes within 4 % of those on the CT grid, 262 voxels in the smallest tumour.
"""

import csv
import dataclasses
import hashlib
import io
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Bool, Float, Num
from rich.console import Console
from rich.progress import track

from fusion_jax.data import samples
from fusion_jax.records import write_bytes

SPACING = 4.0  # mm
# SUV is rounded to a step that float16 holds exactly up to 16. It saves a third of the PET's bytes, and its error, at
# most 0.004 below SUV 16, is far below the noise of a PET voxel.
SUV_STEP = 1 / 128
LARGEST_VOLUME_ERROR = 0.05
SMALLEST_TUMOUR = 100  # voxels

INTEGER_COLUMNS = (
    "age_years",
    "days_diagnosis_to_mri",
    "days_mri_to_pet",
    "days_diagnosis_to_last_follow_up",
    "lung_metastases",
    "distant_metastases",
    "local_or_regional_recurrence",
)
GAPPY_COLUMNS = ("days_diagnosis_to_outcome",)  # numbers with empty cells
FLAG_COLUMNS = ("paper_cohort_48",)
TEXT_COLUMNS = (
    "sex",
    "histological_type",
    "mskcc_type",
    "site_of_primary_sts",
    "grade",
    "treatment",
    "outcome_text",
    "status",
)
FIGURES = {
    "gtv_volume_ml_ct": "tumour_volume_ml",
    "suv_max_gtv": "suv_max",
    "suv_mean_gtv": "suv_mean",
    "hu_mean_gtv": "hu_mean",
}
"""Columns of volumes.csv and their names in the sample."""

ABOUT = """\
Soft-tissue sarcoma PET-CT, 51 patients, 4 mm grid. Axes (z, y, x): feet to head, front to back, patient's right to
left. Licence: Creative Commons Attribution 3.0 Unported. Source: Vallieres M, Freeman CR, Skamene SR, El Naqa I (2015),
The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2015.7GO2GSKS, by way of github.com/theibsi/data_sets. Changed: cropped,
resampled, rounded. See sample_files/README.md of fusion_jax.data."""


def data_folder() -> Path:
    """FUSION_JAX_DATA, else `../shared/data` relative to the checkout."""
    checkout = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("FUSION_JAX_DATA") or checkout.parent / "shared" / "data")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to read and where to write."""

    data: Path = dataclasses.field(default_factory=data_folder)
    """Folder that holds `sts_petct`."""
    out: Path = samples.SAMPLE_FILE
    """The npz to write."""


# Geometry


class Grid(NamedTuple):
    """Voxel centres in mm, one increasing or decreasing vector for each of the axes x, y, z."""

    x: Float[np.ndarray, "w"]
    y: Float[np.ndarray, "h"]
    z: Float[np.ndarray, "d"]

    @property
    def steps(self) -> Float[np.ndarray, "3"]:
        """Signed distance of neighbouring centres, mm."""
        return np.array([centres[1] - centres[0] for centres in self])


def grid_from_affine(affine: Float[np.ndarray, "4 4"], shape: tuple[int, ...], name: str) -> Grid:
    """Centres of a volume with axes (x, y, z) whose affine has no rotation."""
    steps = np.diag(affine)[:3]
    if not np.array_equal(affine[:3, :3], np.diag(steps)) or not steps.all():
        raise ValueError(f"{name}: the affine {affine.tolist()} is rotated or sheared; expected axes along x, y and z.")
    x, y, z = (origin + step * np.arange(n) for origin, step, n in zip(affine[:3, 3], steps, shape, strict=True))
    return Grid(x, y, z)


def isotropic_grid(source: Grid, spacing: float) -> Grid:
    """Smallest grid of cubic voxels that covers the box of `source`, about the same centre and in the same directions.

    Opposite faces stand out by the same amount, less than half a voxel.
    """
    axes = []
    for centres, step in zip(source, source.steps, strict=True):
        # The affines carry rounding of about 1e-6 mm, which must not cost a voxel.
        n = math.ceil(abs(step) * len(centres) / spacing - 1e-6)
        middle = (centres[0] + centres[-1]) / 2
        axes.append(middle + math.copysign(spacing, step) * (np.arange(n) - (n - 1) / 2))
    return Grid(*axes)


def house_affine(grid: Grid) -> Float[np.ndarray, "4 4"]:
    """Matrix from voxel index (d, h, w, 1), along z, y, x, to (x, y, z, 1) in mm."""
    affine = np.zeros((4, 4))
    affine[[0, 1, 2], [2, 1, 0]] = grid.steps
    affine[:3, 3] = [centres[0] for centres in grid]
    affine[3, 3] = 1
    return affine


def centroid(mask: Num[np.ndarray, "w h d"], grid: Grid) -> Float[np.ndarray, "3"]:
    """Centre of the true voxels, (x, y, z) in mm."""
    return np.array([centres[index].mean() for centres, index in zip(grid, np.nonzero(mask), strict=True)])


# Resampling: along each axis a matrix that turns source samples into target samples.


def interpolation_weights(source: Float[np.ndarray, "n"], target: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m n"]:
    """Linear interpolation at the target centres; beyond the outermost source centre the value stays constant.

    For volumes whose voxels are about as large as the target's (PET): nothing to alias.
    """
    position = np.clip(_index(source, target), 0, len(source) - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(len(source))))


def averaging_weights(
    source: Float[np.ndarray, "n"], target: Float[np.ndarray, "m"], width: float
) -> Float[np.ndarray, "m n"]:
    """Mean of the linear interpolant over target voxels of `width` mm; constant beyond the outermost source centre.

    The low-pass that down-sampling needs (CT). Averaging whole and partial source voxels instead would move every
    voxel towards the centres of its partial ones, by up to 0.3 mm between slices of 3.27 mm.
    """
    last = len(source) - 1
    centre, radius = _index(source, target), width / abs(source[1] - source[0]) / 2
    low, high = (centre - radius)[:, None], (centre + radius)[:, None]

    def hat_integral(to: Float[np.ndarray, "m 1"]) -> Float[np.ndarray, "m n"]:
        s = np.clip(np.clip(to, 0, last) - np.arange(last + 1), -1, 1)
        return np.where(s < 0, (1 + s) ** 2, 2 - (1 - s) ** 2) / 2

    weights = hat_integral(high) - hat_integral(low)
    weights[:, :1] += np.minimum(high, 0) - np.minimum(low, 0)
    weights[:, -1:] += np.maximum(high, last) - np.maximum(low, last)
    return weights / (2 * radius)


def overlap_weights(
    source: Float[np.ndarray, "n"], target: Float[np.ndarray, "m"], width: float
) -> Float[np.ndarray, "m n"]:
    """Fraction of each target voxel that each source voxel fills; rows at the border sum to less than one.

    For masks: the product over the axes is the occupied fraction of the target voxel, and no volume is lost.
    """
    number = np.arange(len(source))
    centre, radius = _index(source, target)[:, None], width / abs(source[1] - source[0]) / 2
    overlap = np.minimum(centre + radius, number + 0.5) - np.maximum(centre - radius, number - 0.5)
    return np.maximum(overlap, 0) / (2 * radius)


def _index(source: Float[np.ndarray, "n"], target: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """Positions of the target centres, counted in source voxels."""
    return (target - source[0]) / (source[1] - source[0])


def resample(
    volume: Num[np.ndarray, "w h d"], weights: Sequence[Float[np.ndarray, "m n"]]
) -> Float[np.ndarray, "d h w"]:
    """Apply one matrix to each of the axes (x, y, z); the result has axes (z, y, x)."""
    along_x, along_y, along_z = weights
    return np.einsum("dz,hy,wx,xyz->dhw", along_z, along_y, along_x, volume.astype(np.float64), optimize=True)


class Patient(NamedTuple):
    """One patient on the 4 mm grid, in the dtypes of the file."""

    pet: Num[np.ndarray, "d h w"]
    ct: Num[np.ndarray, "d h w"]
    mask: Bool[np.ndarray, "d h w"]
    affine: Float[np.ndarray, "4 4"]
    centroid_distance: float


def resample_patient(volumes: Mapping[str, np.ndarray], name: str) -> Patient:
    """Bring PET, CT and the CT's tumour mask of one patient onto one grid over the CT's box.

    Args:
      volumes: `ct`, `ct_mask`, `ct_affine`, `pet`, `pet_mask`, `pet_affine`, axes (x, y, z).
      name: whose they are, for errors.
    """
    ct_grid = grid_from_affine(volumes["ct_affine"], volumes["ct"].shape, f"{name}, CT")
    pet_grid = grid_from_affine(volumes["pet_affine"], volumes["pet"].shape, f"{name}, PET")
    grid = isotropic_grid(ct_grid, SPACING)

    ct = resample(volumes["ct"], [averaging_weights(*axis, SPACING) for axis in zip(ct_grid, grid, strict=True)])
    pet = resample(volumes["pet"], [interpolation_weights(*axis) for axis in zip(pet_grid, grid, strict=True)])
    occupied = resample(
        volumes["ct_mask"], [overlap_weights(*axis, SPACING) for axis in zip(ct_grid, grid, strict=True)]
    )
    return Patient(
        pet=(np.rint(pet / SUV_STEP) * SUV_STEP).astype(np.float16),
        ct=np.rint(ct).astype(np.int16),
        # The grids share their centre, so a fraction of exactly one half is not rare; rounding must not decide it.
        mask=occupied >= 0.5 - 1e-9,
        affine=house_affine(grid),
        centroid_distance=float(
            np.linalg.norm(centroid(volumes["ct_mask"], ct_grid) - centroid(volumes["pet_mask"], pet_grid))
        ),
    )


# Source files


class SourceFolder:
    """The source, each file of which is compared with SHA256SUMS when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        sums = path / "SHA256SUMS"
        if not sums.is_file():
            raise FileNotFoundError(
                f"{sums}: not found; expected the folder `sts_petct` of the project's data in {path.parent}. "
                "Give the folder above it with --data, or set FUSION_JAX_DATA."
            )
        self.expected = {}
        for line in sums.read_text(encoding="utf-8").splitlines():
            checksum, _, name = line.partition("  ")
            self.expected[name.strip()] = checksum

    def read(self, name: str) -> bytes:
        path = self.path / name
        if name not in self.expected:
            raise ValueError(f"{self.path / 'SHA256SUMS'}: no line for {name}; the data folder is incomplete.")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found, but named in SHA256SUMS; the data folder is incomplete.")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.expected[name]:
            raise ValueError(
                f"{path}: SHA-256 is {found}, SHA256SUMS says {self.expected[name]}; the file is damaged or was "
                "changed. Copy it again."
            )
        return content

    def table(self, name: str, columns: Sequence[str]) -> dict[str, dict[str, str]]:
        """Rows of a CSV file by patient, cells as text, with at least `columns`."""
        rows = csv.DictReader(io.StringIO(self.read(name).decode("utf-8"), newline=""))
        missing = {"patient_id", *columns} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{self.path / name}: no column {', '.join(map(repr, sorted(missing)))}.")
        return {row["patient_id"]: row for row in rows}

    def volumes(self, patient: str) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(self.read(f"volumes/{patient}.npz")), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def clinical_columns(rows: Mapping[str, Mapping[str, str]], path: Path) -> dict[str, np.ndarray]:
    """Columns of clinical.csv in their order; an empty cell stays an empty text, or NaN among numbers."""

    def parse(column: str, convert: Any, expected: str) -> list[Any]:
        values = []
        for patient, row in rows.items():
            try:
                values.append(convert(row[column]))
            except (ValueError, KeyError):
                raise ValueError(
                    f"{path}: patient {patient}, column {column!r} holds {row[column]!r}; expected {expected}."
                ) from None
        return values

    columns = {}
    for column in next(iter(rows.values())):
        if column in INTEGER_COLUMNS:
            columns[column] = np.array(parse(column, int, "a whole number"), dtype=np.int64)
        elif column in GAPPY_COLUMNS:
            columns[column] = np.array(parse(column, lambda cell: float(cell or "nan"), "a number or nothing"))
        elif column in FLAG_COLUMNS:
            columns[column] = np.array(parse(column, {"0": False, "1": True}.__getitem__, "0 or 1"))
        elif column in TEXT_COLUMNS:
            columns[column] = np.array([row[column] for row in rows.values()], dtype=np.str_)
        elif column != "patient_id":
            raise ValueError(f"{path}: column {column!r} is not known. Add it to one of the lists in {__file__}.")
    return columns


def check_patient(patient: Patient, volumes: Mapping[str, np.ndarray], row: Mapping[str, str], name: str) -> None:
    """Refuse a patient whose table row belongs to other volumes, or whose tumour did not survive the resampling."""
    voxels = int(volumes["ct_mask"].sum())
    if voxels != int(row["gtv_voxels_ct"]):
        raise ValueError(f"{name}: {voxels} tumour voxels on the CT grid, volumes.csv says {row['gtv_voxels_ct']}.")
    for kind in ("ct", "pet"):
        found = np.abs(np.diag(volumes[f"{kind}_affine"])[:3])
        if not np.allclose(found, spacing_mm(row, kind), atol=1e-3):
            raise ValueError(
                f"{name}: {kind} spacing is {found.tolist()} mm, volumes.csv says {row[f'{kind}_spacing_mm']}."
            )
    kept = int(patient.mask.sum())
    error = kept * SPACING**3 / 1000 / float(row["gtv_volume_ml_ct"]) - 1
    if kept < SMALLEST_TUMOUR or abs(error) > LARGEST_VOLUME_ERROR:
        raise ValueError(
            f"{name}: the tumour has {kept} voxels of {SPACING:g} mm, its volume changed by {error:+.1%}; expected at "
            f"least {SMALLEST_TUMOUR} voxels and a change below {LARGEST_VOLUME_ERROR:.0%}. Use a finer grid."
        )


def spacing_mm(row: Mapping[str, str], kind: str) -> tuple[float, float, float]:
    """Voxel spacing (x, y, z) of `ct` or `pet` in a row of volumes.csv."""
    x, y, z = map(float, row[f"{kind}_spacing_mm"].split("x"))
    return x, y, z


# The file


def build(source: SourceFolder, console: Console) -> dict[str, np.ndarray]:
    """Arrays of the sample by name."""
    clinical = source.table("clinical.csv", [*INTEGER_COLUMNS, *GAPPY_COLUMNS, *FLAG_COLUMNS, *TEXT_COLUMNS])
    figures = source.table("volumes.csv", [*FIGURES, "gtv_voxels_ct", "ct_spacing_mm", "pet_spacing_mm"])
    if clinical.keys() != figures.keys():
        odd = ", ".join(sorted(clinical.keys() ^ figures.keys()))
        raise ValueError(f"{source.path}: clinical.csv and volumes.csv name different patients: {odd}.")

    patients = {}
    for name in track(clinical, description=f"Resampling to {SPACING:g} mm", console=console):
        volumes = source.volumes(name)
        patients[name] = resample_patient(volumes, name)
        check_patient(patients[name], volumes, figures[name], name)

    table = clinical_columns(clinical, source.path / "clinical.csv")
    rows = [figures[name] for name in clinical]
    for column, name in FIGURES.items():
        table[name] = np.array([float(row[column]) for row in rows])
    for kind in ("pet", "ct"):
        spacings = np.array([spacing_mm(row, kind) for row in rows])
        table[f"{kind}_spacing_in_plane_mm"] = spacings[:, 0]  # x and y are the same in every row
        table[f"{kind}_spacing_slice_mm"] = spacings[:, 2]
    # 0.01 mm is as fine as a centroid means anything, and keeps the last bits of a sum out of the file.
    table["mask_centroid_distance_mm"] = np.round([patient.centroid_distance for patient in patients.values()], 2)

    arrays = {
        "about": np.array(ABOUT),
        "spacing_mm": np.full(3, SPACING),
        "patient_id": np.array(list(patients), dtype=np.str_),
        **{f"table/{name}": column for name, column in table.items()},
    }
    for name, patient in patients.items():
        arrays |= {f"{name}/{part}": getattr(patient, part) for part in ("pet", "ct", "mask", "affine")}
    return arrays


def summary(arrays: Mapping[str, np.ndarray]) -> str:
    """How far figures inside the 4 mm mask lie from those at full resolution, worst patient first."""
    names = arrays["patient_id"].tolist()
    masks = [arrays[f"{name}/mask"] for name in names]
    voxels = np.array([mask.sum() for mask in masks])

    def inside(kind: str, reduce: Any) -> np.ndarray:
        values = (arrays[f"{name}/{kind}"].astype(np.float64)[mask] for name, mask in zip(names, masks, strict=True))
        return np.array([reduce(value) for value in values])

    deviations = {
        "tumour volume, %": 100 * (voxels * SPACING**3 / 1000 / arrays["table/tumour_volume_ml"] - 1),
        "SUVmean, %": 100 * (inside("pet", np.mean) / arrays["table/suv_mean"] - 1),
        "SUVmax, %": 100 * (inside("pet", np.max) / arrays["table/suv_max"] - 1),
        "mean HU, HU": inside("ct", np.mean) - arrays["table/hu_mean"],
    }
    lines = [f"{len(names)} patients; smallest tumour {voxels.min()} voxels ({names[voxels.argmin()]})"]
    lines.append("Inside the 4 mm mask against full resolution: median of absolute change, worst patients")
    for what, change in deviations.items():
        worst = np.argsort(-np.abs(change))[:3]
        listed = ", ".join(f"{names[i]} {change[i]:+.2f}" for i in worst)
        lines.append(f"  {what:18} {np.median(np.abs(change)):6.2f}   {listed}")
    return "\n".join(lines)


def run(config: Config) -> str:
    """Write the sample; returns its SHA-256."""
    console = Console()
    arrays = build(SourceFolder(config.data / "sts_petct"), console)
    # savez writes no clock time into the archive, so that equal arrays are equal files.
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(config.out, content.getvalue())
    checksum = hashlib.sha256(content.getvalue()).hexdigest()
    console.print(summary(arrays), highlight=False, soft_wrap=True)
    console.print(f"{config.out}: {len(content.getvalue()) / 1e6:.2f} MB", highlight=False, soft_wrap=True)
    console.print(f"SHA-256 {checksum}", highlight=False, soft_wrap=True)
    if checksum != samples.SHA256:
        console.print(
            "This differs from SHA256 in fusion_jax/data/samples.py: state the new one there if it is meant to.",
            soft_wrap=True,
        )
    return checksum


def main() -> int:
    """Exit code 2 and one message if the input cannot be used."""
    config = tyro.cli(Config, prog="python -m experiments.fusion_quality.prepare", description=__doc__)
    try:
        run(config)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
