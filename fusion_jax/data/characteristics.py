r"""Who is in a cohort: the table that opens the results of a study.

Categories are counted, numbers summarised, by split, by outcome or by any other column side by side. Balance between
groups is given as standardised mean differences, which do not grow with the number of cases as p-values do.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.expressions import Values, close_names, column_values, listed
from fusion_jax.records import write_csv, write_text

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "Characteristics",
    "Comparison",
    "Difference",
    "Group",
    "Row",
    "characteristics",
    "standardised_difference",
    "standardised_difference_of_levels",
]

Kind = Literal["category", "number"]
Statistic = Literal["mean", "median"]
Test = Literal["chi2", "fisher", "auto"]

FEW_LEVELS = 5  # whole numbers with no more different values are taken for categories: stage, density, performance
CASES_A_LEVEL = 3  # and with so many cases for each: five patients of five ages are no categories
MOST_LEVELS = 50  # beyond, a column is an identifier or free text and may tell who somebody is
SMALL_EXPECTED = 5  # below this expected count the chi-squared distribution is a poor approximation
MONTE_CARLO_TABLES = 99_999

OVERALL = "overall"
INDENT = "\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}"


class Group(NamedTuple):
    """Cases with one value of a grouping column.

    Attributes:
      by: the column; empty for all cases together.
      name: the value.
      cases: how many.
    """

    by: str
    name: str
    cases: int


class Row(NamedTuple):
    """One variable, or one level of a category, in one group. What does not apply is None.

    Attributes:
      variable, unit, kind: as in the table.
      level: of a category.
      by, group: as in `Group`.
      known, missing: cases with and without a value of this variable, in this group.
      n, percent: cases of a level, and percent of the known.
      mean, sd, median, q1, q3, minimum, maximum: of a number; sd with n − 1.
    """

    variable: str
    unit: str
    kind: Kind
    level: str | None
    by: str
    group: str
    known: int
    missing: int
    n: int | None = None
    percent: float | None = None
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    minimum: float | None = None
    maximum: float | None = None


class Difference(NamedTuple):
    """Standardised difference of a variable between two groups; None where it is not defined.

    Attributes:
      variable, by: what is compared between the groups of which column.
      first, second: the groups; a number's difference is positive where the first has the larger mean.
      smd: see `standardised_difference`.
    """

    variable: str
    by: str
    first: str
    second: str
    smd: float | None


class Comparison(NamedTuple):
    """Test of one variable over all groups of a column.

    Attributes:
      variable, by: what is compared between the groups of which column.
      test: its name.
      statistic, freedom, p: the result; None where there is none.
      note: why there is none, or why to doubt it.
    """

    variable: str
    by: str
    test: str
    statistic: float | None
    freedom: float | None
    p: float | None
    note: str = ""


class Characteristics(NamedTuple):
    """Characteristics of a cohort, at full precision, with writers.

    Attributes:
      groups: all cases first, then the groups of every column in order.
      rows: variables in the given order; levels and groups within.
      differences, comparisons: between groups.
      statistic: how each number is shown.
      notes: what a reader has to know.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    comparisons: tuple[Comparison, ...]
    statistic: Mapping[str, Statistic]
    notes: tuple[str, ...]

    def largest_difference(self, variable: str, by: str) -> float | None:
        """Largest absolute standardised difference between two groups of a column; None where none is defined."""
        found = [abs(d.smd) for d in self.differences if (d.variable, d.by) == (variable, by) and d.smd is not None]
        return max(found, default=None)

    def display(self) -> tuple[list[str], list[list[str]]]:
        """Heading and rows as they are printed; levels of a category are indented by no-break spaces.

        Example:
          >>> import pandas as pd
          >>> characteristics(pd.DataFrame({"age": [51.0, 63.0]}), ["age"]).display()[1]
          [['age, mean ± SD', '2', '0', '57.0 ± 8.5']]
        """
        heading, lines = _display(self)
        return heading, [[INDENT * line.indented + line.cells[0], *line.cells[1:]] for line in lines]

    def to_markdown(self) -> str:
        """As a Markdown table with its notes below.

        Example:
          >>> import pandas as pd
          >>> sarcoma = pd.DataFrame({"grade": ["Low", "High", "High", None], "metastases": [0, 0, 1, 1]})
          >>> print(characteristics(sarcoma, ["grade"], by="metastases").to_markdown().splitlines()[2])
          | grade, n (%) | 3 | 1 |  |  |  | 1.414 |
        """
        heading, lines = _display(self)
        cells = [[_markdown(cell) for cell in row] for row in (heading, *(line.cells for line in lines))]
        for row, line in zip(cells[1:], lines, strict=True):
            row[0] = ("&nbsp;&nbsp;" if line.indented else "") + row[0]
        ruler = [":---", *["---:"] * (len(heading) - 1)]
        table = ["| " + " | ".join(row) + " |" for row in (cells[0], ruler, *cells[1:])]
        return "\n".join([*table, "", *(f"{_markdown(note)}\n" for note in self.notes)]).rstrip("\n") + "\n"

    def to_latex(self) -> str:
        r"""As a LaTeX `tabular` with booktabs rules; `\usepackage{booktabs}` in the preamble.

        Example:
          >>> import pandas as pd
          >>> print(characteristics(pd.DataFrame({"T_stage": ["1 & 2", "3"]}), ["T_stage"]).to_latex().splitlines()[4])
          T\_stage, n (\%) & 2 & 0 &  \\
        """
        heading, lines = _display(self)
        body = [r"\begin{tabular}{l" + "r" * (len(heading) - 1) + "}", r"\toprule"]
        body += [" & ".join(map(_latex, heading)) + r" \\", r"\midrule"]
        for line in lines:
            indent = r"\quad " if line.indented else ""
            body.append(indent + " & ".join(map(_latex, line.cells)) + r" \\")
        body += [r"\bottomrule", r"\end{tabular}"]
        body += [r"\par\smallskip\footnotesize " + _latex(note) for note in self.notes]
        return "\n".join(body) + "\n"

    def write(self, folder: str | Path, *, name: str = "characteristics") -> tuple[Path, ...]:
        """Write CSV at full precision (values and comparisons), Markdown and LaTeX.

        Args:
          folder: made if it is not there.
          name: of the files before their suffix.

        Returns:
          Paths of `<name>.csv`, `<name>_comparisons.csv`, `<name>.md` and `<name>.tex`.

        Example:
          >>> import pandas as pd, tempfile
          >>> age = pd.DataFrame({"age": [51.0, 63.0]})
          >>> [p.name for p in characteristics(age, ["age"]).write(tempfile.mkdtemp(), name="table_1")]
          ['table_1.csv', 'table_1_comparisons.csv', 'table_1.md', 'table_1.tex']
        """
        folder = Path(folder)
        ends = (".csv", "_comparisons.csv", ".md", ".tex")
        paths = tuple(folder / f"{name}{end}" for end in ends)
        write_csv(paths[0], {field: [getattr(row, field) for row in self.rows] for field in Row._fields})
        compared: dict[str, list[Any]] = {
            key: [] for key in ("variable", "by", "first", "second", "smd", "test", "statistic", "freedom", "p", "note")
        }
        for item in (*self.differences, *self.comparisons):
            for key, column in compared.items():
                column.append(getattr(item, key, None))
        write_csv(paths[1], compared)
        write_text(paths[2], self.to_markdown())
        write_text(paths[3], self.to_latex())
        return paths


