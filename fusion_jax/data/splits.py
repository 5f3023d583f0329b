"""Who trains, who validates, who is tested: splits of patients, drawn once, saved, and checked for leaks.

The unit of every split is the patient, or a group of patients that must stay together. Strata are taken over patients,
so that ten folds of 65 and 102 patients hold 6 or 7 and 10 or 11 each whatever the number of slices.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fusion_jax.data.cohort import Cohort
from fusion_jax.records import write_json
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "Rows",
    "Split",
    "Splits",
    "check_leakage",
    "draw_once",
    "given",
    "k_fold",
    "leave_site_out",
    "load_splits",
    "monte_carlo",
    "nested",
    "save_splits",
]

FORMAT = 1
PARTS = ("train", "validation", "test")
SHOWN = 5
"""Patients or cases that a message names."""


class Split(NamedTuple):
    """One division of the cases.

    Attributes:
      repeat, fold: which one, from 0.
      train, validation, test: case ids, in the order of the cohort; validation may be empty.
      name: of the site that is left out, or "".
      inner: divisions of `train` for choosing settings, with the held-out cases as `validation` and no test.
    """

    repeat: int
    fold: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    name: str = ""
    inner: tuple["Split", ...] = ()

    def rows(self, cohort: Cohort) -> "Rows":
        """Rows of the cohort in each part.

        Raises:
          ValueError: the cohort lacks a case of the split.
        """
        index = {case: row for row, case in enumerate(cohort.case_id)}
        for case in (*self.train, *self.validation, *self.test):
            if case not in index:
                raise ValueError(
                    f"{cohort.name}: no case {case!r}, which the split names. Use the cohort it was drawn for."
                )
        return Rows(*(np.array([index[case] for case in part], np.int32) for part in self[2:5]))


class Rows(NamedTuple):
    """Rows of a cohort, each shape `(n,)`."""

    train: Int[np.ndarray, "n"]
    validation: Int[np.ndarray, "m"]
    test: Int[np.ndarray, "p"]


class Splits(NamedTuple):
    """All splits of a study.

    Attributes:
      kind: how they were drawn.
      settings: arguments of the draw, among them the seed, and whether patients may cross.
      cases: case id to patient and label ("" without), of the cohort they were drawn for.
      splits: in order of repeat and fold.
    """

    kind: str
    settings: Mapping[str, Any]
    cases: Mapping[str, tuple[str, str]]
    splits: tuple[Split, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of everything above; the name under which a study reports its splits."""
        return hashlib.sha256(json.dumps(_content(self), sort_keys=True).encode()).hexdigest()


def k_fold(
    cohort: Cohort,
    k: int,
    *,
    seed: int,
    repeats: int = 1,
    validation: float = 0.0,
    by: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
) -> Splits:
    """Stratified k-fold cross-validation over patients, repeated with new draws.

    Args:
      cohort: whose cases are divided.
      k: number of folds; every patient is tested once a repeat.
      seed: of the draw. The order of the cohort's rows does not matter.
      repeats: number of draws.
      validation: fraction of the other patients that is set aside for early stopping and thresholds.
      by: columns whose combination is the stratum; by default the first label, or the event without a label.
      groups: one value a case; cases of one value stay together, as near-duplicate images must. None for a case that
        belongs to no other.

    Raises:
      ValueError: a class has fewer patients than folds; the message names the largest k that is possible.

    Example:
      >>> cohort = Cohort.from_arrays({"image": np.zeros((6, 4, 4, 1))}, label=[0, 0, 0, 1, 1, 1])
      >>> [len(split.test) for split in k_fold(cohort, 3, seed=0).splits]
      [2, 2, 2]

    References:
      Wang W. et al. 2020, Table 2 (fold composition); Peng et al. 2020 (six folds of four and four).
    """
    units = _units(cohort, by, groups)
    _check_folds(cohort, units, k)
    splits = []
    for repeat in range(repeats):
        for fold, tested in enumerate(_folds(units.strata, k, [seed, repeat])):
            rest = np.setdiff1d(np.arange(len(units.names)), tested)
            held = _hold_out(units.strata, rest, validation, [seed, repeat, fold])
            splits.append(_split(cohort, units, repeat, fold, np.setdiff1d(rest, held), held, tested))
    return _finish(
        cohort, "k-fold", {"k": k, "repeats": repeats, "validation": validation, "seed": seed}, by, splits, groups
    )


