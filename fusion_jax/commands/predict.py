"""`fusion-jax predict`: a trained model on new cases."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Apply a trained model to a cohort, after checking that its cases are of the kind that the model knows.

    Sources, columns, classes, shapes, voxel sizes and units are compared with those of the training; what differs is
    refused with the way out. Cases may lack a source; labels are not needed, and written beside the scores where they
    are known, so that `fusion-jax evaluate` can judge the file.

    Example: fusion-jax predict results/compare/sarcoma data/new --model gated --out new.csv

    Attributes:
      run: folder of a comparison, of one training in it (tasks/MODEL/r0_f0_s0), or of an export.
      cohort: folder with a cohort.toml or shards, or the name of a bundled cohort.
      out: the table of predictions, CSV or Parquet.
      model: of a comparison; the scores of all its trainings are averaged.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    cohort: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="COHORT")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Check, predict and write the table.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._shared.screen import progress_bar
    from fusion_jax.wording import counted, listed

    if config.out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {config.out}: expected a name that ends in .csv or .parquet.")
    from fusion_jax.data.address import cohort_address, open_address
    from fusion_jax.models.prediction import find_runs, predict_cohort

    runs = find_runs(config.run, config.model)
    cohort = open_address(cohort_address(config.cohort))
    with progress_bar("predicting") as bar:
        found = predict_cohort(runs, cohort, report=bar)
    _write(config.out, found.rows)
    of = counted(len(runs), "training") + (", their mean score" if len(runs) > 1 else "")
    print(f"{counted(len(found.rows), 'case')} of {cohort.name} by {found.model} ({of}): {config.out}")
    if found.known:
        print(
            f"Warning: {len(found.known)} of these cases ({listed(found.known)}) were among those that the model was "
            "trained on; their scores say nothing about new patients."
        )
    return 0


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    from fusion_jax.records import atomic_path, write_csv

    if path.suffix == ".csv":
        write_csv(path, rows)
        return
    import pandas as pd

    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_parquet(temporary)
