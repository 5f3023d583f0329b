"""Where the files of a collection are, and that they are the ones they should be."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from fusion_jax.data.image import UnreadableFile

__all__ = ["DATA_VARIABLE", "bundled_bytes", "checked_file", "collection_folder", "stated_identity"]

DATA_VARIABLE = "FUSION_JAX_DATA"
"""Environment variable: the folder that holds one folder a collection."""

DEFAULT_FOLDER = "../shared/data"
"""Where collections are looked for, from the working directory, while the variable is not set."""

SAMPLE_FILES = Path(__file__).parents[1] / "sample_files"


def collection_folder(name: str) -> Path:
    """Folder of a collection below `$FUSION_JAX_DATA`, by default `../shared/data`.

    Raises:
      FileNotFoundError: the folder is not there; the message says what to do.

    Example:
      >>> try:
      ...     collection_folder("no_such_collection")
      ... except FileNotFoundError as error:
      ...     print(str(error).startswith("no_such_collection: "))
      True
    """
    folder = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_FOLDER) / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: {folder} is not there. Put the collection there, or set {DATA_VARIABLE} to the folder that holds "
            f"{name}/."
        )
    return folder


def checked_file(folder: str | os.PathLike[str], name: str) -> Path:
    """A file of a collection whose bytes are those that the collection's SHA256SUMS states.

    A file is read for this once a process, and again only when its size or time of change is another.

    Args:
      folder: of the collection, with SHA256SUMS.
      name: path of the file below it, with slashes.

    Raises:
      FileNotFoundError: the file or SHA256SUMS is missing.
      UnreadableFile: SHA256SUMS does not list the file, or states another digest.
    """
    path = Path(folder) / name
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing. Get the collection again, with all its files.") from error
    _check(Path(folder), name, status.st_size, status.st_mtime_ns)
    return path


def stated_identity(folder: str | os.PathLike[str]) -> str:
    """What tells a collection from another one: the SHA-256 of the list of its files' digests."""
    return hashlib.sha256((Path(folder) / "SHA256SUMS").read_bytes()).hexdigest()


def bundled_bytes(name: str, sha256: str) -> bytes:
    """Contents of a file that comes with the package, if it is the one of this version.

    Raises:
      FileNotFoundError: the file is not in the installation.
      UnreadableFile: it is another one.
    """
    path = SAMPLE_FILES / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Install fusion-jax again; in a checkout, restore it from git.")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UnreadableFile(
            path, f"has SHA-256 {found}, expected {sha256}", "Install fusion-jax again; in a checkout, restore it."
        )
    return content


@lru_cache(maxsize=4096)
def _check(folder: Path, name: str, size: int, changed: int) -> None:
    """Compare a file with SHA256SUMS; a failure is not remembered."""
    del size, changed  # they only tell one state of the file from another
    path = folder / name
    try:
        expected = _sums(folder / "SHA256SUMS").get(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} is missing. Get the collection again, with all its files."
        ) from error
    if expected is None:
        raise UnreadableFile(path, "is not listed in SHA256SUMS", "Get the collection again.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UnreadableFile(path, f"has SHA-256 {found}, SHA256SUMS states {expected}", "Get the collection again.")


def _sums(path: Path) -> dict[str, str]:
    sums = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition(" ")
        sums[name.lstrip(" *").removeprefix("./")] = digest
    return sums
