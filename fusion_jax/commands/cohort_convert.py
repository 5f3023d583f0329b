"""`fusion-jax cohort convert`: a cohort as array_record shards, read back and compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fusion_jax.commands._shared.screen import progress_bar

if TYPE_CHECKING:
    from fusion_jax.data.cohort import Cohort

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Write a cohort as array_record shards: one record a case after preprocessing, for random access at any size.

    Every case is read back and compared with the files; a difference is an error, and the shards are deleted then. The
    folder OUT appears when all cases are written, so that a conversion that was stopped leaves none.
    `fusion_jax.data.open_shards` opens it.

    Example: fusion-jax cohort convert my_cohort --out my_cohort_shards

    Attributes:
      cohort: folder with a cohort.toml.
      out: folder of the shards; must not exist or be empty. Default: the name of the cohort folder with `_shards`.
      verify: read every case back and compare it.
    """

    cohort: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")]
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    verify: bool = True


def run(config: Config) -> int:
    """Write, read back, compare, and print the speed of both.

    Raises:
      ValueError: a cohort that does not open or cannot be stored, or shards that differ from it.
      OSError: a file that cannot be read or written, or a folder with contents.
    """
    from fusion_jax.data.folder import open_cohort
    from fusion_jax.data.shards import open_shards, write_shards

    cohort = open_cohort(config.cohort)
    source = config.cohort if config.cohort.is_dir() else config.cohort.parent
    resolved = source.resolve()
    folder = resolved.with_name(f"{resolved.name}_shards") if config.out is None else config.out
    start = time.perf_counter()
    with progress_bar("writing") as progress:
        write_shards(cohort, folder, progress=progress)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"Wrote {len(cohort)} cases to {folder}: {size:.1f} MB, {_rate(len(cohort), seconds)}.")
    if not config.verify:
        return 0
    start = time.perf_counter()
    try:
        with progress_bar("comparing") as progress:
            check_same(cohort, open_shards(folder), progress)
    except ValueError:
        _delete(folder)
        raise
    seconds = time.perf_counter() - start
    print(f"Read back and compared with the files: identical, {_rate(len(cohort), seconds)} for both.")
    return 0


def _rate(cases: int, seconds: float) -> str:
    return f"{cases / max(seconds, 1e-9):.3g} cases/s"


def _delete(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def check_same(cohort: "Cohort", again: "Cohort", progress: Callable[[int, int], None]) -> None:
    """Compare two cohorts case by case: ids, table, classes, boxes, presence, values, dtypes, spacing, affine, unit.

    Raises:
      ValueError: they differ; the message names the first difference.
    """
    import numpy as np
    import pandas as pd

    for what in ("name", "case_id", "roles", "units", "box_classes", "boxes_of", "flow"):
        first, second = getattr(cohort, what), getattr(again, what)
        if first != second:
            raise ValueError(f"shards: {what} differs: {second!r} for {first!r}. Report this with the cohort.toml.")
    try:
        pd.testing.assert_frame_equal(cohort.table, again.table)
    except AssertionError as error:
        raise ValueError(f"shards: the table differs ({' '.join(str(error).split())}). Report this.") from None
    for column in cohort.columns("label"):
        if cohort.codes(column)[1] != again.codes(column)[1]:
            raise ValueError(f"shards: classes of {column} differ. Report this with the cohort.toml.")
    if cohort.patient_id.tolist() != again.patient_id.tolist() or list(cohort.sources) != list(again.sources):
        raise ValueError("shards: patients or sources differ. Report this with the cohort.toml.")
    for row, case in enumerate(cohort.case_id):
        for name, source in cohort.sources.items():
            there = bool(cohort.present[name][row])
            if there != bool(again.present[name][row]):
                raise ValueError(f"shards: {name} of case {case} is {'absent' if there else 'present'}. Report this.")
            if not there or source.kind == "table":
                continue
            one, two = cohort.image(name, row), again.image(name, row)
            same = one.values.dtype == two.values.dtype and one.values.tobytes() == two.values.tobytes()
            places = (one.affine is None) == (two.affine is None) and (
                one.affine is None or np.array_equal(one.affine, two.affine)  # pyright: ignore[reportArgumentType]
            )
            if not (same and places and one.values.shape == two.values.shape and one[1::2] == two[1::2]):
                raise ValueError(
                    f"shards: {name} of case {case} is not what the files hold: its file was changed meanwhile, or its "
                    "preprocessing is not the same twice. Convert again."
                )
        if cohort.boxes is not None and again.boxes is not None:
            pairs = zip(cohort.boxes[row], again.boxes[row], strict=True)
            if not all(np.array_equal(first, second) for first, second in pairs):
                raise ValueError(f"shards: boxes of case {case} differ. Report this with the cohort.toml.")
        progress(row + 1, len(cohort))