def monte_carlo(
    cohort: Cohort,
    *,
    seed: int,
    repeats: int = 1,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    by: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    patients: Literal["together", "may cross"] = "together",
) -> Splits:
    """Repeated random splits into training, validation and test, stratified.

    Args:
      cohort: whose cases are divided.
      seed: of the draw.
      repeats: number of draws.
      fractions: of the patients in training, validation and test; they sum to 1.
      by, groups: see `k_fold`.
      patients: "may cross" divides cases, not patients, as a published protocol may have done. Such splits leak; they
        are marked in the file, and `check_leakage` refuses them unless told otherwise.

    Raises:
      ValueError: fractions that do not sum to 1, or a class that a part would lack.

    References:
      Hsieh et al., 70/15/15 over rows; specs/mdf_net.md, section 2.1.
    """
    whole = len(fractions) == 3 and min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-9
    if not whole or not fractions[0] or not fractions[2]:
        raise ValueError(f"fractions are {fractions}; expected training, validation and test that sum to 1.")
    units = _units(cohort, by, groups, cases_alone=patients == "may cross")
    everybody = np.arange(len(units.names))
    splits = []
    for repeat in range(repeats):
        tested = _hold_out(units.strata, everybody, fractions[2], [seed, repeat, 0])
        rest = np.setdiff1d(everybody, tested)
        held = _hold_out(units.strata, rest, fractions[1] / (fractions[0] + fractions[1]), [seed, repeat, 1])
        splits.append(_split(cohort, units, repeat, 0, np.setdiff1d(rest, held), held, tested))
    settings = {"repeats": repeats, "fractions": list(fractions), "seed": seed, "patients": patients}
    return _finish(cohort, "monte-carlo", settings, by, splits, groups)


def nested(
    cohort: Cohort,
    outer: int,
    inner: int,
    *,
    seed: int,
    repeats: int = 1,
    by: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
) -> Splits:
    """Nested cross-validation: the training patients of every outer fold are divided into inner folds.

    Raises:
      ValueError: a class has too few patients for the outer or the inner folds.
    """
    units = _units(cohort, by, groups)
    _check_folds(cohort, units, outer)
    splits = []
    for repeat in range(repeats):
        for fold, tested in enumerate(_folds(units.strata, outer, [seed, repeat])):
            rest = np.setdiff1d(np.arange(len(units.names)), tested)
            _check_folds(cohort, units, inner, rest, f"the training patients of outer fold {fold}")
            held = [rest[part] for part in _folds(units.strata[rest], inner, [seed, repeat, fold])]
            none = np.zeros(0, np.int64)
            inside = [
                _split(cohort, units, repeat, number, np.setdiff1d(rest, part), part, none)
                for number, part in enumerate(held)
            ]
            splits.append(_split(cohort, units, repeat, fold, rest, none, tested)._replace(inner=tuple(inside)))
    return _finish(
        cohort, "nested", {"outer": outer, "inner": inner, "repeats": repeats, "seed": seed}, by, splits, groups
    )


def leave_site_out(
    cohort: Cohort,
    *,
    seed: int = 0,
    validation: float = 0.0,
    by: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    lacking: Literal["error", "keep"] = "error",
) -> Splits:
    """One fold a site: trained at all other sites, tested at this one.

    Args:
      cohort: with sites.
      seed: of the validation part.
      validation: fraction of the other patients that is set aside.
      by, groups: see `k_fold`.
      lacking: what a site without patients of some class means: "error", or "keep" for a fold that has no AUC. Training
        and validation need every class in either case.

    Raises:
      ValueError: no or one site, a patient of several sites, or a site that lacks a class.
    """
    if cohort.site is None or len(set(cohort.site)) < 2:
        found = "no site" if cohort.site is None else f"one site, {cohort.site[0]}"
        raise ValueError(f"{cohort.name}: {found}; expected at least two. Name the column under ids in cohort.toml.")
    nowhere = [case for case, site in zip(cohort.case_id, cohort.site, strict=True) if not site]
    if nowhere:
        raise ValueError(
            f"{cohort.name}: case {listed(nowhere, SHOWN)} has no site ({len(nowhere)} in all). Fill it in, or "
            "leave them out."
        )
    units = _units(cohort, by, groups)
    sites: dict[int, set[str]] = {}
    for row, unit in enumerate(units.of_case):
        sites.setdefault(int(unit), set()).add(str(cohort.site[row]))
    for unit, found in sites.items():
        if len(found) > 1:
            raise ValueError(
                f"{cohort.name}: patient {units.names[unit]} was seen at {', '.join(sorted(found))}; leaving one out "
                "would leave the patient in training. Give these sites one name, or take the patient out."
            )
    splits = []
    for fold, site in enumerate(sorted(set(map(str, cohort.site)))):
        tested = np.array(sorted(unit for unit, found in sites.items() if site in found))
        rest = np.setdiff1d(np.arange(len(units.names)), tested)
        held = _hold_out(units.strata, rest, validation, [seed, 0, fold])
        split = _split(cohort, units, 0, fold, np.setdiff1d(rest, held), held, tested)
        splits.append(split._replace(name=site))
    settings = {"validation": validation, "seed": seed, "lacking": lacking}
    return _finish(cohort, "leave-site-out", settings, by, splits, groups)


