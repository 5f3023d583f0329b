"""TIFF through tifffile."""

import os
import zlib
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.guard import choice, file_size, open_file, reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size
from fusion_jax.data.readers.raster import without_alpha

if TYPE_CHECKING:
    import tifffile

__all__ = ["peek_tiff", "read_tiff"]

DEFLATE = (8, 32946)
"""TIFF numbers of zlib compression."""

WHITE_IS_ZERO, PALETTE = 0, 3
"""TIFF photometric interpretations."""

SUSPICIOUS_BYTES = 2**26
"""A compressed segment that could unpack to more than this is first unpacked piecewise, to see whether it does."""


def read_tiff(
    path: str | os.PathLike[str], *, pages: str = "one", palette: str = "colour", max_voxels: int = MAX_VOXELS
) -> Image:
    """A TIFF of 8 or 16 bit, 32-bit integers or floats; grey or RGB; white-is-zero is inverted.

    An alpha channel is treated as in `read_png`. Resolution tags are not taken for the spacing of voxels: they hold the
    dots per inch of a printer more often than the millimetres of a body.

    Args:
      path: the file.
      pages: "one" where a second page is an error; "volume" to stack all pages, `(d, h, w, c)`.
      palette: of a file with a palette: "colour" or "index", see `read_png`.
      max_voxels: most values the image may hold; compared with the header before anything is decoded.

    Raises:
      UnreadableFile: damaged, truncated, too large, several pages, pages of different shapes, or a compression for
        which the package imagecodecs is needed.

    Example:
      >>> read_tiff("histology.tif").values.shape  # doctest: +SKIP
      (512, 512, 3)
    """
    choice("pages", pages, ("one", "volume"))
    choice("palette", palette, ("colour", "index"))
    import tifffile

    with reading(path), open_file(path) as file, tifffile.TiffFile(file) as opened:
        header = _header(path, opened, pages, palette, max_voxels)
        size = file_size(file)
        used = list(opened.pages) if pages == "volume" else [opened.pages[0]]
        decoded = []
        for page in used:
            _check_segments(path, page, size)
            decoded.append(_page_values(path, page, palette))
        values = decoded[0] if pages == "one" else np.stack(decoded)
    if values.shape != header.shape or values.dtype != header.dtype:
        raise UnreadableFile(
            path, f"decodes to {values.shape} {values.dtype}, its header promises {header.shape}", "Save it again."
        )
    return Image(np.ascontiguousarray(values))


def peek_tiff(
    path: str | os.PathLike[str], *, pages: str = "one", palette: str = "colour", max_voxels: int = MAX_VOXELS
) -> ImageHeader:
    """What `read_tiff` with the same arguments would return, from the tags.

    Raises:
      UnreadableFile: see `read_tiff`.
    """
    choice("pages", pages, ("one", "volume"))
    choice("palette", palette, ("colour", "index"))
    import tifffile

    with reading(path), open_file(path) as file, tifffile.TiffFile(file) as opened:
        return _header(path, opened, pages, palette, max_voxels)


def _header(
    path: str | os.PathLike[str], opened: "tifffile.TiffFile", pages: str, palette: str, max_voxels: int
) -> ImageHeader:
    count = len(opened.pages)
    if pages == "one" and count > 1:
        raise UnreadableFile(
            path, f"holds {count} pages", "Read them as a volume with `pages='volume'`, or save one page a file."
        )
    first = _page_shape(path, opened.pages[0], palette, max_voxels)
    if pages == "one":
        return first
    for number in range(1, count):
        other = _page_shape(path, opened.pages[number], palette, max_voxels)
        if (other.shape, other.dtype) != (first.shape, first.dtype):
            raise UnreadableFile(
                path,
                f"page {number + 1} is {other.shape} {other.dtype}, page 1 is {first.shape} {first.dtype}",
                "Keep only the pages of the volume (no thumbnails or other resolutions).",
            )
    check_size(path, (count, *first.shape), max_voxels)
    return ImageHeader((count, *first.shape), first.dtype)


def _page_shape(
    path: str | os.PathLike[str], page: "tifffile.TiffPage | tifffile.TiffFrame", palette: str, max_voxels: int
) -> ImageHeader:
    page = page.aspage()
    if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.dtype.kind not in "uifb":
        raise UnreadableFile(
            path, f"has the axes {page.axes!r} of {page.dtype}", "Save it as grey or RGB, of integers or floats."
        )
    lengths = dict(zip(page.axes, page.shape, strict=True))
    samples = lengths.get("S", 1)
    check_size(path, page.shape, max_voxels)
    if page.photometric == PALETTE:
        if page.colormap is None:
            raise UnreadableFile(path, "names a palette and holds none", "Save it again as grey or RGB.")
        dtype, channels = (page.dtype, 1) if palette == "index" else (page.colormap.dtype, 3)
    else:
        dtype, channels = page.dtype, samples - len(page.extrasamples)
    if channels not in (1, 3) or len(page.extrasamples) > 1:
        raise UnreadableFile(
            path,
            f"holds {samples} values a pixel ({_name(page.photometric)})",
            "Save it as grey or RGB, with no layers.",
        )
    shape = (lengths["Y"], lengths["X"], channels)
    check_size(path, shape, max_voxels)
    dtype = np.dtype(dtype).newbyteorder("=")
    return ImageHeader(shape, np.dtype(np.uint8) if dtype.kind == "b" else dtype)


def _check_segments(path: str | os.PathLike[str], page: "tifffile.TiffPage | tifffile.TiffFrame", size: int) -> None:
    """Every strip or tile lies in the file, and none unpacks to more than the whole page."""
    page = page.aspage()
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        # tifffile fills such strips with zeros.
        if offset <= 0 or length <= 0 or offset + length > size:
            raise UnreadableFile(
                path,
                f"has pixel data at bytes {offset:,} to {offset + length:,} of {size:,}",
                "The file is truncated: copy it again from its source.",
            )
        if page.compression in DEFLATE and length * 1032 > max(SUSPICIOUS_BYTES, 2 * page.nbytes):
            handle = page.parent.filehandle
            handle.seek(offset)
            packed = zlib.decompressobj()
            packed.decompress(handle.read(length), page.nbytes + 2**16)
            if packed.unconsumed_tail:
                raise UnreadableFile(
                    path, f"unpacks to more than the {page.nbytes:,} bytes of its page", "The file is damaged."
                )


def _name(code: int) -> str:
    """Name of a number of the TIFF standard; the bare number where it is not in it."""
    return getattr(code, "name", str(code))


def _page_values(
    path: str | os.PathLike[str], page: "tifffile.TiffPage | tifffile.TiffFrame", palette: str
) -> Shaped[np.ndarray, "h w c"]:
    page = page.aspage()
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise UnreadableFile(
            path,
            f"is compressed by {_name(page.compression)}, for which a package is missing",
            "Install it with `pip install imagecodecs`, or save the file uncompressed.",
        ) from error
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    if page.photometric == WHITE_IS_ZERO and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    if page.photometric == PALETTE and palette == "colour" and page.colormap is not None:
        values = np.moveaxis(page.colormap, 0, -1)[values]
    values = values if values.ndim == 3 else values[..., None]
    return without_alpha(path, values) if page.extrasamples else values
