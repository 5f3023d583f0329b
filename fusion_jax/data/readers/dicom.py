"""One DICOM file: its header, its pixels, and a radiograph, photograph or multi-frame volume as an image."""

import math
import os
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.grid import CanonicalGrid, canonical_grid
from fusion_jax.data.readers.guard import choice, open_file, optional, reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size
from fusion_jax.data.readers.slices import Plane, stack_planes

if TYPE_CHECKING:
    import pydicom

__all__ = [
    "frame_plane",
    "frame_shape",
    "numbers",
    "peek_dicom",
    "pixel_values",
    "read_dataset",
    "read_dicom",
    "unit_of",
]

DEFLATED = "1.2.840.10008.1.2.1.99"
DIRECTORY = "1.2.840.10008.1.3.10"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

LARGEST_INFLATED = 2**31
"""Most bytes a deflated data set may unpack to."""


def read_dataset(path: str | os.PathLike[str], *, pixels: bool) -> "pydicom.Dataset":
    """The data set of a DICOM file, never forced upon a file of another kind.

    Args:
      path: the file.
      pixels: also what comes from the pixel data on; without, only the header is read from the disk.

    Raises:
      UnreadableFile: no DICOM file, a DICOMDIR, or damaged.
      ImportError: pydicom is not installed.
    """
    pydicom = optional("pydicom", "pydicom")
    with reading(path), open_file(path) as file:
        if file.read(132)[128:] != b"DICM":
            raise UnreadableFile(path, "is no DICOM file (DICM is not at byte 128)", "Give a file of DICOM Part 10.")
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            raise UnreadableFile(path, "is a DICOMDIR, a list of files", "Give the folder of one series instead.")
        if meta.get("TransferSyntaxUID") == DEFLATED:
            _check_inflated(path, file)
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=False)
        if pixels and not any(name in dataset for name in PIXELS):
            raise UnreadableFile(path, "holds no pixel data", "It is truncated or no image: copy it again.")
        return dataset


def _check_inflated(path: str | os.PathLike[str], file: Any) -> None:
    """Pydicom inflates without a limit; zlib packs up to 1032 bytes into one."""
    packed = file.read()
    if len(packed) * 1032 <= 2**26:
        return
    stream, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed and total <= LARGEST_INFLATED:
        total += len(stream.decompress(packed, 2**24))
        packed = stream.unconsumed_tail
    if total > LARGEST_INFLATED:
        raise UnreadableFile(path, f"unpacks to more than {LARGEST_INFLATED:,} bytes", "The file is damaged.")


def read_dicom(
    path: str | os.PathLike[str], *, frames: str = "error", tolerance_mm: float = 0.1, max_voxels: int = MAX_VOXELS
) -> Image:
    """One DICOM file: an image `(h, w, c)`, or a volume from a file of many frames that states their positions.

    Rescale slope and intercept or the modality lookup table are applied (float32); values without them keep the stored
    dtype. CT has the unit "HU". MONOCHROME1, where large means dark, is inverted within the range of the stored bits.
    Pixels that padding fills take the smallest value of the others. Colours become RGB. The window of the display (VOI)
    is not applied. Spacing is PixelSpacing, or ImagerPixelSpacing, the one at the detector, where it is absent.

    Args:
      path: the file.
      frames: of a file with several frames without positions (ultrasound, angiography): "error", or "volume" to stack
        them in their order, without spacing and affine.
      tolerance_mm: of the distances of frames, see `read_dicom_series`.
      max_voxels: most values the image may hold; compared with the header before any is decoded.

    Raises:
      UnreadableFile: damaged, truncated, too large, no image, or compressed in a way for which a package is missing.
      ImportError: pydicom is not installed.

    Example:
      >>> read_dicom("chest.dcm").values.shape  # doctest: +SKIP
      (2022, 2022, 1)
    """
    choice("frames", frames, ("error", "volume"))
    dataset = read_dataset(path, pixels=True)
    with reading(path):
        header, stack = _header(path, dataset, frames, tolerance_mm, max_voxels)
        values = pixel_values(path, dataset, max_voxels)
        if stack is not None:
            values = stack.grid.arrange(values[list(stack.order)])
        elif len(header.shape) == 3:
            values = values[0]
        return Image(np.ascontiguousarray(values), header.spacing, header.affine, header.unit)


