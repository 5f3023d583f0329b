"""Which factors go with the label: chi-squared tests on the training cases of a fold."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from fusion_jax.data.tabular.cells import case_rows, check_table, code_cells, column_of
from fusion_jax.data.tabular.columns import Column, Number, check_keys, level_text
from fusion_jax.data.tabular.training_cases import TrainingCases, cases_from_json, unique_ids

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["ChiSquared", "FactorTest", "Selection", "chi_squared", "select", "selection_frequency"]

logger = logging.getLogger("fusion_jax.data.tabular")

Correction = Literal["none", "yates", "fisher", "permutation"]

SMALL_COUNT = 5
"""Expected counts below this make the chi-squared distribution a poor approximation (Cochran 1954)."""


class ChiSquared(NamedTuple):
    """A test of independence of the rows and columns of a table of counts.

    Attributes:
      statistic: chi-squared; with Yates' correction where that was asked for and the table is 2×2.
      df: degrees of freedom.
      p: two-sided p-value.
      expected: counts expected under independence, the shape of the table.
    """

    statistic: float
    df: int
    p: float
    expected: Float[np.ndarray, "r c"]


class FactorTest(NamedTuple):
    """One factor tested against the label.

    Attributes:
      factor: column of the table.
      statistic: chi-squared; 0 where the factor has one level among the training cases.
      df: degrees of freedom.
      p: two-sided p-value.
      n: training cases with a value; the others are left out of this factor's test.
      missing: training cases without one.
      smallest_expected: smallest expected count.
      selected: whether p is below alpha.
    """

    factor: str
    statistic: float
    df: int
    p: float
    n: int
    missing: int
    smallest_expected: float
    selected: bool


def chi_squared(
    counts: Num[np.ndarray, "r c"], correction: Correction = "none", *, resamples: int = 9999, seed: int = 0
) -> ChiSquared:
    r"""Test of independence of a table of counts.

    .. math:: X^2 = \sum_{ij} \frac{(|O_{ij} - E_{ij}| - y)^2}{E_{ij}}, \qquad
              p = \frac{\Gamma(\nu/2, X^2/2)}{\Gamma(\nu/2)}, \qquad \nu = (r-1)(c-1)

    Args:
      counts: levels in rows, classes in columns, shape `(r, c)`, both at least 2, no empty row or column.
      correction: `none` is Pearson's test, y = 0. `yates` moves every count of a 2×2 table by up to 0.5 towards its
        expectation; larger tables have no such correction. `fisher` is the exact test for 2×2 tables and its
        Monte-Carlo form (Freeman and Halton) for larger ones. `permutation` compares Pearson's statistic with that
        of random tables of the same margins.
      resamples: random tables of the Monte-Carlo forms.
      seed: of the random tables.

    Returns:
      Statistic, degrees of freedom, p-value and expected counts.

    Raises:
      ValueError: if counts are negative, fractional or not finite, or a margin is empty.

    Example:
      >>> test = chi_squared(np.array([[71, 35], [31, 30]]))
      >>> round(test.statistic, 3), test.df, round(test.p, 4)
      (4.254, 1, 0.0392)
      >>> round(chi_squared(np.array([[71, 35], [31, 30]]), "yates").p, 4)
      0.0577

    References:
      Wang W. et al. 2020, Table 1: Pearson's test without correction; specs/hcc_fusion.md, section 6.2.
    """
    from scipy import stats
    from scipy.special import gammaincc

    if correction not in get_args(Correction):
        raise ValueError(f"correction is {correction!r}; expected one of {', '.join(map(repr, get_args(Correction)))}.")
    observed = _checked_counts(counts)
    rows, columns = observed.sum(axis=1), observed.sum(axis=0)
    expected = np.outer(rows, columns) / observed.sum()
    df = (observed.shape[0] - 1) * (observed.shape[1] - 1)
    difference = np.abs(observed - expected)
    if correction == "yates" and df == 1:
        difference -= np.minimum(0.5, difference)
    statistic = float(np.sum(difference**2 / expected))
    if correction in ("none", "yates"):
        return ChiSquared(statistic, df, float(gammaincc(df / 2, statistic / 2)), expected)
    whole = observed.astype(np.int64)
    if correction == "fisher" and df == 1:
        return ChiSquared(statistic, df, _p(stats.fisher_exact(whole)), expected)
    method = stats.MonteCarloMethod(n_resamples=resamples, rng=np.random.default_rng([seed]))
    if correction == "fisher":
        return ChiSquared(statistic, df, _p(stats.fisher_exact(whole, method=method)), expected)
    return ChiSquared(statistic, df, _p(stats.chi2_contingency(whole, correction=False, method=method)), expected)


@dataclass(frozen=True)
class Selection:
    """Factors tested on the training cases of a fold.

    Attributes:
      tests: one a factor, in the order declared.
      alpha: factors with a smaller p-value are selected.
      correction: of the tests.
      fitted_on: the training cases, by digest, and the name of the fold; `fitted_on.check(train_cases)` refuses a
        selection that saw other cases.
    """

    tests: tuple[FactorTest, ...]
    alpha: float
    correction: str
    fitted_on: TrainingCases

    @property
    def names(self) -> tuple[str, ...]:
        """The selected factors."""
        return tuple(test.factor for test in self.tests if test.selected)

    def keep(self, columns: Sequence[Column], *, train_cases: Iterable[Any]) -> tuple[Column, ...]:
        """The declarations of selected factors, for `fit` in the same fold.

        Raises:
          ValueError: if the selection was made on other cases than the training cases of this fold, or a column was
            not tested.
        """
        self.fitted_on.check(train_cases, what="this selection of factors")
        tested = {test.factor for test in self.tests}
        if strangers := [column.name for column in columns if column.name not in tested]:
            raise ValueError(f"columns {', '.join(map(repr, strangers))} were not tested. Declare the tested factors.")
        return tuple(column for column in columns if column.name in self.names)

    def table(self) -> "pandas.DataFrame":
        """The tests, one row a factor."""
        import pandas as pd

        return pd.DataFrame(self.tests, columns=list(FactorTest._fields)).set_index("factor")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain text, numbers and lists, ready for `write_json`."""
        return {
            "alpha": self.alpha,
            "correction": self.correction,
            "tests": [test._asdict() for test in self.tests],
            **self.fitted_on.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any, *, where: str = "selection") -> "Selection":
        """The selection that `to_json` described.

        Raises:
          ValueError: if a key is unknown or absent, or a value is not possible.
          TypeError: if a part is no object or list.
        """
        keys = ("alpha", "correction", "tests", *TrainingCases.KEYS)
        value = check_keys(value, keys, keys, where)
        if value["correction"] not in get_args(Correction):
            raise ValueError(f"{where}: correction {value['correction']!r}; expected {get_args(Correction)}.")
        alpha = _checked_alpha(value["alpha"], where)
        if not isinstance(value["tests"], list):
            raise TypeError(f"{where}: tests are {value['tests']!r}; expected a list.")
        fields = FactorTest._fields
        tests = tuple(
            FactorTest(**check_keys(item, fields, fields, f"{where}: tests[{i}]"))
            for i, item in enumerate(value["tests"])
        )
        for test in tests:
            if not isinstance(test.factor, str):
                raise TypeError(f"{where}: factor is {test.factor!r}; expected text.")
            if isinstance(test.p, bool) or not isinstance(test.p, int | float) or test.selected != (test.p < alpha):
                raise ValueError(
                    f"{where}: factor {test.factor!r} has p {test.p!r} and selected {test.selected!r}, which does not "
                    f"go with alpha {alpha}. Select again."
                )
        return cls(tests, alpha, value["correction"], cases_from_json(value, where))


