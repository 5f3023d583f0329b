"""How every reader opens a file: bounded, quiet, and with one error for whatever is wrong inside it."""

import contextlib
import errno
import functools
import importlib
import io
import logging
import os
import threading
import warnings
import zipfile
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

from fusion_jax.data.image import UnreadableFile

__all__ = ["archive_member", "choice", "file_size", "open_file", "optional", "quiet", "reading"]

logger = logging.getLogger("fusion_jax.data.readers")

MAX_MEMBER_BYTES = 2**30
"""Most bytes that one file inside an archive may unpack to."""

NOISY_LOGGERS = ("nibabel.global", "pydicom", "tifffile")

_reading = threading.local()
_lock = threading.Lock()
_depth = 0
_outer_filters = contextlib.ExitStack()


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], advice: str = "Copy or export it again from its source.") -> Generator[None]:
    """Turn whatever a decoder raises about the content of `path` into `UnreadableFile`, and keep decoders quiet.

    Errors of the operating system (no such file, no permission, disk), of memory and of missing packages pass.

    Raises:
      UnreadableFile: the content cannot be used.

    Example:
      >>> with reading("ct.nii.gz"):
      ...     raise EOFError("Compressed file ended early")
      Traceback (most recent call last):
      fusion_jax.data.image.UnreadableFile: ct.nii.gz: cannot be decoded (EOFError: Compressed file ended early). Copy
      or export it again from its source.
    """
    with quiet():
        try:
            yield
        except (UnreadableFile, ImportError, MemoryError):
            raise
        except Exception as error:
            # Decoders raise OSError without a number for bad content; EINVAL is a seek to where a bad header points.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            # Decoders raise nearly everything on damaged input (struct.error, SyntaxError, RecursionError ...).
            text = " ".join(str(error).split())[:300]
            raise UnreadableFile(path, f"cannot be decoded ({type(error).__name__}: {text})", advice) from error


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Nothing of what decoders warn or log reaches the screen; their log lines go to our logger at debug level.

    Safe with threads, which `warnings.catch_warnings` alone is not: the filters of the caller come back when the last
    reading thread is done.
    """
    global _depth
    _divert_logs()
    with _lock:
        if _depth == 0:
            _outer_filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _depth += 1
    before = getattr(_reading, "now", False)
    _reading.now = True
    try:
        yield
    finally:
        _reading.now = before
        with _lock:
            _depth -= 1
            if _depth == 0:
                _outer_filters.close()


@functools.cache
def _divert_logs() -> None:
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_divert)


def _divert(record: logging.LogRecord) -> bool:
    if not getattr(_reading, "now", False):
        return True
    logger.debug("%s: %s", record.name, record.getMessage())
    return False


def optional(module: str, package: str) -> ModuleType:
    """A module of the `imaging` extra.

    Raises:
      ImportError: with the install command, if it is not installed.

    Example:
      >>> optional("nibabel", "nibabel").__name__
      'nibabel'
    """
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'This file needs {package}. Install it with `pip install "fusion-jax[imaging]"`.') from error


def archive_member(path: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """Archive and name inside it of a path such as `images.zip!case_1.jpg`; None for an ordinary path.

    Example:
      >>> archive_member("images.zip!case_1.jpg")[1]
      'case_1.jpg'
    """
    text = os.fspath(path)
    at = text.lower().find(".zip!")
    if at < 0 or Path(text).exists():
        return None
    return Path(text[: at + 4]), text[at + 5 :]


def open_file(path: str | os.PathLike[str]) -> io.BytesIO | io.BufferedReader:
    """The file, or the member of a ZIP archive, open for reading; it never reserves more memory than there are bytes.

    Raises:
      FileNotFoundError, PermissionError: as the operating system has it; also for a member that is not there.
      UnreadableFile: a folder, a device, an empty file, or a damaged archive.
    """
    member = archive_member(path)
    if member is not None:
        return io.BytesIO(_member_bytes(path, *member))
    path = Path(path)
    status = path.stat()
    if path.is_dir():
        raise UnreadableFile(
            path, "is a folder", "Give a file, or a folder of DICOM slices with reader='dicom_series'."
        )
    if not path.is_file():
        raise UnreadableFile(path, "is no ordinary file", "Give the path of an image file.")
    if status.st_size == 0:
        raise UnreadableFile(path, "is empty (0 bytes)", "Copy it again from its source.")
    return _Bounded(io.FileIO(path), status.st_size)


class _Bounded(io.BufferedReader):
    """`read(n)` of Python reserves n bytes at once; headers of damaged files ask for many more than there are."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw)
        self.file_size = size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 65536:
            size = min(size, max(0, self.file_size - self.tell()))
        return super().read(size)


def _member_bytes(path: str | os.PathLike[str], archive: Path, name: str) -> bytes:
    if not name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise UnreadableFile(path, f"{name!r} is no name inside an archive", "Write `archive.zip!folder/image.png`.")
    status = archive.stat()
    with reading(archive):
        opened = _archive(os.getpid(), archive, status.st_mtime_ns, status.st_size)
        try:
            info = opened.getinfo(name)
        except KeyError:
            names = opened.namelist()
            raise FileNotFoundError(
                errno.ENOENT, f"not among the {len(names)} members of {archive}, such as {names[:3]}", name
            ) from None
        if info.file_size > MAX_MEMBER_BYTES:
            raise UnreadableFile(
                path, f"unpacks to {info.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}", "Unpack the archive."
            )
        content = opened.read(info)
    if not content:
        raise UnreadableFile(path, "is empty (0 bytes)", "Copy the archive again from its source.")
    return content


# Reading the directory of an archive with 6,000 members takes 30 ms, a member 0.1 ms. A forked process must not share
# the open file, whose position would move under both; a changed archive is opened anew.
@functools.lru_cache(maxsize=8)
def _archive(process: int, archive: Path, modified: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def file_size(file: io.BytesIO | io.BufferedReader) -> int:
    """Bytes in an open file; the position stays."""
    position = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(position)
    return size


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value of an option that is none of the known ones.

    Raises:
      ValueError: if so; it lists them.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}.")
