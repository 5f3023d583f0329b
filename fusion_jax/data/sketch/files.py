"""Which files of a folder belong to which case, and what they are."""

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.readers import READERS, peek_image, reader_name

__all__ = ["FoundSource", "Matches", "braced", "closest", "find_sources", "list_files", "match_files"]

MASK_WORDS = frozenset(
    ["mask", "masks", "seg", "segs", "segmentation", "segmentations", "label", "labels", "gtv", "roi", "contour"]
)
IMAGE_WORDS = frozenset(["image", "images", "img", "imgs", "scan", "volume", "vol"])
SUFFIXES = tuple(sorted((s for one in READERS.values() for s in one.suffixes), key=len, reverse=True))
DICOM_SUFFIXES = READERS["dicom"].suffixes
CASE = "{case_id}"
LARGEST_MATRIX = 4
"""An array no larger than this along an axis is a matrix or a list of points, no image."""

LEAST_SHARE = 0.1
"""A pattern that fewer of the cases have is no source but a few files named otherwise."""


class Matches(NamedTuple):
    """Files of a folder by the cases they are named after.

    Attributes:
      patterns: pattern with `{case_id}` to case to path below the folder.
      ambiguous: path and the cases it could be of.
      unmatched: paths that carry the id of no case.
    """

    patterns: Mapping[str, Mapping[str, str]]
    ambiguous: tuple[tuple[str, tuple[str, ...]], ...]
    unmatched: tuple[str, ...]

    @property
    def cases(self) -> frozenset[str]:
        """Cases with a file."""
        return frozenset(case for found in self.patterns.values() for case in found)


class FoundSource(NamedTuple):
    """A source that was found among the files.

    Attributes:
      name: from the constant part of the files' names.
      files: pattern of the paths.
      cases: how many have the file.
      kind: "image" or "mask", by the name.
      of: image that a mask lies on; None where that is not plain.
      reader: where the content does not tell; None otherwise.
      options: of the reader.
      note: what a look at the first file showed.
      open: what has to be decided before it can be used; "" if nothing.
    """

    name: str
    files: str
    cases: int
    kind: str = "image"
    of: str | None = None
    reader: str | None = None
    options: Mapping[str, Any] = {}
    note: str = ""
    open: str = ""


