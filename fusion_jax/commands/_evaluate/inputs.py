"""Tables of predictions, and the cohort or table whose columns are joined to them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_jax.commands.evaluate import Config, name_and_path
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.folder import open_cohort
from fusion_jax.data.tables import read_table
from fusion_jax.evaluation.panel import Panel, make_panel
from fusion_jax.evaluation.subgroups import MOST_LEVELS
from fusion_jax.records.predictions import ColumnNames, Predictions, check_predictions, model_name
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Inputs", "read_inputs"]

COLUMNS = {
    "case": "case",
    "patient": "patient",
    "model": "model",
    "label": "label",
    "score": "score",
    "instance": "instance",
    "split": "split",
    "fold": "fold",
    "repeat": "repeat",
    "seed_column": "seed",
    "site": "site",
    "time": "time",
    "event": "event",
}
"""Options and the columns of the predictions table that they name."""


class Inputs(NamedTuple):
    """Everything that was read.

    Attributes:
      paths: of the tables.
      predictions: checked.
      panel: of them.
      covariates: by case, the columns of subgroups; None without any.
      cohort: that the predictions are of; None without one.
    """

    paths: tuple[str, ...]
    predictions: Predictions
    panel: Panel
    covariates: "pandas.DataFrame | None"
    cohort: Cohort | None


def read_inputs(config: Config) -> Inputs:
    """Read and check all files.

    Raises:
      ValueError: a file, column or option that cannot be used.
      OSError: a file that cannot be read.
    """
    tables, named = _read_tables(config)
    chosen = {field: value for option, field in COLUMNS.items() if (value := getattr(config, option)) is not None}
    for option, field in COLUMNS.items():
        wanted = chosen.get(field)
        for where, table in tables.items():
            if wanted is not None and wanted not in table.columns:
                raise ValueError(
                    f"{where}: no column {wanted!r}, which --{option.replace('_', '-')} names; its columns are "
                    f"{listed(table.columns, 12)}."
                )
    names = ColumnNames(**chosen, class_prefix=config.class_prefix)
    for where, name in named.items():
        if names.model in tables[where].columns:
            raise ValueError(
                f"{where} has a column {names.model!r} of models, and was named {name!r} in the call; leave out one."
            )
        tables[where][str(names.model)] = name
    cohort = None if config.cohort is None else open_cohort(config.cohort)
    if cohort is not None:
        _join_patients(tables, names, cohort)
    predictions = check_predictions(
        tables, names=names, positive=config.positive, scores=config.scores, mismatched=config.mismatched
    )
    for model in config.single:
        if model not in predictions.models:
            raise ValueError(
                f"--single names {model!r}, which is no model of these files; they are "
                f"{listed(map(repr, predictions.models), 8)}."
            )
    panel = make_panel(predictions, level=config.level, aggregate=config.aggregate)
    return Inputs(tuple(tables), predictions, panel, _covariates(config, predictions, panel, cohort), cohort)


def _join_patients(tables: Mapping[str, Any], names: ColumnNames, cohort: Cohort) -> None:
    """Patients of the cohort, for tables that do not name them: they are the unit of every interval."""
    patient = dict(zip(cohort.case_id, cohort.patient_id, strict=True))
    for table in tables.values():
        known = names.case in table.columns and names.patient not in table.columns
        if known and set(table[names.case].astype(str)) <= set(patient):
            table[names.patient] = table[names.case].astype(str).map(patient)


def _read_tables(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Tables by path, and the names that were given to some."""
    tables: dict[str, Any] = {}
    named: dict[str, str] = {}
    ids = {"case_id", "patient_id", "model", "instance", "split", "fold", "repeat", "seed", "site", "label"}
    ids |= {str(getattr(config, option)) for option in COLUMNS if option not in ("score", "time", "event")}
    for word in config.tables:
        name, path = name_and_path(word)
        if path in tables:
            raise ValueError(f"{path} was given twice; each file holds predictions of its own.")
        tables[path] = read_table(path, text=sorted(ids))
        if name:
            named[path] = name
    stems = [named.get(path, model_name(path)) for path in tables]
    without = [path for path in tables if (config.model or "model") not in tables[path].columns]
    doubled = {stem for path, stem in zip(tables, stems, strict=True) if path in without and stems.count(stem) > 1}
    if doubled:
        raise ValueError(
            f"two files stand for the model {min(doubled)!r}, which is their name; name them apart: FIRST=FILE "
            "SECOND=FILE."
        )
    return tables, named


def _covariates(config: Config, predictions: Predictions, panel: Panel, cohort: Cohort | None) -> Any:
    """Columns of subgroups by case: those asked for, and the site where the predictions have one."""
    import pandas as pd

    if config.covariates is not None and cohort is not None:
        raise ValueError("--covariates and --cohort both give columns to join; give one of them.")
    joined: Any = None
    where = ""
    if cohort is not None:
        joined, where = cohort.table, str(config.cohort)
    elif config.covariates is not None:
        where = str(config.covariates)
        joined = read_table(config.covariates, text=("case_id",))
        if "case_id" not in joined.columns:
            raise ValueError(f"{where}: no column 'case_id' to join by; its columns are {listed(joined.columns, 12)}.")
        joined = joined.set_index("case_id")
    wanted = list(config.subgroups)
    for column in wanted:
        if column not in joined.columns:
            raise ValueError(
                f"{where}: no column {column!r}, which --subgroups names; its columns are {listed(joined.columns, 12)}."
            )
    found: dict[str, Any] = {}
    if wanted:
        if panel.level == "patient":
            raise ValueError("--subgroups are of cases, and rows are patients here; judge cases (--level case).")
        missing = sorted(set(panel.cases) - set(joined.index))
        if missing:
            raise ValueError(
                f"{where}: no row of case {missing[0]!r}, and {len(missing)} of the predicted cases in all are missing "
                f"there ({listed(missing)}). Subgroups need a row of every case."
            )
        found = {column: joined[column] for column in wanted}
    table: Any = predictions.table
    if "site" in table.columns and "site" not in found and panel.level != "patient":
        sites = table.drop_duplicates("case_id").set_index("case_id")["site"]
        # Nobody asked for sites, so more of them than a table can show are no reason to stop.
        if 1 < sites.nunique() <= MOST_LEVELS:
            found["site"] = sites
    return pd.DataFrame(found) if found else None
