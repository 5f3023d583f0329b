"""NRRD and MetaImage (MHA, MHD) through SimpleITK."""

import math
import os
import re
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.grid import CanonicalGrid, canonical_grid, ras_from_lps
from fusion_jax.data.readers.guard import archive_member, choice, open_file, optional, reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size

__all__ = ["peek_metaimage", "peek_nrrd", "read_metaimage", "read_nrrd"]

LONGEST_HEADER = 2**20
"""Bytes within which the text header must end."""

NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


META_NUMBERS = {
    **dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize"), 1),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2),
}
"""Fields of a MetaImage header that hold as many numbers as there are axes, to this power."""


class _Promise(NamedTuple):
    """What the text header promises: how many values, of which type."""

    values: int
    dtype: np.dtype


class _Header(NamedTuple):
    """Shape and place as SimpleITK reads them."""

    header: ImageHeader
    grid: CanonicalGrid | None
    dimension: int


def read_nrrd(
    path: str | os.PathLike[str],
    *,
    fourth_axis: str = "error",
    unit: str = "",
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """An NRRD (`.nrrd`, or `.nhdr` with its data file in the same folder); volumes come in canonical order.

    Args:
      path: the header, or the single file.
      fourth_axis: as in `read_nifti`.
      unit: of the values; NRRD does not say.
      max_voxels: most values the image may hold; compared with the header before any is read.

    Raises:
      UnreadableFile: damaged, truncated, too large, data elsewhere than in the folder of the header.
      ImportError: SimpleITK is not installed.

    Example:
      >>> read_nrrd("liver.seg.nrrd", unit="label").values.dtype  # doctest: +SKIP
      dtype('uint8')
    """
    return _read(path, "NrrdImageIO", _nrrd_promise, fourth_axis, unit, max_voxels)


def peek_nrrd(
    path: str | os.PathLike[str], *, fourth_axis: str = "error", unit: str = "", max_voxels: int = MAX_VOXELS
) -> ImageHeader:
    """What `read_nrrd` with the same arguments would return, from the header.

    Raises:
      UnreadableFile, ImportError: see `read_nrrd`.
    """
    return _peek(path, "NrrdImageIO", _nrrd_promise, fourth_axis, unit, max_voxels)


def read_metaimage(
    path: str | os.PathLike[str],
    *,
    fourth_axis: str = "error",
    unit: str = "",
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """A MetaImage (`.mha`, or `.mhd` with its data file in the same folder); volumes come in canonical order.

    Args:
      path: the header, or the single file.
      fourth_axis: as in `read_nifti`.
      unit: of the values; MetaImage does not say.
      max_voxels: most values the image may hold; compared with the header before any is read.

    Raises:
      UnreadableFile: damaged, truncated, too large, data elsewhere than in the folder of the header.
      ImportError: SimpleITK is not installed.

    Example:
      >>> read_metaimage("prostate.mha").values.shape  # doctest: +SKIP
      (24, 320, 320, 1)
    """
    return _read(path, "MetaImageIO", _meta_promise, fourth_axis, unit, max_voxels)


def peek_metaimage(
    path: str | os.PathLike[str], *, fourth_axis: str = "error", unit: str = "", max_voxels: int = MAX_VOXELS
) -> ImageHeader:
    """What `read_metaimage` with the same arguments would return, from the header.

    Raises:
      UnreadableFile, ImportError: see `read_metaimage`.
    """
    return _peek(path, "MetaImageIO", _meta_promise, fourth_axis, unit, max_voxels)


def _read(path: Any, io_name: str, promise: Any, fourth_axis: str, unit: str, max_voxels: int) -> Image:
    choice("fourth_axis", fourth_axis, ("error", "channels"))
    itk = optional("SimpleITK", "SimpleITK")
    with reading(path), _no_warnings(itk):
        promised = promise(path, max_voxels)
        found, file = _header(path, itk, io_name, promised, fourth_axis, unit, max_voxels)
        values = itk.GetArrayFromImage(file.Execute())
        header = found.header
        if found.dimension == 4:
            values = np.moveaxis(values, 0, -1)
        elif file.GetNumberOfComponents() == 1:
            values = values[..., None]
        values = np.ascontiguousarray(values) if found.grid is None else found.grid.arrange(np.swapaxes(values, 0, 2))
        if values.shape != header.shape or values.dtype != header.dtype:
            raise UnreadableFile(
                path, f"decodes to {values.shape}, its header promises {header.shape}", "Save it again."
            )
    return Image(values, header.spacing, header.affine, unit)


def _peek(path: Any, io_name: str, promise: Any, fourth_axis: str, unit: str, max_voxels: int) -> ImageHeader:
    choice("fourth_axis", fourth_axis, ("error", "channels"))
    itk = optional("SimpleITK", "SimpleITK")
    with reading(path), _no_warnings(itk):
        return _header(path, itk, io_name, promise(path, max_voxels), fourth_axis, unit, max_voxels)[0].header


@contextmanager
def _no_warnings(itk: Any) -> Generator[None]:
    """ITK writes its warnings to the screen, past Python."""
    before = itk.ProcessObject.GetGlobalWarningDisplay()
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        itk.ProcessObject.SetGlobalWarningDisplay(before)


def _header(
    path: str | os.PathLike[str],
    itk: Any,
    io_name: str,
    promised: _Promise,
    fourth_axis: str,
    unit: str,
    max_voxels: int,
) -> tuple[_Header, Any]:
    file = itk.ImageFileReader()
    file.SetImageIO(io_name)
    file.SetFileName(os.fspath(path))
    file.ReadImageInformation()
    size = tuple(int(length) for length in file.GetSize())
    dimension = len(size)
    components = int(file.GetNumberOfComponents())
    dtype = promised.dtype
    if dimension not in (2, 3, 4):
        raise UnreadableFile(path, f"has {dimension} axes", "Save a volume of three axes.")
    if dimension == 4:
        if components > 1 or (fourth_axis == "error" and size[3] > 1):
            raise UnreadableFile(
                path,
                f"has the shape {size}: more than a volume",
                "Take the volume you mean, or read the fourth axis as channels with `fourth_axis='channels'`.",
            )
        components = size[3]
    if math.prod(size[:3]) * components != promised.values:
        raise UnreadableFile(path, f"promises {promised.values:,} values and holds {size}", "Correct its header.")
    check_size(path, (*reversed(size[:3]), components), max_voxels)
    spacing = np.array(file.GetSpacing()[:3])
    origin, direction = np.array(file.GetOrigin()), np.array(file.GetDirection()).reshape(dimension, dimension)
    if dimension == 2:
        if not (np.isfinite(spacing) & (spacing > 0)).all():
            raise UnreadableFile(path, f"gives the spacing {spacing.tolist()}", "Correct its header.")
        dx, dy = spacing.tolist()
        return _Header(ImageHeader((*reversed(size), components), dtype, (dy, dx), None, unit), None, 2), file
    grid = _grid(path, (size[0], size[1], size[2]), spacing, origin[:3], direction[:3, :3])
    header = ImageHeader((*grid.shape, components), dtype, grid.spacing, grid.affine, unit)
    return _Header(header, grid, dimension), file


def _grid(
    path: str | os.PathLike[str],
    shape: tuple[int, int, int],
    spacing: Float[np.ndarray, "3"],
    origin: Float[np.ndarray, "3"],
    direction: Float[np.ndarray, "3 3"],
) -> CanonicalGrid:
    if not np.allclose(np.square(direction).sum(axis=0), 1, atol=1e-3):
        raise UnreadableFile(
            path, f"has directions of other lengths than 1: {direction.tolist()}", "Correct its header."
        )
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = origin
    try:
        return canonical_grid(shape, ras_from_lps(affine))
    except ValueError as error:
        raise UnreadableFile(path, str(error), "Correct spacing and directions in its header.") from error


def _nrrd_promise(path: str | os.PathLike[str], max_voxels: int) -> _Promise:
    text, start, size = _text_header(path, re.compile(rb"\r?\n\r?\n"))
    lines = text.splitlines()
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0].strip()):
        raise UnreadableFile(path, "does not begin with NRRD0001 to NRRD0005", "Give an NRRD file.")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        key, separator, value = line.partition(":")
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    for needed in ("dimension", "sizes", "type", "encoding"):
        if needed not in fields:
            raise UnreadableFile(path, f"has no field {needed!r} in its header", "Export it again.")
    kind = fields["type"].lower()
    if kind not in NRRD_TYPES:
        raise UnreadableFile(path, f"holds values of type {kind!r}", "Save integers or floats.")
    encoding = fields["encoding"].lower()
    packings = {"raw": "raw", "gzip": "deflate", "gz": "deflate", "txt": "other", "text": "other", "ascii": "other"}
    if encoding not in packings:
        raise UnreadableFile(path, f"is encoded as {encoding!r}", "Save it raw or with gzip.")
    if any(fields.get(key, "0") not in ("0", "-1") for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise UnreadableFile(path, "skips lines or bytes before its data", "Save it as one `.nrrd` file.")
    data = fields.get("data file", fields.get("datafile"))
    stored = size - start if data is None else _detached(path, data)
    sizes = _integers(path, "sizes", fields["sizes"], int(fields["dimension"]))
    return _promise(path, sizes, np.dtype(NRRD_TYPES[kind]), stored, packings[encoding], max_voxels)


def _meta_promise(path: str | os.PathLike[str], max_voxels: int) -> _Promise:
    text, start, size = _text_header(path, re.compile(rb"^ElementDataFile[ \t]*=[^\n]*\n?", re.MULTILINE))
    fields = _meta_fields(path, text)
    kind = fields["ElementType"]
    if kind not in META_TYPES:
        raise UnreadableFile(path, f"holds values of type {kind!r}", "Save integers or floats.")
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise UnreadableFile(path, "skips bytes before its data (HeaderSize)", "Save it as one `.mha` file.")
    data = fields["ElementDataFile"]
    local = data == "LOCAL"
    stored = size - start if local else _detached(path, data)
    sizes = _integers(path, "DimSize", fields["DimSize"], int(fields["NDims"]))
    channels = _integers(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1)
    binary = fields.get("BinaryData", "True").lower() in ("true", "1")
    packed = fields.get("CompressedData", "False").lower() in ("true", "1")
    packing = "deflate" if packed else "raw" if binary else "other"
    found = _promise(path, (*sizes, *channels), np.dtype(META_TYPES[kind]), stored, packing, max_voxels)
    if packed:
        (length,) = _integers(
            path, "CompressedDataSize", fields.get("CompressedDataSize", "" if local else str(stored)), 1
        )
        if length > stored:
            raise UnreadableFile(
                path,
                f"holds {stored:,} bytes of compressed values, its header promises {length:,}",
                "The file is truncated: copy it again from its source.",
            )
        file = Path(path) if local else Path(path).parent / data
        _check_deflated(path, file, start if local else 0, length, found)
    return found


def _meta_fields(path: str | os.PathLike[str], text: str) -> dict[str, str]:
    """Fields of a MetaImage header. ITK writes what it finds wrong here to the screen, so that it must find nothing."""
    fields: dict[str, str] = {}
    # Not splitlines, which knows more ends of lines than ITK.
    for line in text.removesuffix("\n").split("\n"):
        found = re.fullmatch(r"([A-Za-z]\w*)[ \t]*=[ \t]*([\x20-\x7e]*?)[ \t\r]*", line)
        if found is None or found[1] in fields:
            raise UnreadableFile(
                path, f"has the line {line[:60]!r} in its header", "Expected `Name = value` once a name."
            )
        fields[found[1]] = found[2]
    for needed in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if needed not in fields:
            raise UnreadableFile(
                path, f"has no field {needed!r} in its header", "Give a MetaImage, or export it again."
            )
    (axes,) = _integers(path, "NDims", fields["NDims"], 1)
    for name in ("BinaryData", "BinaryDataByteOrderMSB", "CompressedData", "ElementByteOrderMSB"):
        # ITK looks at the first letter only.
        if fields.get(name, "True").lower() not in ("true", "false", "1", "0"):
            raise UnreadableFile(path, f"has {name} {fields[name][:60]!r}", "Expected True or False.")
    names = list(fields)
    for name, count in META_NUMBERS.items():
        if name in fields:
            words = fields[name].split()
            if len(words) != axes**count or not all(
                re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", word) for word in words
            ):
                raise UnreadableFile(path, f"has {name} {fields[name][:60]!r}", f"Expected {axes**count} numbers.")
        if name in fields and names.index(name) < names.index("NDims"):
            raise UnreadableFile(path, f"gives {name} before NDims", "Export it again.")
    if names.index("DimSize") < names.index("NDims"):
        raise UnreadableFile(path, "gives DimSize before NDims", "Export it again.")
    return fields


def _check_deflated(path: str | os.PathLike[str], file: Path, start: int, length: int, promised: _Promise) -> None:
    """The zlib stream holds the promised bytes and its checksum is right; ITK would fill the rest and only print so."""
    needed = promised.values * promised.dtype.itemsize
    stream, total = zlib.decompressobj(), 0
    with file.open("rb") as opened:
        opened.seek(start)
        while length > 0 and total <= needed and not stream.eof:
            packed = opened.read(min(length, 2**20))
            if not packed:
                break
            length -= len(packed)
            while packed and total <= needed and not stream.eof:
                total += len(stream.decompress(packed, 2**24))
                packed = stream.unconsumed_tail
    if total != needed or not stream.eof:
        raise UnreadableFile(
            path,
            f"unpacks to {total:,} bytes of values, its header promises {needed:,}",
            "The file is truncated or damaged: copy it again from its source.",
        )


def _text_header(path: str | os.PathLike[str], end: re.Pattern[bytes]) -> tuple[str, int, int]:
    """The text before the data, where the data begin, and the size of the file."""
    if archive_member(path) is not None:
        raise UnreadableFile(path, "lies in an archive, where SimpleITK cannot read", "Unpack the archive.")
    with open_file(path) as file:
        start = file.read(LONGEST_HEADER)
    found = end.search(start)
    size = Path(path).stat().st_size
    stop = found.end() if found else len(start)
    if not found and size > LONGEST_HEADER:
        raise UnreadableFile(
            path, f"has no end of its header in {LONGEST_HEADER:,} bytes", "Give an NRRD or MetaImage."
        )
    try:
        return start[:stop].decode("utf-8"), stop, size
    except UnicodeDecodeError as error:
        raise UnreadableFile(path, "has a header that is no text", "The file is damaged or of another kind.") from error


def _detached(path: str | os.PathLike[str], name: str) -> int:
    """Bytes of the data file beside a header."""
    if not name or Path(name).name != name or "\\" in name or "%" in name or name.split()[0].upper() == "LIST":
        raise UnreadableFile(
            path, f"keeps its data in {name!r}", "Expected one file in the folder of the header; save it as one file."
        )
    data = Path(path).parent / name
    # A link could lead anywhere, as a path with folders could.
    if data.is_symlink() or not data.is_file():
        raise UnreadableFile(path, f"keeps its data in {name!r}, which is not beside it", "Copy that file, too.")
    return data.stat().st_size


def _integers(path: str | os.PathLike[str], field: str, text: str, count: int) -> tuple[int, ...]:
    words = text.split()
    if len(words) != count or not all(re.fullmatch(r"\d{1,12}", word) for word in words):
        raise UnreadableFile(path, f"has {field} {text[:60]!r}", f"Expected {count} whole numbers; export it again.")
    return tuple(map(int, words))


def _promise(
    path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype, stored: int, packing: str, max_voxels: int
) -> _Promise:
    packed = stored if packing == "deflate" else None
    check_size(path, shape, max_voxels, stored_bytes=packed, itemsize=dtype.itemsize)
    values = math.prod(shape)
    needed = {"raw": values * dtype.itemsize, "deflate": 1, "other": values}[packing]
    if stored < needed:
        raise UnreadableFile(
            path,
            f"holds {stored:,} bytes of values, its header promises {needed:,}",
            "The file is truncated: copy it again from its source.",
        )
    return _Promise(values, dtype)