def list_files(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Paths of image files below a folder; a folder with several DICOM files and nothing else counts as one.

    Raises:
      FileNotFoundError: there is no such folder.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name in ("c1.png", "c2.png", "notes.txt"):
      ...     (folder / name).touch()
      >>> list_files(folder)
      ('c1.png', 'c2.png')
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the images. Check the path.")
    found = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        at = Path(place).relative_to(folder)
        names = sorted(name for name in names if not name.startswith("."))
        if len(names) > 1 and at != Path() and all(name.lower().endswith(DICOM_SUFFIXES) for name in names):
            found.append(at.as_posix())
        else:
            found += [(at / name).as_posix() for name in names if name.lower().endswith(SUFFIXES)]
    return tuple(sorted(found))


def match_files(
    paths: Iterable[str], cases: Iterable[str], columns: Mapping[str, Mapping[str, str]] | None = None
) -> Matches:
    """Files by the cases they are named after.

    A file is of a case if its path holds the id, exactly as written and with no letter or digit beside it. An id
    within a longer one that matches too does not count. A file that carries the ids of two cases is ambiguous.

    Args:
      paths: of files, parts separated by `/`.
      cases: ids.
      columns: further columns of the table, as column to case to cell, that may stand in a path: the hospital or the
        patient. They do where this makes fewer patterns.

    Example:
      >>> found = match_files(["ct/c1.png", "ct/c2.png", "ct/c1_c2.png", "ct/c12.png"], ["c1", "c2"])
      >>> found.patterns
      {'ct/{case_id}.png': {'c1': 'ct/c1.png', 'c2': 'ct/c2.png'}}
      >>> found.ambiguous, found.unmatched
      ((('ct/c1_c2.png', ('c1', 'c2')),), ('ct/c12.png',))
      >>> match_files(["a/c1.png", "b/c2.png"], ["c1", "c2"], {"site": {"c1": "a", "c2": "b"}}).patterns
      {'{site}/{case_id}.png': {'c1': 'a/c1.png', 'c2': 'b/c2.png'}}
    """
    known = set(cases)
    longest = max(map(len, known), default=0)
    found: list[tuple[str, str, list[_Span]]] = []
    ambiguous, unmatched = [], []
    for path in paths:
        spans = _ids_in(path, known, longest)
        ids = tuple(dict.fromkeys(path[a:b] for a, b in spans))
        if len(ids) == 1:
            found.append((path, ids[0], [(a, b, CASE) for a, b in spans]))
        elif ids:
            ambiguous.append((path, ids))
        else:
            unmatched.append(path)
    patterns = _by_pattern(found)
    for column, cells in (columns or {}).items():
        wider = [(path, case, _with_cell(path, spans, column, cells.get(case))) for path, case, spans in found]
        fewer = _by_pattern(wider)
        if len(fewer) < len(patterns):
            found, patterns = wider, fewer
    return Matches(patterns, tuple(ambiguous), tuple(unmatched))


_Span = tuple[int, int, str]
"""Begin and end of what a pattern replaces in a path, and by what."""


def _by_pattern(found: Iterable[tuple[str, str, list[_Span]]]) -> dict[str, dict[str, str]]:
    patterns: dict[str, dict[str, str]] = {}
    for path, case, spans in found:
        patterns.setdefault(_pattern(path, spans), {})[case] = path
    return patterns


def _with_cell(path: str, spans: list[_Span], column: str, cell: str | None) -> list[_Span]:
    """Spans with those of a cell of the table, where they lie beside the others."""
    if not cell:
        return spans
    more = [
        (a, b, f"{{{column}}}")
        for a, b in _ids_in(path, {cell}, len(cell))
        if all(b <= begin or end <= a for begin, end, _ in spans)
    ]
    return sorted([*spans, *more])


def _ids_in(path: str, known: set[str], longest: int) -> list[tuple[int, int]]:
    """Spans of ids in a path that lie in no other."""
    words = [match.span() for match in re.finditer(r"[^\W_]+", path)]
    starts = {a for a, _ in words} | {b for _, b in words}
    ends = starts | {len(path)}
    spans = []
    for a in sorted(starts | {0}):
        for b in sorted(end for end in ends if a < end <= a + longest):
            inside = path[a:b] in known
            # An id may itself begin or end with a sign; what counts is that no letter or digit goes on.
            if (
                inside
                and not (path[a - 1 : a].isalnum() and path[a].isalnum())
                and not (path[b : b + 1].isalnum() and path[b - 1].isalnum())
            ):
                spans.append((a, b))
    return [one for one in spans if not any(o != one and o[0] <= one[0] and one[1] <= o[1] for o in spans)]


def _pattern(path: str, spans: Sequence[_Span]) -> str:
    parts, at = [], 0
    for a, b, field in spans:
        parts += [braced(path[at:a]), field]
        at = b
    return "".join([*parts, braced(path[at:])])


def braced(text: str) -> str:
    """Text as it stands in a pattern."""
    return text.replace("{", "{{").replace("}", "}}")


def find_sources(
    folder: str | os.PathLike[str], matches: Matches, cases: int, *, taken: Iterable[str] = ()
) -> tuple[tuple[FoundSource, ...], tuple[str, ...]]:
    """Sources among files that were matched with cases, from a look at one file of each.

    Args:
      folder: that the paths start from.
      matches: from `match_files`.
      cases: number of all cases.
      taken: names that sources must not have.

    Returns:
      The sources, images before masks; and patterns that too few cases have to be one.

    Example:
      >>> import tempfile
      >>> from fusion_jax.data.samples import SAMPLE_FILE
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "c1.npz").write_bytes(SAMPLE_FILE.read_bytes())
      >>> sources, _ = find_sources(folder, match_files(["c1.npz"], ["c1"]), 1)
      >>> sources[1].options
      {'array': 'STS_001/ct', 'axes': 'dhw', 'affine': 'STS_001/affine'}
    """
    found, rare = [], []
    names = set(taken)
    for pattern, files in sorted(matches.patterns.items()):
        if len(files) < min(2, cases) or len(files) < LEAST_SHARE * cases:
            rare.append(pattern)
            continue
        case, path = next(iter(sorted(files.items())))
        for part, seen in _look(Path(folder) / path, case):
            name = _name(pattern, part, names)
            names.add(name)
            words = set(_words(name))
            about: dict[str, Any] = {"kind": "mask" if words & MASK_WORDS else "image", **seen}
            found.append(FoundSource(name, pattern, len(files), **about))
    images = [one for one in found if one.kind == "image"]
    masks = [_with_image(one, images) for one in found if one.kind == "mask"]
    return (*images, *masks), tuple(rare)


def _look(path: Path, case: str) -> list[tuple[str, dict[str, Any]]]:
    """Parts of a file that are sources of their own, each with what is known of it."""
    try:
        kind = reader_name(path)
        if kind in ("rtstruct", "dicom_seg"):
            from fusion_jax.data.readers import region_names, segment_names

            listed = ", ".join(map(repr, region_names(path) if kind == "rtstruct" else segment_names(path)))
            option = "region" if kind == "rtstruct" else "segment"
            return [("", {"kind": "mask", "reader": kind, "open": f"which {option}? case {case} has {listed}"})]
        if kind == "npz":
            return _arrays(path, case)
        return [("", {"note": _header(path, case)})]
    except (UnreadableFile, OSError, ImportError, ValueError) as error:
        return [("", {"note": f"COULD NOT BE READ at case {case}: {_one_line(error)}"})]


def _header(path: Path, case: str, **options: Any) -> str:
    header = peek_image(path, **options)
    size = " x ".join(map(str, header.shape))
    spacing = "" if header.spacing is None else f", {' x '.join(f'{mm:.3g}' for mm in header.spacing)} mm"
    return f"case {case}: {size} {header.dtype}{spacing}{', ' + header.unit if header.unit else ''}"


def _arrays(path: Path, case: str) -> list[tuple[str, dict[str, Any]]]:
    """Images among the arrays of an NPZ file, each with its affine where one has its name."""
    shapes = _array_shapes(path)
    affines = {name for name, (shape, _) in shapes.items() if shape == (4, 4) and re.search(r"(^|[_/])affine$", name)}
    found = []
    # Numbers, lists and texts beside the images are none.
    images = [
        name
        for name, (shape, kind) in shapes.items()
        if name not in affines and kind in "biuf" and len(shape) > 1 and min(shape[:2]) > LARGEST_MATRIX
    ]
    for name in images:
        options: dict[str, Any] = {"array": name} if len(shapes) > 1 else {}
        affine = _affine_of(name, affines)
        if affine is not None:
            options |= {"axes": _axes(path, affine), "affine": affine}
        try:
            note = _header(path, case, **options)
        except ValueError as error:
            note = f"COULD NOT BE READ at case {case}: {_one_line(error)}"
        found.append((name if len(images) > 1 else "", {"reader": "npz", "options": options, "note": note}))
    return found


def _array_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and kind of dtype of every array of an NPZ file, from the headers."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            found[name.removesuffix(".npy")] = shape, dtype.kind
    return found


def _affine_of(name: str, affines: set[str]) -> str | None:
    """`ct_affine` for `ct` and `ct_mask`, else the only one in the same place, else the only one."""
    place = name.rpartition("/")[0]
    stem = name
    while stem:
        if f"{stem}_affine" in affines:
            return f"{stem}_affine"
        stem = stem.rpartition("_")[0]
    beside = f"{place}/affine" if place else "affine"
    return beside if beside in affines else None


def _axes(path: Path, affine: str) -> str:
    """Order of the axes that an affine is for: the first index runs along x, or along the body."""
    with np.load(path, allow_pickle=False) as file:
        matrix = np.abs(np.asarray(file[affine], float))
    return "xyz" if matrix[:3, 0].argmax() == 0 else "dhw"


def _name(pattern: str, part: str, taken: set[str]) -> str:
    """A name from what is constant in the names of the files, else from their folder."""
    place, _, file = re.sub(r"{[^{}]+}", " ", pattern).rpartition("/")
    for suffix in SUFFIXES:
        if file.lower().endswith(suffix):
            file = file[: -len(suffix)]
            break
    words = _words(file) or _words(place.rpartition("/")[2])
    if part:
        # Arrays of one file are told apart by their own names.
        words = _words(part.rpartition("/")[2]) or words
    name = "_".join(words) or "image"
    name = {"images": "image", "masks": "mask", "labels": "mask", "imgs": "image"}.get(name, name)
    number, first = 2, name
    while name in taken:
        name, number = f"{first}_{number}", number + 1
    return name


def _with_image(mask: FoundSource, images: Sequence[FoundSource]) -> FoundSource:
    """The mask with the image it lies on, where only one comes into question."""
    words = set(_words(mask.name)) - MASK_WORDS
    # IBSI: `CT_mask` beside `CT_image`.
    telling = {one.name: set(_words(one.name)) - IMAGE_WORDS or set(_words(one.name)) for one in images}
    named = [name for name, of_image in telling.items() if of_image <= words]
    beside = [one.name for one in images if one.files == mask.files]
    for found in (named, beside, [one.name for one in images]):
        if len(found) == 1:
            return mask._replace(of=found[0])
    question = f"which image is it a mask of? There are {', '.join(one.name for one in images) or 'none'}"
    return mask._replace(open="; ".join(filter(None, (mask.open, question))))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^0-9a-z]+", text.lower()) if word]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def closest(paths: Sequence[str], cases: Sequence[str]) -> str:
    """In what ids and files differ, if that is plain; "" otherwise."""
    rules: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("in capital letters", str.lower),
        ("in leading zeros", lambda text: re.sub(r"(?<!\d)0+(?=\d)", "", text)),
        ("in signs between their parts", lambda text: re.sub(r"[^0-9A-Za-z/.]+", "", text)),
    )
    for words, change in rules:
        found = match_files([change(path) for path in paths[:200]], [change(case) for case in cases])
        if found.patterns:
            return words
    return ""