def select(
    columns: Sequence[Column],
    table: "pandas.DataFrame",
    label: Shaped[np.ndarray, "n"] | Sequence[Any],
    train_cases: Iterable[Any],
    *,
    fold: str,
    alpha: float = 0.05,
    correction: Correction = "none",
    patients: Shaped[np.ndarray, "n"] | Sequence[Any] | None = None,
    units: Mapping[str, str] | None = None,
) -> Selection:
    """Test every factor against the label among the training cases of one fold.

    A selection on all cases before they are split sees the test cases; to repeat a paper that did so, hand over the ids
    of all cases, and `keep` will refuse it in any fold.

    Args:
      columns: declarations of factors with levels: `Cutoff`, `Flag`, `Category` or `Ordinal`.
      table: cases in rows, indexed by case id.
      label: class of every row of `table`, such as `cohort.label`; −1 or an empty cell is no label.
      train_cases: ids of the training cases; each needs a label.
      fold: name of the fold or hash of the split.
      alpha: factors with a smaller p-value are selected.
      correction: as in `chi_squared`.
      patients: patient of every row of `table`, such as `cohort.patient_id`. Where patients have several cases (slices,
        visits), each then counts once; counted by case, p-values would be too small.
      units: unit of columns of the table where it is not the declared one.

    Returns:
      The tests and what they select. A factor with one level among the training cases has p = 1. Cases whose factor is
      missing are left out of its test and counted.

    Raises:
      ValueError: if a case, column, label or level is not as expected, by name; if all training cases have one class;
        if the cases of a patient differ in a factor or the label.

    Example:
      >>> import pandas as pd
      >>> from fusion_jax.data.tabular import Cutoff, Flag
      >>> table = pd.DataFrame(
      ...     {"age": [70, 65, 62, 66] * 5 + [40, 45, 50, 55] * 5, "male": [0, 1] * 20},
      ...     index=[f"P{i}" for i in range(40)],
      ... )
      >>> factors = [Cutoff(name="age", at=60, unit="years"), Flag(name="male")]
      >>> chosen = select(factors, table, [0] * 18 + [1] * 22, table.index, fold="all")
      >>> chosen.names, [round(test.p, 3) for test in chosen.tests]
      (('age',), [0.0, 1.0])

    References:
      Wang W. et al. 2020, section on clinical data; specs/hcc_fusion.md, section 6.2.
    """
    columns = tuple(columns)
    alpha = _checked_alpha(alpha, "select")
    check_table(table, columns)
    ids = unique_ids(train_cases, what=f"training cases of fold {fold!r}")
    fitted_on = TrainingCases.of(ids, fold=fold)
    rows = case_rows(table, ids)
    classes, counted = _class_codes(label, table, rows, fold)
    once, patient = _one_row_a_patient(table.index if patients is None else patients, table, rows)
    _check_same(classes, once, patient, table.index[rows], "label")
    if len({column.name for column in columns}) < len(columns):
        raise ValueError("a factor is declared more than once; select among one cut-off or coding for each column.")
    tests = []
    for column in columns:
        if isinstance(column, Number):
            raise ValueError(
                f"column {column.name!r} is a Number, which has no levels to count. Declare it as a Cutoff, or leave "
                "it out of the selection."
            )
        cells = column_of(table, column.name).iloc[rows]
        coded = code_cells(column, cells, (units or {}).get(column.name, ""))
        _check_same(coded.codes, once, patient, table.index[rows], f"factor {column.name!r}")
        codes = coded.codes[once]
        tests.append(_test_factor(column.name, codes, len(coded.levels), classes[once], counted, alpha, correction))
    return Selection(tuple(tests), alpha, correction, fitted_on)