def given(
    cohort: Cohort, parts: "str | Mapping[str, str] | Sequence[str] | pandas.Series", *, name: str = "given"
) -> Splits:
    """The division that a study was published with.

    Args:
      cohort: whose cases are divided.
      parts: "train", "validation" or "test" of every case: a column of the table, a mapping from case id (or a pandas
        Series with such an index), or a list in the order of the cases.
      name: of the division.

    Raises:
      ValueError: a case without a part, an unknown part, no training case or none to evaluate on, or a patient in
        several parts.
    """
    import pandas as pd

    if isinstance(parts, pd.Series):
        parts = parts.to_dict()  # by its index, which a list would silently ignore
    if isinstance(parts, str):
        if parts not in cohort.table.columns:
            raise ValueError(f"{cohort.name}: no column {parts!r}; expected one that holds {', '.join(PARTS)}.")
        parts = [str(part) for part in cohort.table[parts]]
    elif isinstance(parts, Mapping):
        lacking = [case for case in cohort.case_id if case not in parts]
        if lacking:
            raise ValueError(f"{cohort.name}: no part for case {listed(lacking, SHOWN)}; expected one for every case.")
        parts = [parts[case] for case in cohort.case_id]
    parts = ["validation" if part == "val" else part for part in parts]
    if len(parts) != len(cohort):
        raise ValueError(f"{cohort.name}: {len(parts)} parts for {len(cohort)} cases; expected one a case.")
    for case, part in zip(cohort.case_id, parts, strict=True):
        if part not in PARTS:
            raise ValueError(f"{cohort.name}: case {case} is in part {part!r}; expected {', '.join(PARTS)}.")
    found = {
        part: tuple(case for case, own in zip(cohort.case_id, parts, strict=True) if own == part) for part in PARTS
    }
    if not found["train"] or not (found["validation"] or found["test"]):
        counts = ", ".join(f"{part}: {len(cases)}" for part, cases in found.items())
        raise ValueError(f"{cohort.name}: {counts}; expected cases to train on and others to evaluate on.")
    splits = [Split(0, 0, found["train"], found["validation"], found["test"])]
    return _finish(cohort, "given", {"name": name}, (), splits)


def save_splits(path: str | Path, splits: Splits) -> None:
    """Write splits as JSON with their hash, whole or not at all.

    Raises:
      TypeError: path and splits the wrong way round.
    """
    if not isinstance(splits, Splits):
        raise TypeError(f"splits is a {type(splits).__name__}; expected save_splits(path, splits).")
    write_json(path, {**_content(splits), "hash": splits.hash})


