"""One pass over the images of a cohort: every file is read once, and what the checks need of it is kept in small.

A case with all its sources is one task, so that a mask finds the image it lies on in memory. About 5 kB a case stay.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.integrity.opening import Opened

__all__ = ["ImageFacts", "MaskFacts", "read_pixels", "thumbnail"]

THUMBNAIL = 64
"""Pixels along an edge of what is kept of an image."""

DICOM = ("dicom", "dicom_series", "dicom_seg", "rtstruct")


class MaskFacts(NamedTuple):
    """What a mask holds.

    Attributes:
      values: the distinct values, at most 17 of them.
      voxels: that are not zero.
      on_border: some of them lie on the border of the image.
      parts: connected pieces; 0 where not counted.
      volume: of what is not zero, ml; NaN without an affine.
      centre: of gravity, `(x, y, z)` mm; None without an affine.
    """

    values: tuple[float, ...]
    voxels: int
    on_border: bool
    parts: int
    volume: float = float("nan")
    centre: tuple[float, float, float] | None = None


class ImageFacts(NamedTuple):
    """What the checks need of one image.

    Attributes:
      problem: "", or which check failed before there were values.
      message: what the reader or the preprocessing said.
      shape, dtype, spacing, affine, unit: of the image as its file holds it.
      low, high: smallest and largest finite value of the file.
      not_finite: number of NaN and infinite values in the file.
      digest: of values, shape and dtype.
      thumbnail: 64 x 64, scaled to 0 to 255; None for masks.
      final_shape, final_spacing, final_affine: after preprocessing.
      final_constant: one value throughout after preprocessing.
      final_not_finite: number of NaN and infinite values after it.
      mask: of masks.
      personal: names of DICOM elements that may tell who the patient is.
    """

    problem: str = ""
    message: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    spacing: tuple[float, ...] | None = None
    affine: Float[np.ndarray, "4 4"] | None = None
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    not_finite: int = 0
    digest: bytes = b""
    thumbnail: UInt8[np.ndarray, "64 64"] | None = None
    final_shape: tuple[int, ...] = ()
    final_spacing: tuple[float, ...] | None = None
    final_affine: Float[np.ndarray, "4 4"] | None = None
    final_constant: bool = False
    final_not_finite: int = 0
    mask: MaskFacts | None = None
    personal: tuple[str, ...] = ()


def read_pixels(
    opened: Opened, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> dict[str, list[ImageFacts | None]]:
    """Facts of every image, by source and row; None where a case lacks the source.

    Args:
      opened: the cohort.
      workers: threads that read; decoders release the interpreter lock.
      progress: told how many of how many cases are done.
    """
    cohort = opened.cohort
    names = [name for name, source in cohort.sources.items() if source.kind in ("image", "mask")]
    facts: dict[str, list[ImageFacts | None]] = {name: [] for name in names}
    if not names:
        return facts
    n = len(cohort)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for done, found in enumerate(_in_order(pool, partial(_case, opened, names), n, 4 * workers), start=1):
            for name in names:
                facts[name].append(found.get(name))
            if progress is not None:
                progress(done, n)
    return facts


def _in_order(pool: ThreadPoolExecutor, task: Callable[[int], Any], n: int, ahead: int) -> Iterator[Any]:
    """Results in the order of rows; only a few are under way, so that memory does not grow with the cohort."""
    rows = iter(range(n))
    waiting = [pool.submit(task, row) for row in islice(rows, ahead)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(task, row) for row in islice(rows, 1)]


def _case(opened: Opened, names: list[str], row: int) -> dict[str, ImageFacts]:
    return {name: _facts(opened, name, row) for name in names if opened.cohort.present[name][row]}


def _facts(opened: Opened, name: str, row: int) -> ImageFacts:
    cohort, files = opened.cohort, opened.files
    is_mask = cohort.sources[name].kind == "mask"
    personal: tuple[str, ...] = ()
    try:
        if files is None:
            raw = final = cohort.image(name, row)
        else:
            personal = _personal(files.paths[name][row], files.sources[name].reader)
            raw = files.read(f"{name}.file", row)
            final = None
    except (UnreadableFile, OSError) as error:
        return ImageFacts("unreadable file", _found(error), personal=personal)
    except (ValueError, TypeError, ImportError) as error:
        # Options that a reader refuses, a package that is not installed: not the fault of the file.
        return ImageFacts("preprocessing", str(error), personal=personal)
    finite = np.isfinite(raw.values) if raw.values.dtype.kind in "fc" else None
    bad = 0 if finite is None else int(finite.size - np.count_nonzero(finite))
    good = raw.values if not bad else raw.values[finite]
    low, high = (float(good.min()), float(good.max())) if good.size else (0.0, 0.0)
    facts = ImageFacts(
        shape=raw.values.shape,
        dtype=str(raw.values.dtype),
        spacing=raw.spacing,
        affine=raw.affine,
        unit=raw.unit,
        low=low,
        high=high,
        not_finite=bad,
        digest=_digest(raw.values),
        thumbnail=None if is_mask else thumbnail(raw.values),
        mask=_mask(raw.values, raw.affine) if is_mask else None,
        personal=personal,
    )
    if final is None and files is not None:
        pipeline = files.pipelines[name]
        others = {other: partial(files.read, other, row) for other in pipeline.needs}
        try:
            final = pipeline(raw, others)
        except (ValueError, TypeError, OSError) as error:
            step = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            return facts._replace(problem="preprocessing", message=f"{step}{error}")
    if final is None:
        return facts
    values = final.values
    lost = values.dtype.kind in "fc" and int(values.size - np.count_nonzero(np.isfinite(values)))
    return facts._replace(
        final_shape=values.shape,
        final_spacing=final.spacing,
        final_affine=final.affine,
        final_constant=bool(values.size) and bool((values == values.flat[0]).all()),
        final_not_finite=int(lost),
    )


def _found(error: Exception) -> str:
    """What a reader says without the path, which is in the report as the case."""
    if isinstance(error, UnreadableFile):
        return f"{error.path.name} {error.found}. {error.advice}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{Path(error.filename).name}: {error.strerror}."
    return str(error)


def _personal(path: str, reader: str | None) -> tuple[str, ...]:
    from fusion_jax.data.readers import personal_tags, reader_name

    kind = reader_name(path) if reader is None else reader
    if kind not in DICOM:
        return ()
    first = path
    if Path(path).is_dir():
        slices = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
        first = slices[0] if slices else ""
    return personal_tags(first) if first else ()


def _digest(values: Shaped[np.ndarray, "*space c"]) -> bytes:
    digest = hashlib.blake2b(f"{values.shape}{values.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def thumbnail(values: Shaped[np.ndarray, "*space c"]) -> UInt8[np.ndarray, "64 64"]:
    """An image in 64 x 64 pixels of 0 to 255: mean of the channels, of volumes the maximum along d.

    Example:
      >>> thumbnail(np.arange(128.0 * 128).reshape(128, 128, 1))[[0, -1], 0].tolist()
      [0, 253]
    """
    import PIL.Image

    plane = np.nan_to_num(values.mean(axis=-1, dtype=np.float32), posinf=0.0, neginf=0.0)
    if plane.ndim == 3:
        plane = plane.max(axis=0)
    small = PIL.Image.fromarray(plane).resize((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.BOX)
    small = np.asarray(small, np.float32)
    low, high = float(small.min()), float(small.max())
    return np.round((small - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)


def _mask(values: Shaped[np.ndarray, "*space c"], affine: Float[np.ndarray, "4 4"] | None) -> MaskFacts:
    from scipy import ndimage

    inside: Bool[np.ndarray, "*space"] = (values != 0).any(axis=-1)
    distinct = np.unique(values)
    count = int(np.count_nonzero(inside))
    if not count:
        return MaskFacts(tuple(distinct[:17].tolist()), 0, on_border=False, parts=0)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    on_border = any(
        axis.start == 0 or axis.stop == length for axis, length in zip(box, inside.shape, strict=True) if length > 1
    )
    parts = 0
    if distinct.size <= 2:  # organs of a mask with several labels are several pieces
        neighbours = ndimage.generate_binary_structure(inside.ndim, inside.ndim)
        labelled: Any = ndimage.label(inside[box], neighbours)
        parts = int(labelled[1])
    found = MaskFacts(tuple(float(value) for value in distinct[:17]), count, bool(on_border), parts)
    if affine is None or inside.ndim != 3:
        return found
    # Sums along axes: the indices of all voxels would take eight times the memory of the mask.
    middle = [
        float(np.arange(length) @ inside.sum(axis=tuple({0, 1, 2} - {axis}))) / count
        for axis, length in enumerate(inside.shape)
    ]
    x, y, z, _ = (affine @ np.array([*middle, 1.0])).tolist()
    volume = count * abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    return found._replace(volume=volume, centre=(x, y, z))
