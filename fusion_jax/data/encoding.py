"""The clinical table of a cohort as numbers, fitted on the training cases of a split."""

from collections.abc import Iterable

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split
from fusion_jax.data.tabular import Column, FittedTable, fit

__all__ = ["encode"]


def encode(
    cohort: Cohort, split: Split, columns: Iterable[Column], *, source: str = "clinical"
) -> tuple[Cohort, FittedTable]:
    """Fit an encoder to the inputs of the training cases, and put its values in as a source.

    Args:
      cohort: with a table.
      split: whose training cases are looked at; nobody else is.
      columns: declarations of input columns, as from `fusion_jax.data.tabular.suggest_columns`.
      source: name of the source that the values become, replacing one of that name.

    Returns:
      cohort: with the values `(n, t)` of all cases.
      fitted: what was fitted, to be saved with a model; it refuses other folds.

    Raises:
      ValueError: as `fit` and `FittedTable.apply`.

    Example:
      >>> from fusion_jax.data import k_fold, load
      >>> from fusion_jax.data.tabular import Number
      >>> cohort = load("soft_tissue_sarcoma")
      >>> ready, fitted = encode(cohort, k_fold(cohort, 3, seed=0).splits[0], [Number("age_years", unit="years")])
      >>> ready.sources["clinical"][0].shape, fitted.names
      ((1,), ('age_years',))
    """
    fold = f"r{split.repeat}_f{split.fold}"
    fitted = fit(list(columns), cohort.inputs, split.train, fold=fold, units=dict(cohort.units))
    values = fitted.apply(cohort.inputs, train_cases=split.train, units=dict(cohort.units)).values
    return cohort.with_source(source, values), fitted