def peek_dicom(
    path: str | os.PathLike[str], *, frames: str = "error", tolerance_mm: float = 0.1, max_voxels: int = MAX_VOXELS
) -> ImageHeader:
    """What `read_dicom` with the same arguments would return, without reading the pixels.

    Raises:
      UnreadableFile, ImportError: see `read_dicom`.
    """
    choice("frames", frames, ("error", "volume"))
    dataset = read_dataset(path, pixels=False)
    with reading(path):
        return _header(path, dataset, frames, tolerance_mm, max_voxels)[0]


class _FrameStack(NamedTuple):
    order: tuple[int, ...]
    grid: CanonicalGrid


def _header(
    path: str | os.PathLike[str], dataset: "pydicom.Dataset", frames: str, tolerance_mm: float, max_voxels: int
) -> tuple[ImageHeader, _FrameStack | None]:
    count, rows, columns, channels = frame_shape(path, dataset, max_voxels)
    dtype, unit = value_dtype(path, dataset), unit_of(dataset)
    if "PerFrameFunctionalGroupsSequence" in dataset and count > 1:
        planes = [functional_plane(path, dataset, frame) for frame in range(count)]
        stack = stack_planes(os.fspath(path), planes, thickness=None, tolerance_mm=tolerance_mm)
        grid = canonical_grid(stack.shape, stack.affine)
        header = ImageHeader((*grid.shape, channels), dtype, grid.spacing, grid.affine, unit)
        return header, _FrameStack(stack.order, grid)
    if count > 1:
        if frames == "error":
            raise UnreadableFile(
                path,
                f"holds {count} frames without positions",
                "Take the frame you mean, or stack them in their order with `frames='volume'`.",
            )
        return ImageHeader((count, rows, columns, channels), dtype, None, None, unit), None
    return ImageHeader((rows, columns, channels), dtype, _plane_spacing(path, dataset), None, unit), None


def frame_shape(path: str | os.PathLike[str], dataset: "pydicom.Dataset", max_voxels: int) -> tuple[int, int, int, int]:
    """Frames, rows, columns and channels of a data set, as read (a palette becomes three channels).

    Raises:
      UnreadableFile: one is missing, or all together are too many.
    """
    for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if dataset.get(name) is None:
            raise UnreadableFile(path, f"has no {name}: it is no image", "Give a file that holds pixels.")
    frames = dataset.get("NumberOfFrames") or 1
    samples = 3 if dataset.PhotometricInterpretation == "PALETTE COLOR" else dataset.get("SamplesPerPixel") or 1
    shape = (int(frames), int(dataset.Rows), int(dataset.Columns), int(samples))
    check_size(path, shape, max_voxels)
    if shape[3] not in (1, 3):
        raise UnreadableFile(path, f"has {shape[3]} values a pixel", "Expected grey or three colours.")
    return shape