def load_splits(path: str | Path, cohort: Cohort) -> Splits:
    """Splits from a file, checked against the cohort they are used on.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it was edited, is no file of splits, or names cases, patients or labels that the cohort has
        otherwise; the message names the first.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored = content.pop("hash")
        splits = Splits(
            content["kind"],
            content["settings"],
            {case: (patient, label) for case, (patient, label) in content["cases"].items()},
            tuple(_parse_split(split) for split in content["splits"]),
        )
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no file of splits ({error}); expected what `save_splits` writes.") from None
    if splits.hash != stored:
        raise ValueError(
            f"{path}: its hash is {splits.hash[:12]}…, the file says {str(stored)[:12]}…: it was changed after it was "
            "drawn. Restore it; splits are never edited or drawn again under one name."
        )
    now = _cases(cohort)
    for case, (patient, label) in splits.cases.items():
        if case not in now:
            raise ValueError(f"{path}: case {case} is not in cohort {cohort.name}; expected the cohort of the splits.")
        for what, then, found in (("patient", patient, now[case][0]), ("label", label, now[case][1])):
            if then != found:
                raise ValueError(
                    f"{path}: case {case} had {what} {then!r} when the splits were drawn and has {found!r} in "
                    f"{cohort.name}. Restore the table, or draw splits for the new one under a new name."
                )
    strange = [case for case in now if case not in splits.cases]
    if strange:
        raise ValueError(
            f"{path}: case {listed(strange, SHOWN)} of cohort {cohort.name} is not in the splits. Take the cases out, "
            "or draw splits for this cohort under a new name."
        )
    return splits


def draw_once(path: str | Path, cohort: Cohort, draw: Callable[[Cohort], Splits]) -> Splits:
    """Splits from `path`; where there are none yet, drawn by `draw(cohort)` and saved there."""
    if not Path(path).exists():
        save_splits(path, draw(cohort))
    return load_splits(path, cohort)


@runtime_checkable
class _Fitted(Protocol):
    """What a fitted transform remembers."""

    def check(self, train_cases: Iterable[Any], *, others: Iterable[Any] = ()) -> None: ...


def check_leakage(
    cohort: Cohort,
    split: Split,
    *,
    duplicates: Iterable[Sequence[str]] = (),
    fitted: Mapping[str, _Fitted] | None = None,
    patients: Literal["together", "may cross"] = "together",
) -> None:
    """Stop a run whose test or validation patients had a part in training.

    Args:
      cohort: of the run.
      split: of the run.
      duplicates: groups of case ids with one and the same image, as from the integrity report.
      fitted: by name, records of what a transform was fitted on (`FittedTable.fitted_on`).
      patients: "may cross" for a published protocol that divided cases; duplicates are then let pass too.

    Raises:
      ValueError: names the patients, cases or transform.
    """
    part_of = {case: part for part in PARTS for case in getattr(split, part)}
    strange = part_of.keys() - set(cohort.case_id)
    if strange:
        raise ValueError(
            f"{_where(cohort, split)}: case {listed(sorted(strange), SHOWN)} is not in the cohort; expected the cohort "
            "that the split was drawn for, which says whose case it is."
        )
    total = len(split.train) + len(split.validation) + len(split.test)
    if len(part_of) < total:
        raise ValueError(f"{_where(cohort, split)}: a case stands in two parts; expected disjoint parts.")
    if patients == "together":
        parts: dict[str, set[str]] = {}
        for case, patient in zip(cohort.case_id, cohort.patient_id, strict=True):
            if case in part_of:
                parts.setdefault(str(patient), set()).add(part_of[case])
        crossing = sorted(patient for patient, found in parts.items() if len(found) > 1)
        if crossing:
            raise ValueError(
                f"{_where(cohort, split)}: {len(crossing)} patients are in more than one part "
                f"({listed(crossing, SHOWN)}). Split by patient, or say `patients='may cross'` to reproduce "
                "a protocol that leaks."
            )
        for group in duplicates:
            found = {part_of[case] for case in group if case in part_of}
            if len(found) > 1:
                raise ValueError(
                    f"{_where(cohort, split)}: cases {listed(group, SHOWN)} hold the same image and are in "
                    f"{' and '.join(sorted(found))}. Draw the splits with `groups` that keep them together."
                )
    for name, record in (fitted or {}).items():
        try:
            record.check(split.train, others=cohort.case_id)
        except ValueError as error:
            raise ValueError(f"{_where(cohort, split)}: {name}: {error}") from None


def _where(cohort: Cohort, split: Split) -> str:
    return f"{cohort.name}, repeat {split.repeat}, fold {split.fold}"


class _Units(NamedTuple):
    """What is drawn: patients, or groups of them; sorted, so that the order of the cohort does not matter."""

    names: list[str]
    of_case: Int[np.ndarray, "n"]
    strata: Int[np.ndarray, "u"]
    labels: Sequence[frozenset[str]]


def _units(
    cohort: Cohort, by: Sequence[str] | None, groups: Sequence[Any] | None, *, cases_alone: bool = False
) -> _Units:
    ids = cohort.case_id if cases_alone else [str(patient) for patient in cohort.patient_id]
    if groups is not None:
        if len(groups) != len(cohort):
            raise ValueError(f"{cohort.name}: {len(groups)} groups for {len(cohort)} cases; expected one a case.")
        import pandas as pd

        alone = np.asarray(pd.Series(list(groups), dtype=object).isna())
        ids = _merged(ids, [(f"row {row}",) if alone[row] else str(group) for row, group in enumerate(groups)])
    names = sorted(set(ids))
    number = {name: index for index, name in enumerate(names)}
    of_case = np.array([number[name] for name in ids])
    strata = _strata(cohort, by)
    counts = dict.fromkeys(strata, 0)
    members: list[set[str]] = [set() for _ in names]
    for unit, stratum in zip(of_case, strata, strict=True):
        members[unit].add(stratum)
    for found in members:
        for stratum in found:
            counts[stratum] += 1
    # A patient of several strata counts for the rarest, so that the few it has are spread over the folds.
    rarest = [min(found, key=lambda stratum: (counts[stratum], stratum)) for found in members]
    codes = {stratum: code for code, stratum in enumerate(sorted(set(rarest)))}
    labels: list[set[str]] = [set() for _ in names]
    for unit, label in zip(of_case, _labels(cohort), strict=True):
        if label:
            labels[unit].add(label)
    return _Units(names, of_case, np.array([codes[stratum] for stratum in rarest]), [frozenset(own) for own in labels])


def _merged(ids: Sequence[str], groups: Sequence[Any]) -> list[str]:
    """Ids of the connected groups that patients and `groups` form together, named by their first patient."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = {node: index for index, node in enumerate({("p", i) for i in ids} | {("g", g) for g in groups})}
    start = [nodes["p", patient] for patient in ids]
    end = [nodes["g", group] for group in groups]
    graph = coo_array((np.ones(len(ids)), (start, end)), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=False)[1]
    name: dict[int, str] = {}
    for patient, index in zip(ids, start, strict=True):
        own = int(component[index])
        name[own] = min(name.get(own, patient), patient)
    return [name[int(component[index])] for index in start]


