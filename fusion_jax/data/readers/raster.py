"""PNG and JPEG through Pillow."""

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.guard import choice, file_size, open_file, reading
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader, check_size

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["peek_jpeg", "peek_png", "read_jpeg", "read_png", "without_alpha"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR, PNG_PALETTE, PNG_ALPHA = 2, 1, 4
"""Bits of the colour type in a PNG header."""

EXIF_ORIENTATION = 0x0112


def read_png(path: str | os.PathLike[str], *, palette: str = "colour", max_voxels: int = MAX_VOXELS) -> Image:
    """A PNG of 8 or 16 bit, grey `(h, w, 1)` or RGB `(h, w, 3)`.

    Checksums of all parts are verified. Grey of 1, 2 or 4 bits is scaled to 0 to 255, as viewers do. An alpha channel
    that is the same everywhere is left out; one that varies is refused, since what lies under it is not defined.

    Args:
      path: the file.
      palette: of a file with a palette: "colour" for its colours, "index" for the stored numbers (labels of a mask).
      max_voxels: most values the image may hold; compared with the header before anything is decoded.

    Raises:
      UnreadableFile: damaged, too large, with varying alpha, or RGB of 16 bit, of which Pillow would drop half.

    Example:
      >>> image = read_png("chest.png")  # doctest: +SKIP
      >>> image.values.shape, image.values.dtype  # doctest: +SKIP
      ((224, 224, 1), dtype('uint8'))
    """
    choice("palette", palette, ("colour", "index"))
    from PIL import PngImagePlugin

    with reading(path), open_file(path) as file:
        header = _png_header(path, file.read(33), file_size(file), palette, max_voxels)
        file.seek(0)
        content = file.read()
        _check_png_chunks(path, content)
        with PngImagePlugin.PngImageFile(io.BytesIO(content)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UnreadableFile(path, f"is an animation of {image.n_frames} images", "Save one image a file.")
            values = np.asarray(image) if image.mode == "P" and palette == "index" else _opaque(path, image)
    return Image(_checked(path, values, header))


def peek_png(path: str | os.PathLike[str], *, palette: str = "colour", max_voxels: int = MAX_VOXELS) -> ImageHeader:
    """What `read_png` with the same arguments would return, from the first 33 bytes.

    Raises:
      UnreadableFile: see `read_png`.
    """
    choice("palette", palette, ("colour", "index"))
    with reading(path), open_file(path) as file:
        return _png_header(path, file.read(33), file_size(file), palette, max_voxels)


def _png_header(path: str | os.PathLike[str], start: bytes, size: int, palette: str, max_voxels: int) -> ImageHeader:
    if len(start) < 33 or start[:8] != PNG_SIGNATURE or start[12:16] != b"IHDR":
        raise UnreadableFile(path, "does not begin as a PNG does", "Give a PNG, or name its kind with `reader`.")
    width, height, depth, kind = struct.unpack(">IIBB", start[16:26])
    if depth == 16 and kind & PNG_COLOUR:
        raise UnreadableFile(
            path, "holds 16-bit colour, of which Pillow would keep half", "Save it as TIFF, or as 16-bit grey."
        )
    index = kind == PNG_COLOUR | PNG_PALETTE and palette == "index"
    shape = (height, width, 3 if kind & PNG_COLOUR and not index else 1)
    # A palette or a few bits a pixel hold more than a byte each once decoded.
    packed = depth < 8 or kind & PNG_PALETTE
    check_size(path, shape, max_voxels, stored_bytes=None if packed else size, itemsize=depth // 8)
    return ImageHeader(shape, np.dtype(np.uint16 if depth == 16 else np.uint8))


def _check_png_chunks(path: str | os.PathLike[str], content: bytes) -> None:
    """Pillow does not compare the checksums of pixel data, and reads on where the last parts are missing."""
    position = len(PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(content):
            raise UnreadableFile(path, "is truncated: its last part is missing", "Copy it again from its source.")
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        end = position + 12 + length
        if end > len(content):
            raise UnreadableFile(path, f"is truncated inside its part {kind!r}", "Copy it again from its source.")
        if zlib.crc32(content[position + 4 : end - 4]) != struct.unpack(">I", content[end - 4 : end])[0]:
            raise UnreadableFile(path, f"fails the checksum of its part {kind!r}", "Copy it again from its source.")
        position = end


def read_jpeg(path: str | os.PathLike[str], *, max_voxels: int = MAX_VOXELS) -> Image:
    """A JPEG of 8 bit, grey `(h, w, 1)` or RGB `(h, w, 3)`, turned upright as its EXIF orientation says.

    Args:
      path: the file, or `archive.zip!member.jpg`.
      max_voxels: most values the image may hold; compared with the header before anything is decoded.

    Raises:
      UnreadableFile: damaged, truncated, too large, or of other colours than grey and RGB.

    Example:
      >>> read_jpeg("images.zip!ISIC_0025346.jpg").values.shape  # doctest: +SKIP
      (90, 120, 3)
    """
    from PIL import ImageOps, JpegImagePlugin

    with (
        reading(path),
        open_file(path) as file,
        # The class and not `Image.open`: Pillow's own limit is one for the whole process, ours is the caller's.
        JpegImagePlugin.JpegImageFile(file) as image,
    ):
        header = _jpeg_header(path, image, max_voxels)
        image.load()
        values = np.asarray(ImageOps.exif_transpose(image))
    return Image(_checked(path, values, header))


def peek_jpeg(path: str | os.PathLike[str], *, max_voxels: int = MAX_VOXELS) -> ImageHeader:
    """What `read_jpeg` would return, from the parts before the pixels.

    Raises:
      UnreadableFile: see `read_jpeg`.
    """
    from PIL import JpegImagePlugin

    with reading(path), open_file(path) as file, JpegImagePlugin.JpegImageFile(file) as image:
        return _jpeg_header(path, image, max_voxels)


def _jpeg_header(path: str | os.PathLike[str], image: "PIL.Image.Image", max_voxels: int) -> ImageHeader:
    if image.mode not in ("L", "RGB"):
        raise UnreadableFile(path, f"holds the colours {image.mode}", "Save it as grey or RGB.")
    width, height = image.size
    # Orientations 5 to 8 lie on their side.
    if image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    shape = (height, width, 1 if image.mode == "L" else 3)
    check_size(path, shape, max_voxels)
    return ImageHeader(shape, np.dtype(np.uint8))


def without_alpha(
    path: str | os.PathLike[str], values: Shaped[np.ndarray, "h w c"]
) -> Shaped[np.ndarray, "h w colours"]:
    """All channels but the last, which is the opacity, if that is the same everywhere.

    Raises:
      UnreadableFile: if it is not.
    """
    alpha = values[..., -1]
    if alpha.size and (alpha != alpha.flat[0]).any():
        raise UnreadableFile(
            path,
            f"has an alpha channel that varies ({alpha.min()} to {alpha.max()})",
            "Put the image on its background and save it without transparency, or its mask as a file of its own.",
        )
    return np.ascontiguousarray(values[..., :-1])


def _opaque(path: str | os.PathLike[str], image: "PIL.Image.Image") -> Shaped[np.ndarray, "h w ..."]:
    if image.mode == "P":
        image = image.convert("RGBA")
    elif "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    values = np.asarray(image)
    return without_alpha(path, values) if image.mode in ("LA", "RGBA") else values


def _checked(
    path: str | os.PathLike[str], values: Shaped[np.ndarray, "h w ..."], header: ImageHeader
) -> Shaped[np.ndarray, "h w c"]:
    values = values if values.ndim == 3 else values[..., None]
    if values.shape != header.shape or values.dtype != header.dtype:
        raise UnreadableFile(
            path,
            f"decodes to {values.shape} {values.dtype}, its header promises {header.shape} {header.dtype}",
            "Save it again with another program.",
        )
    return np.ascontiguousarray(values)