def selection_frequency(selections: Sequence[Selection]) -> "pandas.DataFrame":
    """How often each factor is selected over folds.

    Returns:
      One row a factor, most often selected first, with `selected` and `folds` (counts), `share`, and `p_median`,
      `p_min`, `p_max` over the folds.

    Raises:
      ValueError: if there is no selection, or they differ in alpha or correction.
    """
    import pandas as pd

    settings = {(selection.alpha, selection.correction) for selection in selections}
    if len(settings) != 1:
        raise ValueError(
            f"{len(selections)} selections with the settings (alpha, correction) {sorted(settings)}; "
            "expected at least one selection, all made alike."
        )
    tests = pd.DataFrame([test._asdict() for selection in selections for test in selection.tests])
    found = tests.groupby("factor", sort=False).agg(
        selected=("selected", "sum"),
        folds=("selected", "size"),
        share=("selected", "mean"),
        p_median=("p", "median"),
        p_min=("p", "min"),
        p_max=("p", "max"),
    )
    return found.sort_values(["share", "p_median"], ascending=[False, True], kind="stable")


def _p(result: Any) -> float:
    return float(result.pvalue)


def _checked_counts(counts: np.ndarray) -> Float[np.ndarray, "r c"]:
    observed = np.asarray(counts, dtype=np.float64)
    shape = "×".join(map(str, observed.shape))
    if observed.ndim != 2 or min(observed.shape) < 2:
        raise ValueError(f"counts have shape {shape}; expected at least two levels in rows and two classes in columns.")
    if not (np.isfinite(observed).all() and (observed >= 0).all() and (observed == np.rint(observed)).all()):
        raise ValueError(f"counts are {observed.tolist()}; expected whole numbers from 0.")
    for axis, name in ((1, "row"), (0, "column")):
        empty = np.flatnonzero(observed.sum(axis=axis) == 0)
        if len(empty):
            raise ValueError(f"{name} {int(empty[0])} of the counts is all zero; leave it out, nothing was observed.")
    return observed


