"""Findings about what gives the label away: inputs, gaps, ids, order, file names; sites and formats that go with it.

Everything is asked of patients, one row each, so that several images of one do not count as evidence.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.integrity.findings import Finding, Severity
from fusion_jax.data.integrity.pixels import ImageFacts
from fusion_jax.wording import listed

__all__ = ["area_under_curve", "check_confounding", "check_leaks", "cramers_v", "left_out_rates"]

TELLS = 0.98
"""Area under the ROC curve from which a single column is said to give the label away."""

STRONG = 0.3
"""Cramér's V from which site or format are said to go with the label."""

LEVEL = 0.01
"""Of the p-values, divided by the number of columns asked."""


class _Target(NamedTuple):
    """A label of one row a patient.

    Attributes:
      column: the label.
      rows: first row of every patient with a label, in the order of the cohort.
      codes: classes of these rows.
      classes: their names.
    """

    column: str
    rows: Int[np.ndarray, "p"]
    codes: Int[np.ndarray, "p"]
    classes: tuple[str, ...]


def _targets(cohort: Cohort) -> Iterator[_Target]:
    first: dict[str, int] = {}
    for row, patient in enumerate(cohort.patient_id.tolist()):
        first.setdefault(patient, row)
    rows = np.array(list(first.values()))
    for column in (*cohort.columns("label"), *cohort.columns("event")):
        if cohort.role(column) == "label":
            codes, classes = cohort.codes(column)
        else:
            cells: Any = cohort.table[column]
            codes, classes = np.where(cells == 1, 1, np.where(cells == 0, 0, -1)).astype(np.int32), ("0", "1")
        known = rows[codes[rows] >= 0]
        if len(np.unique(codes[known])) > 1 and len(classes) <= 20:
            yield _Target(column, known, codes[known], classes)