def characteristics(
    table: "pandas.DataFrame",
    columns: Sequence[str],
    *,
    by: str | Sequence[str] = (),
    kinds: Mapping[str, Kind] | None = None,
    statistic: Statistic | Mapping[str, Statistic] = "mean",
    units: Mapping[str, str] | None = None,
    test: Test | None = None,
    patient: str | None = None,
) -> Characteristics:
    """Characteristics of a cohort: overall and by the groups of other columns.

    Texts, truth values and whole numbers with few different values are categories; the levels of a pandas categorical
    keep their order, others are sorted. Percentages, means and differences are of known values; what is missing is
    counted. P-values compare all groups of a column: for categories by `test`; for numbers by Welch's t-test
    (Alexander and Govern's for more than two groups) where the mean is shown, by Mann and Whitney's (Kruskal and
    Wallis's) where the median is.

    Args:
      table: one row a case.
      columns: variables, in the order they are to appear.
      by: column or columns whose values form groups, such as split and outcome; text groups stand in the order in which
        they appear.
      kinds: "category" or "number" where looking at the column is not enough.
      statistic: "mean" for mean ± standard deviation, "median" for median and quartiles; for all, or by column.
      units: column to its unit.
      test: for categories "chi2", Pearson's without Yates's correction; "fisher", exact for 2 × 2, else by Monte Carlo;
        "auto", Fisher's where an expected count is below 5. No p-values without it.
      patient: column with the patient of every case. Several cases of a patient are then pointed out in the notes.

    Returns:
      All numbers with n and missing, differences and p-values, with writers.

    Raises:
      ValueError: if a column is absent, appears twice, holds dates or something to identify people by, or if a number
        is wanted of texts.

    Example:
      >>> import pandas as pd
      >>> cohort = pd.DataFrame({"age": [50.0, 60.0, 70.0, None], "died": [0, 0, 1, 1]})
      >>> found = characteristics(cohort, ["age"], by="died", units={"age": "years"})
      >>> [(row.group, row.known, row.missing, row.mean) for row in found.rows]
      [('overall', 3, 1, 60.0), ('0', 2, 0, 55.0), ('1', 1, 1, 70.0)]

    References:
      Austin 2009, doi:10.1002/sim.3697 (standardised differences); Yang & Dalton 2012 (of categories).
    """
    by = [by] if isinstance(by, str) else list(by)
    _check_arguments(table, columns, by, kinds or {}, statistic, test, patient)
    n = len(table)
    groupings = {column: _levels_of(table, column, sort=False) for column in by}
    groups = [Group("", OVERALL, n)]
    groups += [Group(column, name, int(m.sum())) for column, found in groupings.items() for name, m in found.items()]
    members = [np.ones(n, bool), *(m for found in groupings.values() for m in found.values())]
    rows, differences, comparisons = [], [], []
    shown: dict[str, Statistic] = {}
    for column in columns:
        series: Any = table[column]
        values = column_values(series, f"column {column!r}")
        seen = _kind(values, series)
        kind = (kinds or {}).get(column, seen)
        unit = (units or {}).get(column, "")
        if kind == "number":
            shown[column] = statistic if isinstance(statistic, str) else statistic.get(column, "mean")
            numbers = _numbers(values)
            rows += _number_rows(column, unit, numbers, groups, members)
            levels = {}
        else:
            numbers = np.empty(0)
            levels = _levels_of(table, column, sort=True)
            rows += _level_rows(column, unit, levels, groups, members)
        for grouping, found in groupings.items():
            samples = {name: numbers[m] for name, m in found.items()} if kind == "number" else {}
            samples = {name: sample[np.isfinite(sample)] for name, sample in samples.items()}
            counts = np.array([[int((m & level).sum()) for m in found.values()] for level in levels.values()])
            for i, j in itertools.combinations(range(len(found)), 2):
                first, second = list(found)[i], list(found)[j]
                if kind == "number":
                    smd = standardised_difference(samples[first], samples[second])
                else:
                    smd = standardised_difference_of_levels(counts[:, i], counts[:, j])
                differences.append(Difference(column, grouping, first, second, None if math.isnan(smd) else smd))
            if test is not None:
                tested = (
                    _compare_numbers(list(samples.values()), shown[column])
                    if kind == "number"
                    else _compare_levels(counts, test)
                )
                comparisons.append(Comparison(column, grouping, *tested))
    notes = _notes(table, by, groupings, shown, kinds_shown=rows, comparisons=comparisons, patient=patient)
    return Characteristics(tuple(groups), tuple(rows), tuple(differences), tuple(comparisons), shown, notes)


