"""Writers of small, valid files; every test that needs a DICOM file writes it with pydicom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

UID = "1.2.826.0.1.3680043.8.498."
SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.3.1",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
}


def dataset(modality: str, **tags: Any) -> pydicom.Dataset:
    """A data set with the tags that every file has, and `tags`; a tag given as None is left out."""
    found = pydicom.Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = SOP_CLASSES[modality]
    found.SOPInstanceUID = generate_uid(prefix=UID)
    found.Modality = modality
    found.StudyInstanceUID, found.SeriesInstanceUID = UID + "1", UID + "2"
    found.FrameOfReferenceUID = UID + "3"
    for name, value in tags.items():
        if value is None:
            if name in found:
                del found[name]
        else:
            setattr(found, name, value)
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    return found


def with_pixels(found: pydicom.Dataset, pixels: np.ndarray, **tags: Any) -> pydicom.Dataset:
    """Grey pixels `(h, w)` or `(f, h, w)`, or colours `(h, w, 3)` where PhotometricInterpretation says so."""
    colour = tags.get("PhotometricInterpretation") == "RGB"
    rows, columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    defaults: dict[str, Any] = {
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    } | tags
    if colour:
        defaults["PlanarConfiguration"] = 0
    elif pixels.ndim == 3:
        defaults["NumberOfFrames"] = pixels.shape[0]
    defaults.setdefault("HighBit", defaults["BitsStored"] - 1)
    for name, value in defaults.items():
        if value is not None:
            setattr(found, name, value)
    found.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    return found


def save(path: Path, found: pydicom.Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The padding of signed pixels is stored as US or SS; pydicom chooses by PixelRepresentation.
    found.save_as(path, enforce_file_format=True)
    return path


def group(**tags: Any) -> Sequence:
    item = pydicom.Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return Sequence([item])


def items(*datasets: dict[str, Any]) -> Sequence:
    return Sequence([group(**tags)[0] for tags in datasets])


@pytest.fixture
def dicom() -> type:
    """Functions that make DICOM data sets and files, as attributes."""

    class Dicom:
        uid = UID

    for function in (dataset, with_pixels, save, group, items, write_slices):
        setattr(Dicom, function.__name__, staticmethod(function))
    return Dicom


def write_slices(
    folder: Path,
    volume: np.ndarray,
    *,
    origin: tuple[float, float, float] = (-20.0, -30.0, 100.0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (0.5, 0.75),
    step: float = 2.5,
    modality: str = "CT",
    names: Callable[[int], str] = "slice_{:03d}.dcm".format,
    change: Callable[[int, pydicom.Dataset], Any] = lambda k, found: None,
    **tags: Any,
) -> Path:
    """A series of the slices `volume[k]`, each `step` mm further along the normal; `change(k, dataset)` edits one."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    for k, pixels in enumerate(volume):
        found = dataset(modality, InstanceNumber=len(volume) - k)
        found.ImagePositionPatient = [float(f"{value:.6f}") for value in np.array(origin) + k * step * normal]
        found.ImageOrientationPatient = list(orientation)
        found.PixelSpacing, found.SliceThickness = list(spacing), step
        with_pixels(found, pixels, **tags)
        if change(k, found) is not False:
            found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
            save(folder / names(k), found)
    return folder