def value_dtype(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> np.dtype:
    """The dtype of `pixel_values`, from the header.

    Raises:
      UnreadableFile: a number of bits that no image has.
    """
    if "FloatPixelData" in dataset or _rescale(path, dataset) is not None:
        return np.dtype(np.float32)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        table = dataset.get("RedPaletteColorLookupTableDescriptor")
        bits, signed = (int(table[2]) if table else 8), False
    else:
        bits, signed = int(dataset.BitsAllocated), dataset.get("PixelRepresentation") == 1
    if bits not in (1, 8, 16, 32, 64):
        raise UnreadableFile(path, f"allocates {bits} bits a pixel", "Expected 1, 8, 16, 32 or 64.")
    if bits == 64 and "PixelRepresentation" not in dataset:
        return np.dtype(np.float64)
    return np.dtype(f"{'i' if signed else 'u'}{max(1, bits // 8)}")


def pixel_values(
    path: str | os.PathLike[str], dataset: "pydicom.Dataset", max_voxels: int
) -> Shaped[np.ndarray, "f h w c"]:
    """All frames in the unit of the modality; see `read_dicom` for what is applied.

    Raises:
      UnreadableFile: see `read_dicom`.
    """
    shape = frame_shape(path, dataset, max_voxels)
    dtype = value_dtype(path, dataset)
    values = decoded(path, dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = optional("pydicom.pixels", "pydicom").apply_color_lut(values, dataset)[..., :3]
    if values.size != math.prod(shape):
        raise UnreadableFile(path, f"decodes to {values.shape}, its header promises {shape}", "Export it again.")
    values = values.reshape(shape)
    padding = _padding(dataset, values)
    rescale = _rescale(path, dataset)
    if rescale == "table":
        values = optional("pydicom.pixels", "pydicom").apply_modality_lut(values, dataset).astype(np.float32)
    elif isinstance(rescale, tuple):
        slope, intercept = rescale
        # One rounding to float32, whatever the stored type.
        values = (values.astype(np.float64) * slope + intercept).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = _inverted(dataset, values, rescale)
    if padding is not None and padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    return np.ascontiguousarray(values.astype(dtype, copy=False))


def decoded(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> Shaped[np.ndarray, "..."]:
    """Stored values; colours as RGB.

    Raises:
      UnreadableFile: no package here decodes the compression.
    """
    pixels = optional("pydicom.pixels", "pydicom")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UnreadableFile(path, "names no transfer syntax", "Export it again.")
    if syntax.is_compressed and syntax != DEFLATED:
        try:
            available = pixels.get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise UnreadableFile(
                path,
                f"is compressed by {syntax.name}, for which a package is missing",
                'Install decoders with `pip install "pylibjpeg[all]"`, or export it uncompressed.',
            )
    return pixels.pixel_array(dataset)


def _rescale(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> tuple[float, float] | str | None:
    """Slope and intercept, "table" for a lookup table, or None where stored values are the values."""
    if dataset.get("ModalityLUTSequence"):
        return "table"
    source: Any = dataset
    shared = dataset.get("SharedFunctionalGroupsSequence")
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if shared and "PixelValueTransformationSequence" in shared[0]:
        source = shared[0].PixelValueTransformationSequence[0]
    elif frames and "PixelValueTransformationSequence" in frames[0]:
        pairs = {
            tuple(numbers(path, frame.PixelValueTransformationSequence[0], name, 1)[0] for name in _RESCALE)
            for frame in frames
        }
        if len(pairs) > 1:
            raise UnreadableFile(path, "rescales every frame differently", "Export it as one file a slice.")
        source = frames[0].PixelValueTransformationSequence[0]
    if source.get("RescaleSlope") is None and source.get("RescaleIntercept") is None:
        return None
    slope, intercept = (numbers(path, source, name, 1)[0] for name in _RESCALE)
    if slope == 0:
        raise UnreadableFile(path, "has the RescaleSlope 0", "Correct it: all values would be equal.")
    return None if (slope, intercept) == (1.0, 0.0) else (slope, intercept)


_RESCALE = ("RescaleSlope", "RescaleIntercept")


def _inverted(
    dataset: "pydicom.Dataset", values: Shaped[np.ndarray, "..."], rescale: tuple[float, float] | str | None
) -> Shaped[np.ndarray, "..."]:
    if rescale == "table" or (values.dtype.kind == "f" and rescale is None):
        return values.max() + values.min() - values
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    low = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") == 1 else 0
    both = 2 * low + 2**bits - 1
    if isinstance(rescale, tuple):
        slope, intercept = rescale
        return (both * slope + 2 * intercept - values.astype(np.float64)).astype(np.float32)
    return (both - values.astype(np.int64)).astype(values.dtype)


def _padding(dataset: "pydicom.Dataset", values: Shaped[np.ndarray, "..."]) -> np.ndarray | None:
    """Where stored values are padding: one value, or the range from it to the limit."""
    first = dataset.get("PixelPaddingValue")
    if first is None or values.shape[-1] != 1 or values.dtype.kind == "f":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    bits = int(dataset.BitsAllocated)
    low, high = sorted(
        _as_stored(int(value), values.dtype, bits) for value in (first, first if limit is None else limit)
    )
    return (values >= low) & (values <= high)


def _as_stored(value: int, dtype: np.dtype, bits: int) -> int:
    """Writers give the padding of signed pixels as unsigned and the other way round."""
    value %= 2**bits
    return value - 2**bits if dtype.kind == "i" and value >= 2 ** (bits - 1) else value


def unit_of(dataset: "pydicom.Dataset") -> str:
    """Unit of the values: "HU" for CT, "Bq/ml" or "SUV" for PET that says so, else ""."""
    if dataset.get("Modality") == "CT":
        return "HU" if dataset.get("RescaleType", "HU") in ("HU", "US", "") else ""
    if dataset.get("Modality") == "PT":
        return {"BQML": "Bq/ml", "GML": "SUV"}.get(str(dataset.get("Units")), "")
    return ""


def _plane_spacing(path: str | os.PathLike[str], dataset: "pydicom.Dataset") -> tuple[float, float] | None:
    shared = dataset.get("SharedFunctionalGroupsSequence")
    sources = [dataset]
    if shared and "PixelMeasuresSequence" in shared[0]:
        sources.append(shared[0].PixelMeasuresSequence[0])
    for source in sources:
        for name in ("PixelSpacing", "ImagerPixelSpacing"):
            if source.get(name) is not None:
                dy, dx = numbers(path, source, name, 2)
                if dy <= 0 or dx <= 0:
                    raise UnreadableFile(path, f"has the {name} {dy:g}, {dx:g}", "Expected two lengths above zero.")
                return dy, dx
    return None


def numbers(path: str | os.PathLike[str], dataset: Any, name: str, count: int) -> tuple[float, ...]:
    """The finite numbers of an element.

    Raises:
      UnreadableFile: it is missing, or holds another number of values or none that is finite.
    """
    value = dataset.get(name)
    if value is None or value == "":
        raise UnreadableFile(path, f"has no {name}", "Export it with that tag.")
    values = tuple(map(float, value if isinstance(value, Sequence) and not isinstance(value, str) else [value]))
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UnreadableFile(path, f"has the {name} {value!r}", f"Expected {count} finite numbers.")
    return values


def frame_plane(
    path: str | os.PathLike[str], name: str, place: Any, orientation: Any, spacing: Any, size: Any
) -> Plane:
    """Place of a slice from the (functional group) data sets that hold its tags.

    Raises:
      UnreadableFile: a tag is missing or no number.
    """
    x, y, z = numbers(path, place, "ImagePositionPatient", 3)
    turn = numbers(path, orientation, "ImageOrientationPatient", 6)
    dy, dx = numbers(path, spacing, "PixelSpacing", 2)
    return Plane(
        name,
        (x, y, z),
        (turn[0], turn[1], turn[2]),
        (turn[3], turn[4], turn[5]),
        (dy, dx),
        int(size.Rows),
        int(size.Columns),
    )


def functional_plane(path: str | os.PathLike[str], dataset: "pydicom.Dataset", frame: int) -> Plane:
    """Place of one frame of a multi-frame file.

    Raises:
      UnreadableFile: a functional group or tag is missing.
    """
    return frame_plane(
        path,
        f"frame {frame + 1}",
        functional_group(path, dataset, frame, "PlanePositionSequence"),
        functional_group(path, dataset, frame, "PlaneOrientationSequence"),
        functional_group(path, dataset, frame, "PixelMeasuresSequence"),
        dataset,
    )


def functional_group(path: str | os.PathLike[str], dataset: "pydicom.Dataset", frame: int, name: str) -> Any:
    """The item of a functional group of a frame, or the one that all frames share.

    Raises:
      UnreadableFile: there is none.
    """
    groups = [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    if frame >= len(groups):
        raise UnreadableFile(path, f"describes {len(groups)} frames, not frame {frame + 1}", "Export it again.")
    for holder in (groups[frame], *(dataset.get("SharedFunctionalGroupsSequence") or [])):
        if holder.get(name):
            return holder[name].value[0]
    raise UnreadableFile(path, f"has no {name} for frame {frame + 1}", "Export it again.")