def standardised_difference(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "m"]) -> float:
    r"""Standardised mean difference of a number.

    .. math:: d = \frac{\bar x_1 - \bar x_2}{\sqrt{(s_1^2 + s_2^2) / 2}}

    Args:
      first, second: known values of two groups, any unit.

    Returns:
      The difference in standard deviations (n − 1); infinite if two constants differ, NaN if a group has fewer than two
      values.

    Example:
      >>> float(standardised_difference(np.array([1.0, 3.0]), np.array([4.0, 6.0])))
      -2.1213...

    References:
      Austin 2009, doi:10.1002/sim.3697.
    """
    if min(first.size, second.size) < 2:
        return math.nan
    (mean, sd), (other_mean, other_sd) = map(_mean_and_sd, (first, second))
    difference = mean - other_mean
    pooled = math.sqrt((sd**2 + other_sd**2) / 2)
    if pooled == 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / pooled


def standardised_difference_of_levels(first: Int[np.ndarray, "k"], second: Int[np.ndarray, "k"]) -> float:
    r"""Standardised difference of a category with any number of levels.

    .. math:: d = \sqrt{(p - q)^\top S^{-1} (p - q)}, \quad
              S_{kl} = \frac{\delta_{kl} (p_k + q_k) - p_k p_l - q_k q_l}{2}

    with the proportions p and q of all levels but one; which one is left out does not matter.

    Args:
      first, second: counts of every level in two groups.

    Returns:
      The difference, 0 or more; infinite if a level decides which group a case is in, NaN if a group is empty.

    Example:
      >>> float(standardised_difference_of_levels(np.array([30, 70]), np.array([50, 50])))
      0.4170...

    References:
      Yang & Dalton 2012, "A unified approach to measuring the effect size between two groups using SAS", SAS Global
      Forum, paper 335.
    """
    if not first.sum() or not second.sum():
        return math.nan
    used = (first + second) > 0
    p, q = first[used] / first.sum(), second[used] / second.sum()
    if p.size == 1:
        return 0.0
    difference = (p - q)[1:]
    pooled = (np.diag(p + q) - np.outer(p, p) - np.outer(q, q))[1:, 1:] / 2
    # Singular where groups share no level at all; a pseudo-inverse would call them equal.
    scale, axes = np.linalg.eigh(pooled)
    along = axes.T @ difference
    flat = scale < 1e-12
    if (np.abs(along[flat]) > 1e-9).any():
        return math.inf
    return float(np.sqrt(np.sum(np.square(along[~flat]) / scale[~flat])))