def _strata(cohort: Cohort, by: Sequence[str] | None) -> list[str]:
    if by is None:
        by = (cohort.columns("label") or cohort.columns("event"))[:1]
    if isinstance(by, str):
        raise ValueError(f"{cohort.name}: by is {by!r}; expected a list of columns, such as ({by!r},).")
    for column in by:
        if column not in cohort.table.columns:
            raise ValueError(
                f"{cohort.name}: no column {column!r} to stratify by; it has {', '.join(cohort.table.columns)}."
            )
    return [
        json.dumps([str(cell) for cell in cells]) for cells in zip(*(cohort.table[c] for c in by), strict=True)
    ] or [""] * len(cohort)


def _labels(cohort: Cohort) -> list[str]:
    """Class of every case by the first label column, or whether it had the event; "" where neither is known."""
    if not cohort.columns("label"):
        # A fold without an event has no concordance, as one without a class has no AUC.
        events = cohort.columns("event")[:1]
        cells = cohort.table[events[0]] if events else [None] * len(cohort)
        return ["" if cell is None or cell != cell else f"event {cell}" for cell in cells]
    names = (*cohort.classes, "")
    return [names[code] for code in cohort.label]


def _cases(cohort: Cohort) -> dict[str, tuple[str, str]]:
    return {
        case: (str(patient), label)
        for case, patient, label in zip(cohort.case_id, cohort.patient_id, _labels(cohort), strict=True)
    }


def _check_folds(
    cohort: Cohort, units: _Units, k: int, among: Int[np.ndarray, "u"] | None = None, who: str = "the cohort"
) -> None:
    among = np.arange(len(units.names)) if among is None else among
    if k < 2:
        raise ValueError(f"{k} folds; expected at least 2.")
    counts = dict.fromkeys(sorted({label for labels in units.labels for label in labels}), 0)
    for unit in among:
        for label in units.labels[unit]:
            counts[label] += 1
    feasible = min([len(among), *counts.values()])
    if feasible < k:
        rare = [label for label, count in counts.items() if count == feasible]
        found = f"class {rare[0]!r} has {feasible} patients" if rare else f"there are {len(among)} patients"
        way_out = (
            f"The largest feasible k is {feasible}." if feasible >= 2 else "No k is feasible; gather more patients."
        )
        raise ValueError(f"{cohort.name}: {k} folds, but in {who} {found}: a fold would lack it. {way_out}")


