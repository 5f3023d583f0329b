"""The script that makes the bundled sample, on small synthetic volumes."""

import hashlib
import importlib
import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.helpers import assert_close

pytestmark = pytest.mark.checkout

CT_SPACING = (0.9766, 0.9766, 3.27)
PET_SPACING = (5.4688, 5.4688, 3.27)


@pytest.fixture(scope="module")
def prepare():
    return importlib.import_module("experiments.fusion_quality.prepare")


def affine_of(spacing, origin=(31.0, -12.0, -865.0)):
    """NIfTI affine with the signs of the source: x index to the left, y index to the back, z index to the head."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = origin
    return affine


def millimetres(grid):
    """Coordinates of every voxel, three arrays with axes (x, y, z)."""
    return np.meshgrid(*grid, indexing="ij")


def ramp(grid):
    x, y, z = millimetres(grid)
    return 2.0 * x - 3.0 * y + 0.5 * z + 700.0


def between_outermost_centres(prepare, source, target, margin):
    """Voxels (z, y, x) of `target` that lie, with `margin` mm on all sides, between the outermost centres."""
    inside = [
        (goal - margin >= min(centres) - 1e-9) & (goal + margin <= max(centres) + 1e-9)
        for centres, goal in zip(source, target, strict=True)
    ]
    return np.ix_(*reversed(inside))


def synthetic_patient(seed=0, shift=0.0):
    """A ball of 24 mm radius in 60 HU and SUV 5, air and noise around it, CT and PET on different grids."""
    prepare = importlib.import_module("experiments.fusion_quality.prepare")
    rng = np.random.default_rng(seed)
    ct_affine = affine_of(CT_SPACING)
    pet_affine = affine_of(PET_SPACING, origin=(35.0, -7.5, -865.0))
    volumes = {"ct_affine": ct_affine, "pet_affine": pet_affine}
    grids = {
        "ct": prepare.grid_from_affine(ct_affine, (82, 90, 27), "ct"),
        "pet": prepare.grid_from_affine(pet_affine, (17, 18, 27), "pet"),
    }
    centre = [axis.mean() for axis in grids["ct"]]
    for kind, grid in grids.items():
        offset = shift if kind == "pet" else 0.0
        x, y, z = millimetres(grid)
        ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2] - offset) ** 2 <= 24.0**2
        volumes[f"{kind}_mask"] = ball.astype(np.uint8)
        noise = rng.normal(size=ball.shape)
        volumes[kind] = (
            np.where(ball, 60 + 10 * noise, -90 + 10 * noise).astype(np.int16)
            if kind == "ct"
            else np.clip(np.where(ball, 5 + 0.3 * noise, 0.5 + 0.1 * noise), 0, None).astype(np.float16)
        )
    return volumes


CLINICAL_ROW = {
    "age_years": "59",
    "sex": "Male",
    "histological_type": "liposarcoma, well differentiated",
    "mskcc_type": "Liposarcoma",
    "site_of_primary_sts": "left thigh",
    "grade": "High",
    "days_diagnosis_to_mri": "-7",
    "days_mri_to_pet": "4",
    "treatment": "Radiotherapy + Surgery",
    "outcome_text": "none",
    "days_diagnosis_to_outcome": "",
    "status": "NED",
    "days_diagnosis_to_last_follow_up": "845",
    "lung_metastases": "0",
    "distant_metastases": "0",
    "local_or_regional_recurrence": "0",
    "paper_cohort_48": "1",
}


def write_source(folder: Path, clinical=CLINICAL_ROW) -> Path:
    """A data folder with two synthetic patients; returns it."""
    source = folder / "sts_petct"
    (source / "volumes").mkdir(parents=True)
    figures = [
        "patient_id,gtv_voxels_ct,gtv_volume_ml_ct,suv_max_gtv,suv_mean_gtv,hu_mean_gtv,ct_spacing_mm,pet_spacing_mm"
    ]
    rows = [",".join(["patient_id", *clinical])]
    for seed, patient in enumerate(("STS_001", "STS_002")):
        volumes = synthetic_patient(seed)
        np.savez_compressed(source / "volumes" / f"{patient}.npz", allow_pickle=False, **volumes)
        voxels, suv = int(volumes["ct_mask"].sum()), volumes["pet"][volumes["pet_mask"] > 0].astype(float)
        cells = [patient, voxels, voxels * np.prod(CT_SPACING) / 1000, suv.max(), suv.mean()]
        cells += [volumes["ct"][volumes["ct_mask"] > 0].mean()]
        cells += ["x".join(f"{step:.4f}" for step in spacing) for spacing in (CT_SPACING, PET_SPACING)]
        figures.append(",".join(map(str, cells)))
        rows.append(",".join([patient, *(f'"{cell}"' for cell in clinical.values())]))
    (source / "volumes.csv").write_text("\n".join(figures) + "\n")
    (source / "clinical.csv").write_text("\n".join(rows) + "\n")
    write_sums(source)
    return folder


def write_sums(source: Path) -> None:
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and path.name != "SHA256SUMS"]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(source).as_posix()}" for path in files
    ]
    (source / "SHA256SUMS").write_text("\n".join(lines) + "\n")


# The grid


def test_the_grid_covers_the_box_about_its_centre_and_barely_more(prepare):
    source = prepare.grid_from_affine(affine_of(CT_SPACING), (83, 90, 27), "ct")
    grid = prepare.isotropic_grid(source, 4.0)
    assert_close(grid.steps, np.array([-4.0, -4.0, 4.0]), rtol=1e-12)
    for ours, theirs, step in zip(grid, source, CT_SPACING, strict=True):
        assert ours.mean() == pytest.approx(theirs.mean())
        beyond = (len(ours) * 4.0 - len(theirs) * step) / 2
        assert 0 <= beyond < 2.0


def test_an_extent_of_whole_voxels_gains_none_from_rounding(prepare):
    source = prepare.grid_from_affine(affine_of((1.0 + 1e-9, 1.0, 2.0)), (40, 40, 20), "ct")
    assert [len(axis) for axis in prepare.isotropic_grid(source, 4.0)] == [10, 10, 10]


def test_the_affine_of_the_result_leads_back_to_millimetres(prepare):
    grid = prepare.isotropic_grid(prepare.grid_from_affine(affine_of(CT_SPACING), (83, 90, 27), "ct"), 4.0)
    for d, h, w in [(0, 0, 0), (3, 5, 7), (21, 2, 20)]:
        position = prepare.house_affine(grid) @ [d, h, w, 1]
        np.testing.assert_allclose(position, [grid.x[w], grid.y[h], grid.z[d], 1])


def test_a_rotated_affine_is_refused_by_name(prepare):
    affine = affine_of(CT_SPACING)
    affine[0, 1] = 0.01
    with pytest.raises(ValueError, match=r"STS_007, CT: the affine .* is rotated"):
        prepare.grid_from_affine(affine, (4, 4, 4), "STS_007, CT")


# Resampling


def test_interpolation_reproduces_a_ramp_in_millimetres(prepare):
    source = prepare.grid_from_affine(affine_of(PET_SPACING), (17, 18, 27), "pet")
    # Another box than the PET's own, as in the source.
    target = prepare.isotropic_grid(
        prepare.grid_from_affine(affine_of(CT_SPACING, (25, -20, -860)), (61, 70, 20), ""), 4
    )
    made = prepare.resample(
        ramp(source), [prepare.interpolation_weights(*axis) for axis in zip(source, target, strict=True)]
    )
    inside = between_outermost_centres(prepare, source, target, margin=0.0)
    expected = ramp(target).transpose()
    assert expected[inside].size > 1000
    np.testing.assert_allclose(made[inside], expected[inside], rtol=1e-12)


def test_averaging_reproduces_a_ramp_in_millimetres(prepare):
    source = prepare.grid_from_affine(affine_of(CT_SPACING), (83, 90, 27), "ct")
    target = prepare.isotropic_grid(source, 4.0)
    weights = [prepare.averaging_weights(*axis, 4.0) for axis in zip(source, target, strict=True)]
    inside = between_outermost_centres(prepare, source, target, margin=2.0)
    made, expected = prepare.resample(ramp(source), weights), ramp(target).transpose()
    assert expected[inside].size > 0.7 * expected.size
    np.testing.assert_allclose(made[inside], expected[inside], rtol=1e-12)


def test_interpolation_equals_scipy(prepare):
    rng = np.random.default_rng(0)
    source = prepare.grid_from_affine(affine_of(PET_SPACING), (9, 8, 7), "pet")
    target = prepare.isotropic_grid(source, 4.0)
    volume = rng.normal(size=(9, 8, 7))
    index = [(goal - axis[0]) / (axis[1] - axis[0]) for axis, goal in zip(source, target, strict=True)]
    expected = ndimage.map_coordinates(volume, np.meshgrid(*index, indexing="ij"), order=1, mode="nearest")
    made = prepare.resample(volume, [prepare.interpolation_weights(*axis) for axis in zip(source, target, strict=True)])
    assert_close(made, expected.transpose(), rtol=1e-12)


def test_averaging_equals_the_mean_of_many_interpolated_points(prepare):
    rng = np.random.default_rng(1)
    source = -31.0 - 0.9766 * np.arange(41)  # decreasing, as x and y are
    target = source.mean() - 4.0 * (np.arange(11) - 5)
    fine = target[:, None] + 4.0 * ((np.arange(4000) + 0.5) / 4000 - 0.5)
    values = rng.normal(size=41)
    expected = np.interp(-fine, -source, values).mean(axis=1)
    assert_close(prepare.averaging_weights(source, target, 4.0) @ values, expected, rtol=1e-5)


@pytest.mark.parametrize("weights", ["interpolation_weights", "averaging_weights"])
def test_a_constant_stays_constant_to_the_border(prepare, weights):
    source = 10.0 + 3.27 * np.arange(12)
    target = source.mean() + 4.0 * (np.arange(11) - 5)
    width = () if weights == "interpolation_weights" else (4.0,)
    matrix = getattr(prepare, weights)(source, target, *width)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    assert matrix.min() >= 0


def test_averaging_removes_a_pattern_that_point_sampling_aliases(prepare):
    source = 0.9766 * np.arange(200)
    target = source.mean() + 4.0 * (np.arange(40) - 19.5)
    stripes = np.sin(2 * np.pi * source / 2.5)  # finer than two 4 mm voxels can carry
    assert np.abs(prepare.averaging_weights(source, target, 4.0) @ stripes).max() < 0.25
    assert np.abs(prepare.interpolation_weights(source, target) @ stripes).max() > 0.6


def test_a_point_keeps_its_place_and_axes_become_z_y_x(prepare):
    source = prepare.grid_from_affine(affine_of(CT_SPACING), (80, 70, 30), "ct")
    target = prepare.isotropic_grid(source, 4.0)
    volume = np.zeros((80, 70, 30))
    volume[9, 50, 21] = 1.0
    made = prepare.resample(
        volume, [prepare.averaging_weights(*axis, 4.0) for axis in zip(source, target, strict=True)]
    )
    d, h, w = np.unravel_index(made.argmax(), made.shape)
    found = (prepare.house_affine(target) @ [d, h, w, 1])[:3]
    there = [source.x[9], source.y[50], source.z[21]]
    assert np.abs(found - there).max() <= 2.0 + 1e-9


def test_overlap_keeps_the_volume_of_a_mask(prepare):
    rng = np.random.default_rng(2)
    source = prepare.grid_from_affine(affine_of(CT_SPACING), (50, 41, 13), "ct")
    target = prepare.isotropic_grid(source, 4.0)
    mask = rng.random((50, 41, 13)) < 0.3
    occupied = prepare.resample(
        mask, [prepare.overlap_weights(*axis, 4.0) for axis in zip(source, target, strict=True)]
    )
    assert occupied.sum() * 64 == pytest.approx(mask.sum() * np.prod(CT_SPACING), rel=1e-9)
    assert 0 <= occupied.min() <= occupied.max() <= 1 + 1e-12


def test_a_patient_keeps_volume_density_and_uptake(prepare):
    volumes = synthetic_patient()
    patient = prepare.resample_patient(volumes, "STS_001")
    assert (patient.pet.dtype, patient.ct.dtype, patient.mask.dtype) == (np.float16, np.int16, np.bool_)
    ball = 4 / 3 * np.pi * 24.0**3
    assert patient.mask.sum() * 64 == pytest.approx(ball, rel=0.03)
    core = ndimage.binary_erosion(patient.mask, iterations=2)
    assert patient.ct[core].mean() == pytest.approx(60, abs=1)
    assert patient.pet[core].astype(float).mean() == pytest.approx(5, abs=0.05)
    # Averaging some 20 independent voxels a cube leaves little of a noise of 10 HU.
    assert patient.ct[core].std() < 3.5


def test_the_distance_of_the_masks_is_measured_in_millimetres(prepare):
    assert prepare.resample_patient(synthetic_patient(shift=6.54), "STS_019").centroid_distance == pytest.approx(
        6.54, abs=0.3
    )
    assert prepare.resample_patient(synthetic_patient(), "STS_001").centroid_distance < 0.3


# The file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("data"))


def copy_of(data: Path, folder: Path) -> Path:
    for path in (data / "sts_petct").rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def test_the_same_source_gives_the_same_bytes(prepare, data, tmp_path, monkeypatch):
    first = prepare.run(prepare.Config(data=data, out=tmp_path / "first.npz"))
    # A zip archive can carry the time of day.
    monkeypatch.setattr(time, "time", lambda: 2e9)
    second = prepare.run(prepare.Config(data=data, out=tmp_path / "second.npz"))
    assert first == second
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.npz", "second.npz"]


def test_the_file_holds_every_column_and_no_objects(prepare, data, tmp_path):
    prepare.run(prepare.Config(data=data, out=tmp_path / "sample.npz"))
    with np.load(io.BytesIO((tmp_path / "sample.npz").read_bytes()), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert arrays["patient_id"].tolist() == ["STS_001", "STS_002"]
    for name in CLINICAL_ROW:
        assert len(arrays[f"table/{name}"]) == 2
    assert arrays["table/histological_type"][0] == "liposarcoma, well differentiated"
    assert np.isnan(arrays["table/days_diagnosis_to_outcome"]).all()
    assert arrays["table/paper_cohort_48"].tolist() == [True, True]
    assert arrays["table/pet_spacing_in_plane_mm"].tolist() == [5.4688, 5.4688]
    assert "Creative Commons Attribution 3.0" in str(arrays["about"])


def test_a_missing_folder_is_named_with_the_way_out(prepare, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SHA256SUMS: not found; .* --data, or set FUSION_JAX_DATA"):
        prepare.run(prepare.Config(data=tmp_path / "nowhere", out=tmp_path / "sample.npz"))


def test_a_missing_volume_is_named(prepare, data, tmp_path):
    folder = copy_of(data, tmp_path)
    (folder / "sts_petct" / "volumes" / "STS_002.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"STS_002\.npz: not found, but named in SHA256SUMS"):
        prepare.run(prepare.Config(data=folder, out=tmp_path / "sample.npz"))


@pytest.mark.parametrize("name", ["clinical.csv", "volumes/STS_002.npz"])
def test_a_changed_file_is_named_and_nothing_written(prepare, data, tmp_path, name):
    folder = copy_of(data, tmp_path)
    path = folder / "sts_petct" / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=rf"{path.name}: SHA-256 is [0-9a-f]{{64}}, SHA256SUMS says"):
        prepare.run(prepare.Config(data=folder, out=tmp_path / "sample.npz"))
    assert not (tmp_path / "sample.npz").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age_years": "unknown"}, r"clinical\.csv: patient STS_001, column 'age_years' holds 'unknown'"),
        ({"paper_cohort_48": "yes"}, r"column 'paper_cohort_48' holds 'yes'; expected 0 or 1"),
        ({"stage": "II"}, r"column 'stage' is not known"),
    ],
)
def test_a_bad_clinical_cell_or_column_is_named(prepare, change, message):
    rows = {"STS_001": {"patient_id": "STS_001", **CLINICAL_ROW, **change}}
    with pytest.raises(ValueError, match=message):
        prepare.clinical_columns(rows, Path("clinical.csv"))


def test_volumes_of_another_patient_are_refused(prepare, data, tmp_path):
    folder = copy_of(data, tmp_path)
    source = folder / "sts_petct"
    text = (source / "volumes.csv").read_text()
    voxels = text.splitlines()[1].split(",")[1]
    (source / "volumes.csv").write_text(text.replace(f"STS_001,{voxels}", "STS_001,7", 1))
    write_sums(source)
    with pytest.raises(ValueError, match=rf"STS_001: {voxels} tumour voxels on the CT grid, volumes.csv says 7"):
        prepare.run(prepare.Config(data=folder, out=tmp_path / "sample.npz"))


def test_a_tumour_too_small_for_the_grid_is_refused(prepare):
    volumes = synthetic_patient()
    volumes["ct_mask"] = np.zeros_like(volumes["ct_mask"])
    volumes["ct_mask"][40:46, 40:46, 13:15] = 1
    patient = prepare.resample_patient(volumes, "STS_001")
    row = {
        "gtv_voxels_ct": "72",
        "gtv_volume_ml_ct": str(72 * np.prod(CT_SPACING) / 1000),
        "ct_spacing_mm": "0.9766x0.9766x3.2700",
        "pet_spacing_mm": "5.4688x5.4688x3.2700",
    }
    with pytest.raises(ValueError, match=r"STS_001: the tumour has \d voxels of 4 mm"):
        prepare.check_patient(patient, volumes, row, "STS_001")


def test_the_command_ends_in_exit_code_2_with_one_message(prepare, tmp_path):
    root = Path(prepare.__file__).parents[2]
    command = [sys.executable, "-m", "experiments.fusion_quality.prepare", "--data", str(tmp_path)]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert "Traceback" not in answer.stderr
