"""Clinical tables as numbers: declare each column, fit on the training cases of a fold, apply, select in the fold."""

from fusion_jax.data.tabular.columns import (
    Category,
    Column,
    Cutoff,
    Flag,
    Number,
    Ordinal,
    columns_from_json,
    columns_to_json,
)
from fusion_jax.data.tabular.encoder import Encoded, FittedColumn, FittedTable, fit, read_fitted
from fusion_jax.data.tabular.selection import (
    ChiSquared,
    FactorTest,
    Selection,
    chi_squared,
    select,
    selection_frequency,
)
from fusion_jax.data.tabular.suggest import suggest_columns
from fusion_jax.data.tabular.training_cases import TrainingCases
from fusion_jax.data.tabular.units import MOLAR_MASSES, convert

__all__ = [
    "MOLAR_MASSES",
    "Category",
    "ChiSquared",
    "Column",
    "Cutoff",
    "Encoded",
    "FactorTest",
    "FittedColumn",
    "FittedTable",
    "Flag",
    "Number",
    "Ordinal",
    "Selection",
    "TrainingCases",
    "chi_squared",
    "columns_from_json",
    "columns_to_json",
    "convert",
    "fit",
    "read_fitted",
    "select",
    "selection_frequency",
    "suggest_columns",
]