def area_under_curve(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> tuple[float, float]:
    r"""Area under the ROC curve, and the p-value of the Mann-Whitney test that it is 1/2.

    .. math:: A = \frac{1}{n_1 n_0} \sum_{i: y_i = 1} \sum_{j: y_j = 0} [s_i > s_j] + \tfrac12 [s_i = s_j]

    Example:
      >>> area_under_curve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))[0]
      0.75
    """
    from scipy import stats

    found = stats.mannwhitneyu(scores[positive], scores[~positive], alternative="two-sided")
    return float(found.statistic) / (int(positive.sum()) * int((~positive).sum())), float(found.pvalue)


def left_out_rates(levels: Int[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Share of positives among the other cases of the same level; the overall share for a level of one case.

    A level that only one case has says nothing about another case, so that ids get no credit.

    Example:
      >>> left_out_rates(np.array([0, 0, 1]), np.array([True, True, False])).round(2).tolist()
      [1.0, 1.0, 0.67]
    """
    count = np.bincount(levels)[levels]
    total = np.bincount(levels, weights=positive.astype(float))[levels]
    alone = np.full(len(levels), float(positive.mean()))
    return np.divide(total - positive, count - 1, out=alone, where=count > 1)


def cramers_v(first: Int[np.ndarray, "n"], second: Int[np.ndarray, "n"]) -> tuple[float, float]:
    r"""Cramér's V with Bergsma's correction of its bias, and a p-value by permutation where counts are small.

    .. math:: \tilde V = \sqrt{\frac{\max(0,\; \chi^2 / n - (k-1)(r-1)/(n-1))}{\min(\tilde k - 1, \tilde r - 1)}},
              \qquad \tilde k = k - \frac{(k-1)^2}{n-1}

    Args:
      first, second: codes of two categories of n cases.

    Example:
      >>> value, p = cramers_v(np.array([0, 1] * 20), np.array([0, 1] * 20))
      >>> round(value, 3), p < 1e-3
      (1.0, True)

    References:
      Bergsma 2013, "A bias-correction for Cramér's V and Tschuprow's T", doi:10.1016/j.jkss.2012.10.002.
    """
    from scipy import stats

    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    k, r, n = int(rows.max()) + 1, int(columns.max()) + 1, len(rows)
    if k < 2 or r < 2:
        return 0.0, 1.0
    expected = np.outer(np.bincount(rows), np.bincount(columns)) / n

    def chi_squared(order: Any) -> float:
        counted = np.bincount(rows * r + order, minlength=k * r).reshape(k, r)
        return float((np.square(counted - expected) / expected).sum())

    statistic = chi_squared(columns)
    if (expected >= 5).mean() >= 0.8 and expected.min() >= 1:  # Cochran's rule for the chi-squared distribution
        p = float(stats.chi2.sf(statistic, (k - 1) * (r - 1)))
    else:
        rng = np.random.default_rng([0, k, r, n])
        drawn = [chi_squared(rng.permutation(columns)) for _ in range(1999)]
        p = (1 + sum(value >= statistic - 1e-9 for value in drawn)) / 2000
    corrected = max(0.0, statistic / n - (k - 1) * (r - 1) / (n - 1))
    smaller = min(k - (k - 1) ** 2 / (n - 1), r - (r - 1) ** 2 / (n - 1)) - 1
    return (min(1.0, math.sqrt(corrected / smaller)) if smaller > 0 else 0.0), p


class _Telling(NamedTuple):
    """How well something tells a class from the others."""

    area: float
    p: float
    name: str


def _best_class(target: _Target, levels: Int[np.ndarray, "p"] | None, numbers: Any) -> _Telling:
    """The class that levels, or numbers in either direction, tell best from all others."""
    best = _Telling(0.5, 1.0, "")
    for code in np.unique(target.codes):
        positive = target.codes == code
        if levels is not None:
            area, p = area_under_curve(left_out_rates(levels, positive), positive)
        else:
            known = np.isfinite(numbers)
            if len(np.unique(positive[known])) < 2 or known.mean() < 0.5:
                continue
            area, p = area_under_curve(numbers[known], positive[known])
            area = max(area, 1 - area)
        if area > best.area:
            best = _Telling(area, p, target.classes[code])
    return best


def _levels(cells: Any) -> Int[np.ndarray, "p"]:
    """Codes of a column, what is missing as a level of its own."""
    import pandas as pd

    codes = pd.factorize(cells, use_na_sentinel=True)[0]
    return np.where(codes < 0, codes.max(initial=-1) + 1, codes)


def check_leaks(cohort: Cohort, paths: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Inputs, gaps, ids, order and file names that give a label away.

    Args:
      cohort: with its labels.
      paths: of the files of every source.
    """
    for target in _targets(cohort):
        inputs = cohort.columns("input")
        asked = LEVEL / (2 * len(inputs) + 2 * len(cohort.sources) + 3)
        for column in inputs:
            yield from _input(cohort, target, column, asked)
            yield from _gaps(target, cohort.table[column].isna().to_numpy(), asked, column=column)
        for name, there in cohort.present.items():
            if cohort.sources[name].kind != "table":
                yield from _gaps(target, ~there, asked, source=name, is_mask=cohort.sources[name].kind == "mask")
        yield from _ids(cohort, target, paths, asked)


def _input(cohort: Cohort, target: _Target, column: str, asked: float) -> Iterator[Finding]:
    import pandas as pd

    cells = cohort.table[column].iloc[target.rows]
    levels = _levels(cells)
    is_number = pd.api.types.is_numeric_dtype(cells.dtype)
    n = len(levels)
    # Every level of one class, and every class of one level.
    of_class = {(int(level), int(code)) for level, code in zip(levels, target.codes, strict=True)}
    pairs = len(of_class)
    equal = pairs == len(np.unique(levels)) == len(np.unique(target.codes))
    found = _Telling(0.0, 1.0, "")
    if len(np.unique(levels)) <= max(20, n // 4):
        found = _best_class(target, levels, None)
    if is_number and not equal:
        as_number = _best_class(target, None, cells.to_numpy(dtype=float, na_value=np.nan))
        found = max(found, as_number)
    if equal and cramers_v(levels, target.codes)[1] < LEVEL:
        text = f"The input equals the label {target.column!r} in every case (n = {n} patients)."
    elif found.area >= TELLS and found.p < asked:
        text = (
            f"The input alone tells {target.column} {found.name!r} from the rest: area under the ROC curve "
            f"{found.area:.3f} (n = {n} patients, p = {found.p:.1g})."
        )
    else:
        return
    yield Finding(
        "error",
        "leak",
        text,
        "If it is known only with the outcome, give it the role never.",
        column=column,
    )


def _gaps(
    target: _Target,
    missing: Bool[np.ndarray, "n"],
    asked: float,
    *,
    column: str = "",
    source: str = "",
    is_mask: bool = False,
) -> Iterator[Finding]:
    gaps = missing[target.rows]
    if not 0 < gaps.sum() < len(gaps):
        return
    found = _best_class(target, None, gaps.astype(float))
    if found.area < 0.8 or found.p >= asked:
        return
    tells = found.area >= TELLS
    positive = np.array([target.classes[code] == found.name for code in target.codes])
    what = "Whether there is an image" if source else "Whether there is a value"
    # Where there is no lesion there is no mask of one; only a model that is given masks learns from that.
    severity: Severity = "note" if is_mask else "error" if tells else "warning"
    yield Finding(
        severity,
        "leak",
        f"{what} {'tells' if tells else 'goes with'} {target.column} {found.name!r}: missing in "
        f"{gaps[positive].mean():.0%} of it and in {gaps[~positive].mean():.0%} of the others (n = {len(gaps)} "
        f"patients, area under the ROC curve {found.area:.2f}).",
        "An indicator or a mask of what is missing hands this to a model. Leave it out, or gather it for all alike.",
        column=column,
        source=source,
    )


def _ids(cohort: Cohort, target: _Target, paths: Mapping[str, Sequence[str]], asked: float) -> Iterator[Finding]:
    """Ids and file names that begin alike, or rows that are sorted, by class."""
    ids = [cohort.case_id[row] for row in target.rows]
    done = set()
    named: list[tuple[str, list[str], Severity]] = [
        ("case ids", ids, "warning"),
        ("patient ids", [str(cohort.patient_id[row]) for row in target.rows], "warning"),
    ]
    for name, own_paths in paths.items():
        files = [str(own_paths[row]) for row in target.rows.tolist()]
        of_files: list[tuple[str, list[str], Severity]] = [
            (f"file names of {name}", [Path(file).name for file in files], "warning"),
            (f"folders of {name}", [f"{Path(file).parent}{os.sep}" for file in files], "note"),
        ]
        named += of_files
    for what, words, severity in named:
        prefixes = [_prefix(word) for word in words]
        if len(set(prefixes)) < 2 or tuple(prefixes) in done:
            continue
        done.add(tuple(prefixes))
        levels = np.unique(prefixes, return_inverse=True)[1]
        found = _best_class(target, levels, None)
        if found.area >= TELLS and found.p < asked:
            own = [
                prefix
                for prefix, code in zip(prefixes, target.codes, strict=True)
                if target.classes[code] == found.name
            ]
            start = max(set(own), key=own.count)
            shown = Path(start).name if "folders" in what else start
            yield Finding(
                severity,
                "leak",
                f"The beginning of the {what} tells {target.column} {found.name!r} from the rest: area under the ROC "
                f"curve {found.area:.3f} (n = {len(words)} patients); {own.count(start)} of {len(own)} begin with "
                f"{shown!r}.",
                "Harmless as long as no model or person who reads the images sees them. It also says that the classes "
                "were gathered apart: look for other differences.",
            )
    order = _best_class(target, None, target.rows.astype(float))
    if order.area >= TELLS and order.p < asked:
        yield Finding(
            "note",
            "leak",
            f"The table is sorted by {target.column}: {order.name!r} stands "
            f"{'at one end' if order.area > TELLS else 'together'} (area under the ROC curve of the row number "
            f"{order.area:.3f}).",
            "Splits of this library shuffle; any other that takes rows in order does not.",
        )


def _prefix(word: str) -> str:
    """A name up to its first digit, without what comes after: `JPCLN001` to `JPCLN`."""
    if word.endswith(os.sep):
        return word
    return re.split(r"\d", word, maxsplit=1)[0]


# Sites and formats.


def check_confounding(cohort: Cohort, facts: Mapping[str, Sequence[ImageFacts | None]]) -> Iterator[Finding]:
    """Sites, groups and formats of images that go with the label."""
    asked: list[tuple[str, str, str, list[str]]] = []
    if cohort.site is not None:
        asked.append(("site", "", "", [str(name) for name in cohort.site]))
    for column in cohort.columns("group"):
        cells: Any = cohort.table[column]
        if cells.nunique() <= 50 and not _same(asked, cells):
            asked.append((column, column, "", [str(cell) for cell in cells]))
    for name, found in facts.items():
        if cohort.sources[name].kind != "image":
            continue
        for what, of in (
            ("shape", lambda one: " x ".join(map(str, one.shape))),
            ("number format", lambda one: one.dtype),
            ("voxel size", lambda one: "" if one.spacing is None else " x ".join(f"{s:.1f}" for s in one.spacing)),
        ):
            words = ["" if one is None or not one.shape else of(one) for one in found]
            asked.append((f"{what} of {name}", "", name, words))
    for target in _targets(cohort):
        for what, column, source, words in asked:
            yield from _confounded(target, what, column, source, words, LEVEL / len(asked))


def _same(asked: Sequence[tuple[str, str, str, list[str]]], cells: Any) -> bool:
    return any([str(cell) for cell in cells] == words for *_, words in asked)


def _confounded(
    target: _Target, what: str, column: str, source: str, words: Sequence[str], level: float
) -> Iterator[Finding]:
    own = np.array([words[row] for row in target.rows])
    known = own != ""
    own, codes = own[known], target.codes[known]
    names, levels, counts = np.unique(own, return_inverse=True, return_counts=True)
    if len(names) < 2 or len(np.unique(codes)) < 2:
        return
    # Levels of one patient say nothing, and hundreds of them (voxel sizes) would only cost power.
    common = counts[levels] > 1
    if len(np.unique(levels[common])) < 2 or len(np.unique(codes[common])) < 2:
        return
    value, p = cramers_v(levels[common], codes[common])
    goes = value >= STRONG and p < level
    share = np.bincount(codes) / len(codes)
    single = []
    for k in np.argsort(-counts):
        held = np.unique(codes[levels == k])
        # As many patients of one class as chance does not bring together.
        if len(held) == 1 and counts[k] > 1 and share[held[0]] ** counts[k] < level:
            single.append(f"{names[k]} ({counts[k]} patients, all {target.classes[held[0]]!r})")
    if not goes and not single:
        return
    alone = f" Of one class only: {listed(single)}." if single else ""
    subject = what[0].upper() + what[1:] if not column else f"Column {column!r}"
    yield Finding(
        "warning",
        "confounding",
        f"{subject} {'goes with' if goes else 'has levels of one class of'} {target.column!r}: Cramér's V {value:.2f}, "
        f"p = {p:.1g}, {int(common.sum())} patients at {len(np.unique(levels[common]))} levels.{alone}",
        "A model can learn the origin instead of the disease. Leave sites out one by one (`leave_site_out`), report by "
        "site, and harmonise formats in preprocessing.",
        column=column,
        source=source,
    )