def volume(shape: tuple[int, ...] = (4, 5, 6), dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def _write_png(path: Path) -> tuple[Path, dict[str, Any]]:
    from PIL import Image

    Image.fromarray(volume((9, 7), np.uint8)).save(path / "image.png")
    return path / "image.png", {}


def _write_jpeg(path: Path) -> tuple[Path, dict[str, Any]]:
    from PIL import Image

    Image.fromarray(volume((24, 16, 3), np.uint16).astype(np.uint8)).save(path / "image.jpg")
    return path / "image.jpg", {}


def _write_tiff(path: Path) -> tuple[Path, dict[str, Any]]:
    import tifffile

    tifffile.imwrite(path / "image.tif", volume((9, 7), np.uint16), compression="zlib")
    return path / "image.tif", {}


def _write_npy(path: Path) -> tuple[Path, dict[str, Any]]:
    np.save(path / "image.npy", volume((9, 7), np.float32))
    return path / "image.npy", {"spacing": (1.5, 2.0)}


def _write_npz(path: Path) -> tuple[Path, dict[str, Any]]:
    np.savez_compressed(path / "image.npz", ct=volume(), affine=np.diag([2.0, 3.0, 4.0, 1.0]))
    return path / "image.npz", {"array": "ct", "axes": "xyz", "affine": "affine", "unit": "HU"}


def _write_nifti(path: Path) -> tuple[Path, dict[str, Any]]:
    import nibabel

    nibabel.Nifti1Image(volume(), np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(path / "image.nii.gz")
    return path / "image.nii.gz", {}


def _write_plain_nifti(path: Path) -> tuple[Path, dict[str, Any]]:
    import nibabel

    nibabel.Nifti2Image(volume(dtype=np.float32), np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(path / "image.nii")
    return path / "image.nii", {}


def _write_itk(path: Path, name: str, compress: bool) -> tuple[Path, dict[str, Any]]:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(volume())
    image.SetSpacing((2.0, 3.0, 4.0))
    SimpleITK.WriteImage(image, str(path / name), compress)
    return path / name, {}


def _write_dicom(path: Path) -> tuple[Path, dict[str, Any]]:
    found = dataset("DX", PixelSpacing=[0.2, 0.3], PatientName="Miller^Anna")
    return save(path / "image.dcm", with_pixels(found, volume((9, 7), np.uint16))), {}


def _write_dicom_series(path: Path) -> tuple[Path, dict[str, Any]]:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    return write_slices(path / "series", volume(), **tags), {}


def _write_rtstruct(path: Path) -> tuple[Path, dict[str, Any]]:
    write_slices(path / "ct", volume((4, 20, 20)), origin=(0, 0, 0), spacing=(1, 1), step=2)
    square = [4.5, 4.5, 2, 10.5, 4.5, 2, 10.5, 12.5, 2, 4.5, 12.5, 2]
    contours = items({"ContourGeometricType": "CLOSED_PLANAR", "NumberOfContourPoints": 4, "ContourData": square})
    found = dataset(
        "RTSTRUCT",
        StructureSetROISequence=items({"ROINumber": 1, "ROIName": "GTV", "ReferencedFrameOfReferenceUID": UID + "3"}),
        ROIContourSequence=items({"ReferencedROINumber": 1, "ContourSequence": contours}),
    )
    return save(path / "rs.dcm", found), {"region": "GTV", "image": "ct"}


def seg(frames: np.ndarray, places: list[tuple[int, tuple[float, float, float]]], kind: str = "BINARY", **tags: Any):
    """A segmentation of `frames` (f, h, w); `places` holds segment number and position of every frame."""
    found = dataset("SEG", SegmentationType=kind)
    found.SegmentSequence = items(
        *({"SegmentNumber": n, "SegmentLabel": f"region {n}"} for n in sorted({number for number, _ in places}))
    )
    measures = {"PixelSpacing": [1, 1], "SliceThickness": 2, "SpacingBetweenSlices": 2} | tags.pop("measures", {})
    found.SharedFunctionalGroupsSequence = items(
        {
            "PixelMeasuresSequence": items({name: value for name, value in measures.items() if value is not None}),
            "PlaneOrientationSequence": items({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
        }
    )
    found.PerFrameFunctionalGroupsSequence = items(
        *(
            {
                "SegmentIdentificationSequence": items({"ReferencedSegmentNumber": number}),
                "PlanePositionSequence": items({"ImagePositionPatient": list(position)}),
            }
            for number, position in places
        )
    )
    if kind == "BINARY":
        with_pixels(found, frames.astype(np.uint8), **({"BitsAllocated": 1, "BitsStored": 1} | tags))
        packed = np.packbits(frames.astype(np.uint8).ravel(), bitorder="little").tobytes()
        found.PixelData = packed + b"\0" * (len(packed) % 2)
    else:
        with_pixels(found, frames.astype(np.uint8), MaximumFractionalValue=200, **tags)
    return found


def _write_dicom_seg(path: Path) -> tuple[Path, dict[str, Any]]:
    frames = volume((3, 5, 7)) % 3 == 0
    places = [(1, (0.0, 0.0, 2.0 * k)) for k in range(3)]
    return save(path / "seg.dcm", seg(frames, places)), {}


VALID: dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]] = {
    "png": _write_png,
    "jpeg": _write_jpeg,
    "tiff": _write_tiff,
    "npy": _write_npy,
    "npz": _write_npz,
    "nifti": _write_nifti,
    "nifti, not compressed": _write_plain_nifti,
    "nrrd": lambda path: _write_itk(path, "image.nrrd", True),
    "nrrd, detached": lambda path: _write_itk(path, "image.nhdr", False),
    "metaimage": lambda path: _write_itk(path, "image.mha", True),
    "metaimage, detached": lambda path: _write_itk(path, "image.mhd", False),
    "dicom": _write_dicom,
    "dicom_series": _write_dicom_series,
    "rtstruct": _write_rtstruct,
    "dicom_seg": _write_dicom_seg,
}
"""Per reader, a function that writes a valid file into a folder and returns its path and the options to read it."""


@pytest.fixture(params=VALID)
def valid(request, tmp_path) -> tuple[str, Path, dict[str, Any]]:
    """Reader, path of a valid file of it, and options; every reader in turn."""
    path, options = VALID[request.param](tmp_path)
    return request.param.partition(",")[0], path, options


@pytest.fixture(scope="session")
def writers() -> dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]]:
    """The table of valid files."""
    return VALID


@pytest.fixture
def make_seg():
    return seg
