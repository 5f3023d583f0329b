"""The one door to all readers: which of them a file needs, by its content and its name."""

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.dicom import peek_dicom, read_dataset, read_dicom
from fusion_jax.data.readers.dicom_seg import peek_dicom_seg, read_dicom_seg
from fusion_jax.data.readers.dicom_series import peek_dicom_series, read_dicom_series
from fusion_jax.data.readers.guard import open_file, reading
from fusion_jax.data.readers.header import ImageHeader
from fusion_jax.data.readers.itk import peek_metaimage, peek_nrrd, read_metaimage, read_nrrd
from fusion_jax.data.readers.nifti import peek_nifti, read_nifti
from fusion_jax.data.readers.numpy_files import peek_npy, peek_npz, read_npy, read_npz
from fusion_jax.data.readers.raster import peek_jpeg, peek_png, read_jpeg, read_png
from fusion_jax.data.readers.rtstruct import peek_rtstruct, read_rtstruct
from fusion_jax.data.readers.tiff import peek_tiff, read_tiff

__all__ = ["READERS", "ImagePath", "Reader", "peek_image", "read_image", "reader_name"]

ImagePath = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A file, a folder of DICOM slices, or a list of such files."""


class Reader(NamedTuple):
    """How one kind of file is read.

    Attributes:
      read: from path and keyword options to `Image`.
      peek: the same without decoding voxels, to `ImageHeader`.
      suffixes: of file names, in lower case, for files whose content does not tell.
    """

    read: Callable[..., Image]
    peek: Callable[..., ImageHeader]
    suffixes: tuple[str, ...] = ()


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "png": Reader(read_png, peek_png, (".png",)),
        "jpeg": Reader(read_jpeg, peek_jpeg, (".jpg", ".jpeg")),
        "tiff": Reader(read_tiff, peek_tiff, (".tif", ".tiff")),
        "npy": Reader(read_npy, peek_npy, (".npy",)),
        "npz": Reader(read_npz, peek_npz, (".npz",)),
        "nifti": Reader(read_nifti, peek_nifti, (".nii", ".nii.gz")),
        "nrrd": Reader(read_nrrd, peek_nrrd, (".nrrd", ".nhdr")),
        "metaimage": Reader(read_metaimage, peek_metaimage, (".mha", ".mhd")),
        "dicom": Reader(read_dicom, peek_dicom, (".dcm", ".dicom", ".ima")),
        "dicom_series": Reader(read_dicom_series, peek_dicom_series),
        "dicom_seg": Reader(read_dicom_seg, peek_dicom_seg),
        "rtstruct": Reader(read_rtstruct, peek_rtstruct),
    }
)
"""Every reader by its name."""

MAGIC = (
    # First: the 128 bytes before it are anybody's, and may be the header of a TIFF file.
    ("dicom", 128, b"DICM"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("tiff", 0, b"II*\0"),
    ("tiff", 0, b"MM\0*"),
    ("tiff", 0, b"II+\0"),
    ("tiff", 0, b"MM\0+"),
    ("npy", 0, b"\x93NUMPY"),
    ("npz", 0, b"PK\x03\x04"),
    ("nrrd", 0, b"NRRD000"),
    ("nifti", 344, b"n+1\0"),
    ("nifti", 4, b"n+2\0"),
    # The only compressed kind: a gzip of anything else has no NIfTI header and is refused there.
    ("nifti", 0, b"\x1f\x8b"),
)
"""Reader, position and bytes by which a file tells its kind."""

META_START = re.compile(rb"\s*(ObjectType|NDims)\s*=")


def read_image(path: ImagePath, *, reader: str | None = None, **options: Any) -> Image:
    """The image of a file, by the reader for its kind.

    The content decides (a PNG is read as PNG whatever it is called), then the suffix. A folder or a list of files is a
    DICOM series, and a file inside a ZIP archive is written `archive.zip!member.jpg`.

    Args:
      path: a file, a folder of DICOM slices, or a list of such files.
      reader: name of the reader, one of `READERS`; None to look at the file.
      options: of the reader, such as `suv=True` or `array="ct"`; see its function.

    Raises:
      FileNotFoundError, PermissionError: as the operating system has it.
      UnreadableFile: whatever is wrong with the content; the message names the file and what to do.
      ImportError: a package of the extra `imaging` is missing; the message has the install command.
      ValueError, TypeError: an unknown reader, or an option that it does not have.

    Example:
      >>> from fusion_jax.data.samples import SAMPLE_FILE
      >>> ct = read_image(SAMPLE_FILE, array="STS_001/ct", axes="dhw", affine="STS_001/affine", unit="HU")
      >>> ct.values.shape, ct.spacing, ct.unit
      ((37, 35, 34, 1), (4.0, 4.0, 4.0), 'HU')
    """
    name = reader_name(path) if reader is None else reader
    _check_options(path, name, options)
    return READERS[name].read(path, **options)


def peek_image(path: ImagePath, *, reader: str | None = None, **options: Any) -> ImageHeader:
    """Shape, dtype, spacing, affine and unit that `read_image` would return, from the header alone.

    Args:
      path: as in `read_image`.
      reader: as in `read_image`.
      options: as in `read_image`.

    Raises:
      FileNotFoundError, PermissionError, UnreadableFile, ImportError, ValueError, TypeError: see `read_image`.

    Example:
      >>> from fusion_jax.data.samples import SAMPLE_FILE
      >>> peek_image(SAMPLE_FILE, array="STS_001/mask").shape
      (37, 35, 34, 1)
    """
    name = reader_name(path) if reader is None else reader
    _check_options(path, name, options)
    return READERS[name].peek(path, **options)


def reader_name(path: ImagePath) -> str:
    """Name of the reader for a file, by its content, then its suffix.

    Raises:
      FileNotFoundError, PermissionError: as the operating system has it.
      UnreadableFile: neither tells.

    Example:
      >>> from fusion_jax.data.samples import SAMPLE_FILE
      >>> reader_name(SAMPLE_FILE)
      'npz'
    """
    if not isinstance(path, str | os.PathLike) or Path(path).is_dir():
        return "dicom_series"
    with reading(path), open_file(path) as file:
        start = file.read(512)
    for name, at, magic in MAGIC:
        if start[at : at + len(magic)] == magic:
            return _dicom_kind(path) if name == "dicom" else name
    if META_START.match(start):
        return "metaimage"
    file_name = os.fspath(path).lower()
    for name, one in READERS.items():
        if file_name.endswith(one.suffixes) and one.suffixes:
            return name
    known = sorted(suffix for one in READERS.values() for suffix in one.suffixes)
    raise UnreadableFile(path, "is of no kind known here", f"Expected {', '.join(known)}, or name one with `reader`.")


def _dicom_kind(path: str | os.PathLike[str]) -> str:
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        return {"RTSTRUCT": "rtstruct", "SEG": "dicom_seg"}.get(str(dataset.get("Modality")), "dicom")


@functools.cache
def _options_of(name: str) -> tuple[str, ...]:
    return tuple(one for one in inspect.signature(READERS[name].read).parameters if one != "path")


def _check_options(path: ImagePath, name: str, options: Mapping[str, Any]) -> None:
    if name not in READERS:
        raise ValueError(f"reader is {name!r}; expected one of {', '.join(READERS)}.")
    known = _options_of(name)
    strange = [option for option in options if option not in known]
    if strange:
        raise TypeError(f"{path}: reader {name!r} has no option {strange[0]!r}; it has {', '.join(known)}.")
    if name == "rtstruct" and "image" not in options:
        raise TypeError(f"{path}: reader 'rtstruct' needs `image`, the image on whose grid the mask shall lie.")