def _mean_and_sd(known: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Mean and standard deviation of two values or more.

    Of equal values exactly: in floating point, the mean of seven times 0.1 is not 0.1, and beside ten times 0.1 it had
    a standardised difference of 1.3.
    """
    if np.ptp(known) == 0:
        return float(known[0]), 0.0
    return float(known.mean()), float(known.std(ddof=1))


# Columns


def _check_arguments(
    table: Any,
    columns: Sequence[str],
    by: Sequence[str],
    kinds: Mapping[str, Any],
    statistic: Any,
    test: Any,
    patient: str | None,
) -> None:
    named = [*columns, *by, *([] if patient is None else [patient])]
    for column in named:
        if column not in table.columns:
            raise ValueError(
                f"characteristics: no column {column!r}.{close_names(column, table.columns)} The table has "
                f"{listed(table.columns, at_most=30)}."
            )
        if list(table.columns).count(column) > 1:
            raise ValueError(f"characteristics: the table has several columns {column!r}. Rename all but one.")
    twice = [column for column in columns if list(columns).count(column) > 1]
    if twice or not columns:
        raise ValueError(f"characteristics: columns are {list(columns)}; expected at least one, and each once.")
    for what, given, allowed in (
        ("kinds", kinds, Kind),
        ("statistic", {} if isinstance(statistic, str) else statistic, Statistic),
    ):
        for column, value in given.items():
            if column not in columns or value not in get_args(allowed):
                raise ValueError(
                    f"characteristics: {what} has {column!r}: {value!r}; expected one of the columns"
                    f"{close_names(column, columns) if column not in columns else ''} with one of "
                    f"{listed(get_args(allowed))}."
                )
    if isinstance(statistic, str) and statistic not in get_args(Statistic):
        raise ValueError(f"characteristics: statistic is {statistic!r}; expected one of {listed(get_args(Statistic))}.")
    if test is not None and test not in get_args(Test):
        raise ValueError(f"characteristics: test is {test!r}; expected None or one of {listed(get_args(Test))}.")


def _kind(values: Values, series: Any) -> Kind:
    if values.kind == "date":
        raise ValueError(
            f"characteristics: {values.name} holds dates. Show a time span instead, such as the age at the index date "
            "(years_between in a derived column)."
        )
    if values.kind == "number" and np.isinf(values.data).any():
        raise ValueError(f"characteristics: {values.name} holds an infinite number. Correct the cell, or empty it.")
    if values.kind in ("text", "truth") or series.dtype.name == "category":
        return "category"
    known = values.data[~values.missing]
    if values.kind == "nothing":
        return "number"
    different = np.unique(known)
    whole = bool((different == np.round(different)).all())
    flags = whole and set(different) <= {0.0, 1.0}
    few = different.size <= FEW_LEVELS and known.size >= CASES_A_LEVEL * different.size
    return "category" if flags or (whole and few) else "number"


def _numbers(values: Values) -> Float[np.ndarray, "n"]:
    if values.kind in ("number", "truth", "nothing"):
        data = np.zeros(len(values.missing)) if values.kind == "nothing" else values.data.astype(np.float64)
        return np.where(values.missing, np.nan, data)
    example = next(cell for cell, missing in zip(values.data, values.missing, strict=True) if not missing)
    raise ValueError(
        f"characteristics: {values.name} is to be a number and holds {str(example)!r}. Correct the cells, or call it a "
        "category."
    )


def _levels_of(table: Any, column: str, *, sort: bool) -> dict[str, np.ndarray]:
    """Members of every level by its name, in order."""
    series = table[column]
    values = column_values(series, f"column {column!r}")
    if series.dtype.name == "category":
        order = list(series.cat.categories)
        cells = series.to_numpy(object)
    else:
        cells = values.data
        present = [cell for cell, missing in zip(cells.tolist(), values.missing, strict=True) if not missing]
        order = sorted(set(present)) if sort or values.kind != "text" else list(dict.fromkeys(present))
    if len(order) > MOST_LEVELS:
        raise ValueError(
            f"characteristics: {values.name} has {len(order)} different values; at most {MOST_LEVELS} are shown. It "
            "may be an identifier or free text: leave it out, or call it a number under `kinds`."
        )
    return {_level_name(level): np.asarray(cells == level, bool) & ~values.missing for level in order}


def _level_name(level: Any) -> str:
    if isinstance(level, bool | np.bool_):
        return "yes" if level else "no"
    return f"{level:g}" if isinstance(level, float) and level.is_integer() and abs(level) < 1e6 else str(level)


# Statistics


def _number_rows(
    column: str, unit: str, numbers: Float[np.ndarray, "n"], groups: Sequence[Group], members: Sequence[np.ndarray]
) -> list[Row]:
    rows = []
    for group, member in zip(groups, members, strict=True):
        known = numbers[member & np.isfinite(numbers)]
        row = Row(column, unit, "number", None, group.by, group.name, known.size, group.cases - known.size)
        if known.size:
            q1, median, q3 = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
            mean, sd = _mean_and_sd(known)
            row = row._replace(
                mean=mean,
                sd=sd if known.size > 1 else None,
                median=median,
                q1=q1,
                q3=q3,
                minimum=float(known.min()),
                maximum=float(known.max()),
            )
        rows.append(row)
    return rows


def _level_rows(
    column: str,
    unit: str,
    levels: Mapping[str, np.ndarray],
    groups: Sequence[Group],
    members: Sequence[np.ndarray],
) -> list[Row]:
    rows = []
    for level, inside in levels.items():
        for group, member in zip(groups, members, strict=True):
            known = int(sum((member & one).sum() for one in levels.values()))
            count = int((member & inside).sum())
            percent = 100 * count / known if known else None
            rows.append(
                Row(column, unit, "category", level, group.by, group.name, known, group.cases - known, count, percent)
            )
    return rows


def _compare_numbers(samples: Sequence[np.ndarray], statistic: Statistic) -> tuple[str, Any, Any, Any, str]:
    from scipy import stats

    two = len(samples) == 2
    if statistic == "mean":
        name = "Welch's t-test" if two else "Alexander–Govern test"
    else:
        name = "Mann–Whitney U test" if two else "Kruskal–Wallis test"
    if len(samples) < 2 or min(sample.size for sample in samples) < 2:
        return name, None, None, None, "a group has fewer than two values"
    if all(np.ptp(sample) == 0 for sample in samples) or (
        statistic == "mean" and not two and any(np.ptp(sample) == 0 for sample in samples)
    ):
        return name, None, None, None, "a group has only one value"
    if statistic == "mean":
        with warnings.catch_warnings():
            # SciPy doubts the moments of equal values; Welch's test is defined where one group has them.
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            found: Any = (
                stats.ttest_ind(samples[0], samples[1], equal_var=False) if two else stats.alexandergovern(*samples)
            )
    else:
        found = stats.mannwhitneyu(samples[0], samples[1]) if two else stats.kruskal(*samples)
    freedom = float(found.df) if two and statistic == "mean" else None if two else float(len(samples) - 1)
    return name, float(found.statistic), freedom, float(found.pvalue), ""


def _compare_levels(counts: Int[np.ndarray, "k g"], test: Test) -> tuple[str, Any, Any, Any, str]:
    """Test of independence of level and group, on levels and groups that have cases."""
    from scipy import stats

    name = "Fisher's exact test" if test == "fisher" else "chi-squared test"
    if counts.size:
        counts = counts[counts.sum(axis=1) > 0]
        counts = counts[:, counts.sum(axis=0) > 0]
    if counts.ndim != 2 or min(counts.shape) < 2:
        return name, None, None, None, "fewer than two levels or groups"
    found: Any = stats.chi2_contingency(counts, correction=False)
    smallest = float(found.expected_freq.min())
    if test == "chi2" or (test == "auto" and smallest >= SMALL_EXPECTED):
        note = f"smallest expected count {smallest:.2f}" if smallest < SMALL_EXPECTED else ""
        return "chi-squared test", float(found.statistic), float(found.dof), float(found.pvalue), note
    if counts.shape == (2, 2):
        found = stats.fisher_exact(counts)
        return "Fisher's exact test", None, None, float(found.pvalue), ""
    method = stats.MonteCarloMethod(n_resamples=MONTE_CARLO_TABLES, rng=np.random.default_rng(0))
    found = stats.fisher_exact(counts, method=method)
    return "Fisher's exact test", None, None, float(found.pvalue), f"by {MONTE_CARLO_TABLES:,} random tables"


def _notes(
    table: Any,
    by: Sequence[str],
    groupings: Mapping[str, Mapping[str, np.ndarray]],
    shown: Mapping[str, Statistic],
    *,
    kinds_shown: Sequence[Row],
    comparisons: Sequence[Comparison],
    patient: str | None,
) -> tuple[str, ...]:
    notes = []
    if any(row.kind == "category" for row in kinds_shown):
        notes.append("Counts with percent of the known.")
    if "mean" in shown.values():
        notes.append("Mean ± standard deviation.")
    if "median" in shown.values():
        notes.append("Median [first, third quartile].")
    if by:
        notes.append(
            "SMD: standardised mean difference, the largest absolute value between two groups; missing values left out"
            + ("; of means also where medians are shown." if "median" in shown.values() else ".")
        )
    for name in dict.fromkeys(c.test for c in comparisons):
        without_correction = " without continuity correction" if name.startswith("chi") else ""
        notes.append(f"p by {name}{without_correction}: {_compared(comparisons, 'test', name, by)}.")
    remarks = dict.fromkeys(c.note for c in comparisons if c.note)
    notes += [f"{note[0].upper()}{note[1:]}: {_compared(comparisons, 'note', note, by)}." for note in remarks]
    for column, found in groupings.items():
        without = len(table) - int(sum(m.sum() for m in found.values()))
        if without:
            notes.append(f"Without {column}, and so in no group of it: {without:,}.")
    if patient is not None:
        patients = int(table[patient].nunique())
        if patients < len(table):
            independent = "; p-values take cases for independent and are too small" if comparisons else ""
            notes.append(f"n counts {len(table):,} cases of {patients:,} patients{independent}.")
        else:
            notes.append(f"n counts patients; {patients:,} in all.")
    return tuple(notes)


def _compared(comparisons: Sequence[Comparison], field: str, value: str, by: Sequence[str]) -> str:
    """Variables of these comparisons, with their groups where it is not all groups."""
    found: dict[str, list[str]] = {}
    for comparison in comparisons:
        if getattr(comparison, field) == value:
            found.setdefault(comparison.variable, []).append(comparison.by)
    return ", ".join(v if len(groups) == len(by) else f"{v} by {' and '.join(groups)}" for v, groups in found.items())


# Display


class _Line(NamedTuple):
    cells: list[str]
    indented: bool


def _display(found: Characteristics) -> tuple[list[str], list[_Line]]:
    """Heading and lines of the printed table."""
    by = list(dict.fromkeys(group.by for group in found.groups if group.by))
    tested = bool(found.comparisons)
    heading = ["Characteristic", "n", "Missing"]
    for column in ("", *by):
        for group in found.groups:
            if group.by == column:
                name = f"{column}: {group.name}" if column else "Overall"
                heading.append(f"{name} (n = {group.cases:,})")
        if column:
            heading += ["SMD", *(["p"] if tested else [])]
    lines: list[_Line] = []
    for variable in dict.fromkeys(row.variable for row in found.rows):
        lines += _variable_lines(found, variable, by, tested)
    return heading, lines


def _variable_lines(found: Characteristics, variable: str, by: Sequence[str], tested: bool) -> list[_Line]:
    rows = [row for row in found.rows if row.variable == variable]
    overall = rows[0]
    title = variable + (f", {overall.unit}" if overall.unit else "")
    levels = list(dict.fromkeys(row.level for row in rows if row.level is not None))
    if overall.kind == "number":
        title += ", mean ± SD" if found.statistic[variable] == "mean" else ", median [IQR]"
    else:
        title += ", n (%)"

    def line(name: str, cells: Mapping[tuple[str, str], str], *, compared: bool, indented: bool) -> _Line:
        parts = [name]
        parts += [f"{overall.known:,}", f"{overall.missing:,}"] if compared else ["", ""]
        for column in ("", *by):
            parts += [cells.get((group.by, group.name), "") for group in found.groups if group.by == column]
            if column:
                smd = found.largest_difference(variable, column)
                parts.append(_number(smd, 3) if compared else "")
            if column and tested:
                p = next(c.p for c in found.comparisons if (c.variable, c.by) == (variable, column))
                parts.append(_p_value(p) if compared else "")
        return _Line(parts, indented)

    if overall.kind == "number":
        decimals = _decimals(overall)
        texts = {(row.by, row.group): _summary(row, found.statistic[variable], decimals) for row in rows}
        lines = [line(title, texts, compared=True, indented=False)]
    elif set(levels) in ({"0", "1"}, {"no", "yes"}):
        # Both levels of a flag say the same thing twice.
        flag = "1" if set(levels) <= {"0", "1"} else "yes"
        title = title.replace(", n (%)", f" = {flag}, n (%)")
        flagged = [row for row in rows if row.level == flag]
        texts = {(row.by, row.group): _counted(row) for row in flagged}
        lines = [line(title, texts, compared=True, indented=False)]
    else:
        lines = [line(title, {}, compared=True, indented=False)]
        for level in levels:
            texts = {(row.by, row.group): _counted(row) for row in rows if row.level == level}
            lines.append(line(level, texts, compared=False, indented=True))
    if overall.missing:
        cases = {(group.by, group.name): group.cases for group in found.groups}
        texts = {}
        for row in rows:
            of = cases[row.by, row.group]
            texts[row.by, row.group] = f"{row.missing:,} ({100 * row.missing / of:.1f})" if of else "0"
        lines.append(line("missing, n (%)", texts, compared=False, indented=True))
    return lines


def _decimals(row: Row) -> int:
    """Decimals that leave two digits of the spread, so that all groups of a variable agree."""
    spread = row.sd or ((row.q3 or 0) - (row.q1 or 0))
    if not spread:
        return 1
    digits = 1 - math.floor(math.log10(spread))
    return max(digits, 1 if spread < 100 else 0)


def _summary(row: Row, statistic: Statistic, decimals: int) -> str:
    if row.mean is None or row.median is None or row.q1 is None or row.q3 is None:
        return "–"
    if statistic == "mean":
        sd = "–" if row.sd is None else _number(row.sd, decimals)
        return f"{_number(row.mean, decimals)} ± {sd}"
    return f"{_number(row.median, decimals)} [{_number(row.q1, decimals)}, {_number(row.q3, decimals)}]"


def _counted(row: Row) -> str:
    return f"{row.n:,}" if row.percent is None else f"{row.n:,} ({row.percent:.1f})"


def _number(value: float | None, decimals: int) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{decimals}f}".replace("-", "−")


def _p_value(p: float | None) -> str:
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


MARKDOWN = {
    "\\": "&#92;",  # before a pipe it would undo the escape
    "&": "&amp;",
    "<": "&lt;",
    "|": r"\|",
    "*": r"\*",
    "`": r"\`",
    "~": r"\~",
    "\n": " ",
    "\r": " ",
}


def _markdown(text: str) -> str:
    # A bracket alone is no link, so that [IQR] stays as it is.
    return text.translate(str.maketrans(MARKDOWN)).replace("](", r"]\(")


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break before
    "]": "{]}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "²": "$^2$",
    "³": "$^3$",
    "°": r"$^{\circ}$",
    "|": "$|$",
    "\n": " ",
    "\r": " ",
    # Marker names: α-fetoprotein, β₂-microglobulin, γ-GT.
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "₂": "$_2$",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