def _checked_alpha(alpha: Any, where: str) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1:
        raise ValueError(f"{where}: alpha is {alpha!r}; expected a number above 0 and up to 1.")
    return float(alpha)


def _class_codes(
    label: Any, table: "pandas.DataFrame", rows: Int[np.ndarray, "m"], fold: str
) -> tuple[Int[np.ndarray, "m"], int]:
    """Codes of the training cases' classes and how many classes there are."""
    import pandas as pd

    if len(label) != len(table):
        raise ValueError(f"{len(label)} labels for {len(table)} rows of the table; expected one a row.")
    if isinstance(label, pd.Series) and not label.index.equals(table.index):
        raise ValueError(
            f"the labels are a Series whose index starts {list(label.index[:2])}, the table's starts "
            f"{list(table.index[:2])}; expected the same cases in the same order. Use `label.loc[table.index]`."
        )
    chosen = pd.Series(np.asarray(label)[rows])
    chosen = chosen.map(level_text, na_action="ignore")
    absent = chosen.isna() | chosen.str.strip().isin(["-1", ""])
    if absent.any():
        case = table.index[rows[int(absent.to_numpy().argmax())]]
        raise ValueError(
            f"training case {str(case)!r} has no label, −1 or an empty cell ({int(absent.sum())} such cases in fold "
            f"{fold!r}); expected a class for each. Take them out of the training cases."
        )
    codes, names = pd.factorize(chosen, sort=True)
    if len(names) < 2:
        raise ValueError(
            f"fold {fold!r}: all {len(rows)} training cases have the label {names[0]!r}; expected at least two classes."
        )
    return codes.astype(np.int64), len(names)


def _one_row_a_patient(
    patients: Any, table: "pandas.DataFrame", rows: Int[np.ndarray, "m"]
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "m"]]:
    """First training row of every patient, and the patient of every training row."""
    if len(patients) != len(table):
        raise ValueError(f"{len(patients)} patients for {len(table)} rows of the table; expected one a row.")
    _, once, patient = np.unique(np.asarray(patients)[rows].astype(str), return_index=True, return_inverse=True)
    return once, patient


def _check_same(
    codes: Int[np.ndarray, "m"], once: Int[np.ndarray, "p"], patient: Int[np.ndarray, "m"], cases: Any, what: str
) -> None:
    """All cases of a patient agree."""
    other = codes != codes[once][patient]
    if other.any():
        row = int(other.argmax())
        first = str(cases[once[patient[row]]])
        raise ValueError(
            f"{what}: cases {first!r} and {str(cases[row])!r} of one patient differ; expected one value a patient. "
            "Fix the table, or reduce it to one case a patient."
        )


def _test_factor(
    factor: str,
    codes: Int[np.ndarray, "m"],
    levels: int,
    classes: Int[np.ndarray, "m"],
    counted: int,
    alpha: float,
    correction: Correction,
) -> FactorTest:
    there = codes >= 0
    n, missing = int(there.sum()), int((~there).sum())
    counts = np.bincount(codes[there] * counted + classes[there], minlength=levels * counted)
    counts = counts.reshape(-1, counted)
    counts = counts[counts.sum(axis=1) > 0]
    counts = counts[:, counts.sum(axis=0) > 0]
    if min(counts.shape) < 2:
        logger.warning(
            "factor %r: one level or one class among %d training cases with a value; not tested, p = 1", factor, n
        )
        return FactorTest(factor, 0.0, 0, 1.0, n, missing, float(n), selected=False)
    test = chi_squared(counts, correction)
    smallest = float(test.expected.min())
    if smallest < SMALL_COUNT and correction in ("none", "yates"):
        logger.warning(
            "factor %r: the smallest expected count is %.2f and %d of %d are below %d (n = %d), so that the "
            "chi-squared p-value %.3g is rough; correction='fisher' or 'permutation' is not",
            factor,
            smallest,
            int((test.expected < SMALL_COUNT).sum()),
            test.expected.size,
            SMALL_COUNT,
            n,
            test.p,
        )
    return FactorTest(factor, test.statistic, test.df, test.p, n, missing, smallest, selected=test.p < alpha)