def _folds(strata: Int[np.ndarray, "u"], k: int, seed: Sequence[int]) -> list[Int[np.ndarray, "v"]]:
    import warnings

    from sklearn.model_selection import StratifiedKFold

    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    with warnings.catch_warnings():
        # A stratum smaller than k, such as a class at one site, is spread as far as it goes.
        warnings.filterwarnings("ignore", message="The least populated class")
        if np.bincount(strata).max() < k:
            strata = np.zeros_like(strata)
        folds = StratifiedKFold(k, shuffle=True, random_state=state).split(np.zeros(len(strata)), strata)
        return [tested for _, tested in folds]


def _hold_out(
    strata: Int[np.ndarray, "u"], among: Int[np.ndarray, "v"], fraction: float, seed: Sequence[int]
) -> Int[np.ndarray, "w"]:
    """A stratified draw of a fraction of `among`: systematic sampling along a random order inside every stratum."""
    if not 0 <= fraction < 1:
        raise ValueError(f"a fraction of {fraction} is set aside; expected a number from 0 to below 1.")
    rng = np.random.default_rng(seed)
    position = np.empty(len(among))
    for stratum in np.unique(strata[among]):
        members = np.flatnonzero(strata[among] == stratum)
        position[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    # Ties, the same quantile of two strata, fall at random.
    order = np.lexsort((rng.random(len(among)), position))
    count = round(fraction * len(among))
    if fraction and not 0 < count < len(among):
        raise ValueError(
            f"{fraction:g} of {len(among)} patients are {count}; expected at least one in every part. Take another "
            "fraction, or 0 for none."
        )
    return np.sort(among[order[:count]])


def _split(
    cohort: Cohort,
    units: _Units,
    repeat: int,
    fold: int,
    train: Int[np.ndarray, "a"],
    validation: Int[np.ndarray, "b"],
    test: Int[np.ndarray, "c"],
) -> Split:
    parts = []
    for part in (train, validation, test):
        rows = np.flatnonzero(np.isin(units.of_case, part))
        parts.append(tuple(cohort.case_id[row] for row in rows))
    return Split(repeat, fold, *parts)


def _finish(
    cohort: Cohort,
    kind: str,
    settings: Mapping[str, Any],
    by: Sequence[str] | None,
    splits: Sequence[Split],
    groups: Sequence[Any] | None = None,
) -> Splits:
    """Check what was drawn, whatever drew it."""
    cases = _cases(cohort)
    patients = "may cross" if settings.get("patients") == "may cross" else "together"
    classes = {label for _, label in cases.values() if label}
    for split in splits:
        check_leakage(cohort, split, patients=patients)
        for division in (split, *split.inner):
            for part in reversed(PARTS):
                members = getattr(division, part)
                lacking = sorted(classes - {cases[case][1] for case in members})
                kept = part == "test" and settings.get("lacking") == "keep"
                if members and lacking and not kept:
                    place = f"site {split.name}" if split.name else f"repeat {division.repeat}, fold {division.fold}"
                    counts = {
                        label: len({patient for patient, own in cases.values() if own == label}) for label in lacking
                    }
                    raise ValueError(
                        f"{cohort.name}: {place}: no case of class {', '.join(map(repr, lacking))} in {part} "
                        f"({', '.join(f'{label}: {count} patients in all' for label, count in counts.items())}). Take "
                        "larger parts or fewer folds, merge rare classes or sites, or leave validation out."
                    )
    order = sorted(cases)
    stratified = None if by is None else list(by)
    settings = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    # Whom the groups kept together is a part of how the splits came about, whatever the groups were called.
    merged = None if groups is None else hashlib.sha256(json.dumps([str(g) for g in groups]).encode()).hexdigest()
    settings |= {"by": stratified, "groups": merged}
    return Splits(kind, settings, {case: cases[case] for case in order}, tuple(splits))


def _content(splits: Splits) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": splits.kind,
        "settings": dict(splits.settings),
        "cases": {case: list(about) for case, about in splits.cases.items()},
        "splits": [_as_json(split) for split in splits.splits],
    }


def _as_json(split: Split) -> dict[str, Any]:
    return {**split._asdict(), "inner": [_as_json(inner) for inner in split.inner]}


def _parse_split(content: Mapping[str, Any]) -> Split:
    if set(content) != set(Split._fields):
        raise ValueError(f"a split with the keys {', '.join(sorted(content))}")
    train, validation, test = (tuple(content[part]) for part in PARTS)
    inner = tuple(_parse_split(division) for division in content["inner"])
    return Split(content["repeat"], content["fold"], train, validation, test, content["name"], inner)
