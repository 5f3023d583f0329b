"""A user's arrays in the layout of the study: `Train`, `Val` and `Test` with `1_x.npy`, `1_meta.npy`, `1_y.npy`, ...

The layout does not say which breasts are of one woman. A file `patients.csv` beside the three folders, with the columns
`part`, `case` and `patient`, does; without it every breast counts as a patient of her own. With another number of
inputs than 33, `columns.txt` names them, one a line, dummies as `feature=level`.
"""

import dataclasses
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from experiments.breast_mri.encoding import INPUTS
from fusion_jax.data import Cohort, Image, Lazy
from fusion_jax.data.cohort import Columns, Role
from fusion_jax.data.image import UnreadableFile

__all__ = ["folder_cohort"]

PARTS = {"Train": "train", "Val": "validation", "Test": "test"}
# NumPy reads a header through the `ast` module, in which two threads of Python 3.11 get into each other's way.
ONE_AT_A_TIME = threading.Lock()

MALIGNANT = 2
"""Raw class; 0 is benign and 1 a lesion of high risk, which counts as benign."""


@dataclasses.dataclass(frozen=True)
class _Projections:
    """Reader of `i_x.npy`."""

    paths: tuple[str, ...]

    def __call__(self, row: int) -> Image:
        path = Path(self.paths[row])
        values = _array(path)
        if values.ndim == 2:
            values = values[..., None]
        if values.ndim != 3 or values.shape[-1] != 1:
            raise UnreadableFile(path, f"has shape {values.shape}", "Expected (height, width) or (height, width, 1).")
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise UnreadableFile(path, "has values outside 0 to 1", "Scale every projection to [0, 1].")
        return Image(np.asarray(values, np.float32))


def folder_cohort(folder: str) -> Cohort:
    """The cohort of a folder; projections are read when they are asked for.

    Args:
      folder: with `Train`, `Val` and `Test`.

    Returns:
      Cohort with the sources `image` and `clinical`, columns of encoded inputs; label `malignant`; `split` as a group.

    Raises:
      UnreadableFile: a file that is absent, holds objects, or has another shape or value than it should; the message
        names it.
      ValueError: other numbers of inputs than there are names; a table of patients that lacks a case.
    """
    import pandas as pd

    root = Path(folder)
    found = [
        (part, number, root / name) for name, part in PARTS.items() for number in range(1, 1 + _count(root / name))
    ]
    meta = [_vector(where / f"{number}_meta.npy") for _, number, where in found]
    raw = np.array([_class(where / f"{number}_y.npy") for _, number, where in found])
    names = _names(root, meta[0].shape[0])
    for (_, number, where), values in zip(found, meta, strict=True):
        if len(values) != len(names):
            raise UnreadableFile(
                where / f"{number}_meta.npy", f"has {len(values)} values", f"Expected {len(names)}, as the first case."
            )
    cases = [f"{part}_{number:05d}" for part, number, _ in found]
    table = pd.DataFrame(np.stack(meta), columns=list(names), index=pd.Index(cases, dtype=object))
    table["split"] = [part for part, _, _ in found]
    table["malignant"] = (raw == MALIGNANT if (raw == MALIGNANT).any() else raw == 1).astype(int)
    paths = [where / f"{number}_x.npy" for _, number, where in found]
    for path in paths:
        if not path.is_file():
            raise UnreadableFile(path, "is not there", "Cases are numbered from 1 without gaps.")
    roles: dict[str, Role] = dict.fromkeys(names, "input")
    roles |= {"malignant": "label", "split": "group"}
    sizes = [(path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    identity = hashlib.sha256(repr(sizes).encode()).hexdigest()
    reader = _Projections(tuple(map(str, paths)))
    return Cohort.from_arrays(
        {
            "image": Lazy(reader, np.arange(len(cases)), "image", identity),
            "clinical": Columns(names, len(cases)),
        },
        table=table,
        patient_id=_patients(root, found, cases),
        roles=roles,
        name=root.resolve().name,
    )


def _count(folder: Path) -> int:
    if not folder.is_dir():
        raise UnreadableFile(folder, "is not there", f"Expected the folders {', '.join(PARTS)}.")
    count = sum(1 for path in folder.iterdir() if path.name.endswith("_x.npy"))
    if not count:
        raise UnreadableFile(folder, "has no case", "Expected 1_x.npy, 1_meta.npy, 1_y.npy and so on.")
    return count


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UnreadableFile(path, "is not there", "Cases are numbered from 1 without gaps.")
    try:
        with ONE_AT_A_TIME:
            return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UnreadableFile(path, f"cannot be read ({error})", "Save an array of numbers with numpy.save.") from error


def _vector(path: Path) -> np.ndarray:
    values = np.asarray(_array(path))
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise UnreadableFile(
            path, f"has shape {values.shape} of {values.dtype}", "Expected a vector of encoded numbers."
        )
    if not np.isfinite(values).all():
        raise UnreadableFile(path, f"has no number at {int(np.argmin(np.isfinite(values)))}", "Fill gaps beforehand.")
    return values.astype(np.float64)


def _class(path: Path) -> int:
    values = np.asarray(_array(path))
    if values.size != 1 or float(values.reshape(-1)[0]) not in (0.0, 1.0, 2.0):
        raise UnreadableFile(path, f"holds {values.tolist()}", "Expected 0 or 1, or the raw classes 0, 1 and 2.")
    return int(values.reshape(-1)[0])


def _names(root: Path, count: int) -> tuple[str, ...]:
    path = root / "columns.txt"
    if path.is_file():
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    else:
        names = INPUTS
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"{root}: cases have {count} inputs, and {len(set(names))} have names. The study has {len(INPUTS)}; of "
            "others, give the names in columns.txt, one a line, dummies as feature=level."
        )
    return names


def _patients(root: Path, found: list[tuple[str, int, Path]], cases: list[str]) -> list[str]:
    import pandas as pd

    path = root / "patients.csv"
    if not path.is_file():
        return cases
    table: Any = pd.read_csv(path, dtype=str)
    absent = {"part", "case", "patient"} - set(table.columns)
    if absent:
        raise ValueError(f"{path}: no column {sorted(absent)[0]!r}; expected part, case and patient.")
    known = {(row.part, row.case): row.patient for row in table.itertuples()}
    lacking = [where / f"{number}_x.npy" for _, number, where in found if (where.name, str(number)) not in known]
    if lacking:
        raise ValueError(
            f"{path}: no patient of {lacking[0]} ({len(lacking)} such cases); expected one of every case, with part "
            f"one of {', '.join(PARTS)} and case its number."
        )
    return [str(known[where.name, str(number)]) for _, number, where in found]
