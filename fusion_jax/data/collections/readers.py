"""Images of a collection, read when a row is asked for; what is read goes to loader workers by pickle."""

import dataclasses
import io
import os
import threading
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from fusion_jax.data.collections.files import checked_file
from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.readers.grid import canonical_grid

__all__ = ["NpzStack", "StoredVolume", "ZipImages"]

ONE_AT_A_TIME = threading.Lock()
"""NumPy reads a header through the `ast` module, in which two threads of Python 3.11 get into each other's way."""


@dataclasses.dataclass(frozen=True)
class NpzStack:
    """Images of one array `(n, h, w)` in an npz file, unpacked at the first image and kept, once a process.

    Attributes:
      folder: of the collection.
      name: of the file.
      key: of the array.
      spacing: of the images in mm, None where unknown.
      unit: of the values.
    """

    folder: str
    name: str
    key: str
    spacing: tuple[float, float] | None = None
    unit: str = ""

    def __call__(self, row: int) -> Image:
        """The image of a row, with one channel."""
        path = checked_file(self.folder, self.name)
        values = _array(path, self.key, path.stat().st_mtime_ns)[row]
        return Image(values[..., None].copy(), self.spacing, None, self.unit)


@dataclasses.dataclass(frozen=True)
class ZipImages:
    """Images in a zip archive, one member a row.

    Attributes:
      folder: of the collection.
      name: of the archive.
      members: file in the archive of every row.
    """

    folder: str
    name: str
    members: tuple[str, ...]

    def __call__(self, row: int) -> Image:
        """The image of a row, RGB."""
        import PIL.Image

        path = checked_file(self.folder, self.name)
        member = self.members[row]
        try:
            # A handle for each process: after a fork, two would move one file position.
            content = _archive(path, path.stat().st_mtime_ns, os.getpid()).read(member)
            with PIL.Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                return Image(np.array(image.convert("RGB")))
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise UnreadableFile(path, f"{member} cannot be read ({error})", "Get the collection again.") from error


@dataclasses.dataclass(frozen=True)
class StoredVolume:
    """One volume of npz files with one file a case, axes and affine as in NIfTI, turned into canonical order.

    Attributes:
      folder: of the collection.
      names: file of every row.
      key: of the volume in a file.
      affine_key: of its affine.
      dtype: of the values returned.
      unit: of the values.
    """

    folder: str
    names: tuple[str, ...]
    key: str
    affine_key: str
    dtype: str
    unit: str

    def __call__(self, row: int) -> Image:
        """The volume of a row, `(d, h, w, 1)`."""
        path = checked_file(self.folder, self.names[row])
        with ONE_AT_A_TIME, np.load(path, allow_pickle=False) as file:
            stored, affine = file[self.key], file[self.affine_key]
        i, j, k = stored.shape
        grid = canonical_grid((i, j, k), affine)
        return Image(grid.arrange(stored)[..., None].astype(self.dtype), grid.spacing, grid.affine, self.unit)


@lru_cache(maxsize=8)
def _array(path: Path, key: str, changed: int) -> Shaped[np.ndarray, "n h w"]:
    del changed  # a file that changed is another one
    with ONE_AT_A_TIME, np.load(path, allow_pickle=False) as file:
        return file[key]


@lru_cache(maxsize=4)
def _archive(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    del changed, process
    return zipfile.ZipFile(path)
