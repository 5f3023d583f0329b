"""`fusion-jax cohort table`: the study's Table 1 and the flow diagram of its patients."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fusion_jax.commands._shared.screen import results_folder

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

    from fusion_jax.data.cohort import Cohort

__all__ = ["Config", "run"]

MOST_GROUPS = 10
PATIENT = "patient_id"


@dataclass(frozen=True)
class Config:
    """Write the study's Table 1: characteristics by outcome and by split; and the flow diagram of its patients.

    Writes table1.csv (full precision), table1_comparisons.csv, table1.md, table1.tex, flow.svg and flow.json to the
    folder OUT, and prints the table.

    Example: fusion-jax cohort table my_cohort --by died --splits splits.json

    Attributes:
      cohort: folder with a cohort.toml.
      by: columns whose values form groups. Default: the label columns.
      columns: columns to describe, in order. Default: all inputs, then the labels that form no groups.
      splits: JSON file of splits; its parts (train, validation, test) form groups, too.
      split: which of the splits in the file, from 0. Parts that change from split to split are of this one.
      statistic: of numbers: mean and standard deviation, or median and quartiles.
      median: columns for which the median is shown whatever the others show.
      test: p-values of categories by the chi-squared test without Yates's correction, by Fisher's exact test, or by
        Fisher's where an expected count is below 5; none gives no p-values.
      out: folder of the results. Default: results/cohort/NAME, NAME being that of the cohort.
    """

    cohort: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")]
    by: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    splits: Annotated[Path | None, tyro.conf.arg(metavar="JSON", help_behavior_hint="")] = None
    split: int = 0
    statistic: Literal["mean", "median"] = "mean"
    median: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    test: Literal["none", "chi2", "fisher", "auto"] = "none"
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None


def run(config: Config) -> int:
    """Describe the cohort, write table and flow, and print them.

    Raises:
      ValueError: a cohort, column or file of splits that cannot be used.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.data.characteristics import characteristics
    from fusion_jax.data.folder import open_cohort
    from fusion_jax.data.sketch.columns import check_named
    from fusion_jax.records import write_json, write_text
    from fusion_jax.reporting.flow import flow_figure

    # Who is in does not hang on which images are at hand.
    cohort = open_cohort(config.cohort, missing="absent")
    where = str(config.cohort)
    for option, names in (("--by", config.by), ("--columns", config.columns), ("--median", config.median)):
        for name in names:
            check_named(name, cohort.table.columns, option=option, where=where)
    by = [*(config.by or cohort.columns("label"))]
    for name in by:
        levels = len(set(cohort.table[name].dropna()))
        if levels > MOST_GROUPS:
            raise ValueError(
                f"{where}: column {name!r} has {levels} different values; expected at most {MOST_GROUPS} groups. Name "
                "another with --by."
            )
    columns = [*config.columns] or _default_columns(cohort, by)
    if not columns:
        raise ValueError(f"{where}: no column to describe: no column is an input. Name some with --columns.")
    table = _ordered(cohort, [*by, *columns])
    if config.splits is not None:
        table, name = _with_parts(table, cohort, config.splits, config.split)
        by = [*by, name]
    table, patient = _with_patients(table, cohort)
    found = characteristics(
        table,
        columns,
        by=by,
        statistic={name: "median" if name in config.median else config.statistic for name in columns},
        units=dict(cohort.units),
        test=None if config.test == "none" else config.test,
        patient=patient,
    )
    folder = results_folder(cohort.name, config.out)
    paths = [*found.write(folder, name="table1")]
    print(html.unescape(found.to_markdown()))  # entities are for the page
    if cohort.flow is not None:
        write_json(folder / "flow.json", cohort.flow.to_dict())
        write_text(folder / "flow.svg", flow_figure(cohort.flow).light)
        paths += [folder / "flow.svg", folder / "flow.json"]
        print(cohort.flow.to_text() + "\n")
    print(f"Wrote {', '.join(path.name for path in paths)} to {folder}")
    return 0


def _default_columns(cohort: "Cohort", by: Sequence[str]) -> list[str]:
    named = [*cohort.columns("input"), *cohort.columns("label")]
    return [name for name in named if name not in by]


def _ordered(cohort: "Cohort", columns: Sequence[str]) -> "pandas.DataFrame":
    """The table with declared levels in their order."""
    import pandas as pd

    from fusion_jax.data.tables import as_written

    table = cohort.table.copy()
    for name in columns:
        if cohort.role(name) == "label":
            codes, levels = cohort.codes(name)
            table[name] = pd.Categorical.from_codes(codes, categories=list(levels), ordered=True)
        elif name in cohort.levels:
            words = cohort.table[name].map(as_written, na_action="ignore")
            table[name] = pd.Categorical(words, categories=list(cohort.levels[name]), ordered=True)
    return table


def _with_parts(table: "pandas.DataFrame", cohort: "Cohort", path: Path, number: int) -> tuple["pandas.DataFrame", str]:
    import pandas as pd

    from fusion_jax.data.splits import load_splits

    splits = load_splits(path, cohort)
    if not 0 <= number < len(splits.splits):
        raise ValueError(f"--split is {number}; expected 0 to {len(splits.splits) - 1}, since {path} holds so many.")
    parts = {case: part for part in ("train", "validation", "test") for case in getattr(splits.splits[number], part)}
    used = [part for part in ("train", "validation", "test") if part in parts.values()]
    name = "split" if "split" not in table.columns else "part of the split"
    values = pd.Categorical([parts.get(case) for case in cohort.case_id], categories=used, ordered=True)
    return table.assign(**{name: values}), name


def _with_patients(table: "pandas.DataFrame", cohort: "Cohort") -> tuple["pandas.DataFrame", str]:
    name = PATIENT
    while name in table.columns:
        name += "_"
    return table.assign(**{name: cohort.patient_id}), name
