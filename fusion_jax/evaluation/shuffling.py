r"""What is left when a source is shuffled: three numbers that answer three questions and are often confused.

=====================  =========================  =========================================================
number                 the source is shuffled     question
=====================  =========================  =========================================================
`pairing_index`        within class, at test      does this trained model score better because the sources
                                                  of a case belong together, beyond what each says of the
                                                  class?
`reliance`             over all, at test          how much would this trained model lose if the source held
                                                  nothing?
`benefit_null`         over all, before training  would a model have done as well without the source?
=====================  =========================  =========================================================

Only the last is evidence that a source helped, since only there has the model had the chance to do without it. Patients
exchange their rows as blocks; rows of one patient are never torn apart.

An `apply` function takes a mapping from source to array, first axis the cases, and returns scores `(n,)` or `(n, k)`.
It may be of any framework: it is called with NumPy arrays and nothing here traces or compiles it. Two ways:

- `batched=False`, the default: one call a permutation, with the n rows of the data. As fast for NumPy models.
- `batched=True` for a function that takes any number of rows and judges each by itself: many permutations are stacked
  in one call, and every call has the same number of rows, so that a function under `jax.jit` compiles once.

A source that is not shuffled is the same in every call. Where its encoder is slow, run it once and let `apply` start
from its features, as a fused model does from `{"image": features, "clinical": columns}`::

    features = encode_image(images)                       # once
    head = jax.jit(lambda inputs: fused_head(inputs["image"], encode_clinical(inputs["clinical"])))
    reliance(head, {"image": features, "clinical": columns}, labels, "clinical", batched=True)
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from fusion_jax.arrays import ArrayLike, Key, Sources
from fusion_jax.evaluation import classification
from fusion_jax.evaluation.rows import Patients, patient_codes
from fusion_jax.wording import counted, listed

__all__ = [
    "Apply",
    "BenefitNull",
    "Exchange",
    "Metric",
    "Retrain",
    "Shuffled",
    "benefit_null",
    "pairing_index",
    "reliance",
    "row_exchange",
    "shuffled_scores",
]

Apply = Callable[[dict[str, np.ndarray]], ArrayLike]
"""Inputs by source to scores, `(n,)` or `(n, k)`."""

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Labels and scores to a number, of which more is better."""

Retrain = Callable[[dict[str, np.ndarray], Key], ArrayLike]
"""Inputs by source and a random key to held-out scores; NaN for rows that are never tested."""

ROWS_AT_ONCE = 65_536
BYTES_AT_ONCE = 2**28
SAME_SCORE = 1e-4
"""Difference between two calls, relative to the range of the scores, that rounding explains."""


class Exchange(NamedTuple):
    """Which rows may stand in for which.

    Attributes:
      recipients: per pool of patients who may exchange, the rows of each patient.
      donors: the rows that a patient gives away, of the same structure; one row where all rows of a patient agree.
      rows: number of rows n.
      fixed: number of patients whom nobody can exchange with; their rows never move.
    """

    recipients: tuple[tuple[np.ndarray, ...], ...]
    donors: tuple[np.ndarray, ...]
    rows: int
    fixed: int

    def draw(self, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
        """A random exchange: the row that each row gets its values from, shape `(n,)`."""
        source = np.arange(self.rows)
        for recipients, donors in zip(self.recipients, self.donors, strict=True):
            given = donors[rng.permutation(len(donors))]
            if donors.shape[1] == 1:
                given = np.repeat(given[:, 0], [len(rows) for rows in recipients])
            source[np.concatenate(recipients)] = given.ravel()
        return source


class Shuffled(NamedTuple):
    """A metric before and after shuffling a source at test time.

    Attributes:
      loss: `baseline` less the mean of `draws`; negative where the model does better on shuffled data.
      error: Monte-Carlo standard error of `loss`. It says nothing of other patients.
      baseline: metric of the data.
      draws: metric of each shuffled data set, shape `(r,)`.
      fixed: patients that could not be exchanged with another; with many of them the loss is too small.
    """

    loss: float
    error: float
    baseline: float
    draws: Float[np.ndarray, "r"]
    fixed: int


class BenefitNull(NamedTuple):
    """A test of whether training with a source helped.

    Attributes:
      gain: `observed` less the mean of `null`.
      p_value: one-sided, `(1 + number of null at least as large) / (1 + r)`.
      p_error: Monte-Carlo standard error of `p_value`.
      observed: metric of the model trained on the data.
      null: metric of each model trained with the source of other patients, shape `(r,)`.
      fixed: patients that could not be exchanged with another.
    """

    gain: float
    p_value: float
    p_error: float
    observed: float
    null: Float[np.ndarray, "r"]
    fixed: int


def pairing_index(
    apply: Apply,
    inputs: Sources,
    labels: Int[ArrayLike, "n"],
    source: str | Sequence[str],
    *,
    metric: Metric | None = None,
    repeats: int = 30,
    seed: int = 0,
    patients: Patients | None = None,
    batched: bool = False,
) -> Shuffled:
    r"""Loss when a source is exchanged between patients of the same class, at test time.

    .. math:: M(f, \{x_i, z_i\}) - \overline{M(f, \{x_i, z_{\pi(i)}\})}, \qquad y_{\pi(i)} = y_i

    Evidence of: this model using which sources belong to one case, such as an interaction, or errors of the sources
    that cancel. Not evidence of benefit: shuffling within class keeps all that the source says of the class, so that
    two sources that are independent given the class, whose fusion helps most, have an index of about 0; and where both
    sources err alike on the same patients the index is negative, since strangers' errors cancel. There is no p-value
    here for that reason.

    Args:
      apply: see the module's text.
      inputs: source to array, first axis the n cases.
      labels: class of each case, shape `(n,)`.
      source: the source to shuffle, or several that move together, such as an image and whether it is present.
      metric: `metric(labels, scores)`, more is better; by default the AUC (macro one-vs-rest for scores `(n, k)`).
      repeats: number of shuffles.
      seed: of the shuffles; models that are compared share them.
      patients: patient of each case; by default every case is a patient of its own.
      batched: whether `apply` takes stacked cases.

    Returns:
      `Shuffled`; `loss` is the index, in units of the metric.

    Raises:
      ValueError: a source that is not there, scores that are not finite or differ between calls, or nothing to
        exchange.

    Example:
      >>> x = np.arange(40.0) % 20
      >>> index = pairing_index(lambda inputs: inputs["a"] - inputs["b"], {"a": x + np.arange(40) // 20, "b": x},
      ...                       np.arange(40) // 20, "b")
      >>> index.baseline, index.loss > 0.3
      (1.0, True)
    """
    labels = np.asarray(labels)
    return _shuffled(apply, inputs, labels, source, metric, repeats, seed, patients, labels, batched)


def reliance(
    apply: Apply,
    inputs: Sources,
    labels: Shaped[ArrayLike, "n ..."],
    source: str | Sequence[str],
    *,
    metric: Metric | None = None,
    repeats: int = 30,
    seed: int = 0,
    patients: Patients | None = None,
    batched: bool = False,
) -> Shuffled:
    r"""Loss when a source is exchanged between all patients, at test time.

    .. math:: M(f, \{x_i, z_i\}) - \overline{M(f, \{x_i, z_{\pi(i)}\})}

    Evidence of: how far this trained model leans on the source, and so what happens when the source is wrong, mixed up
    or absent. Not evidence of benefit: a model may lean on a source that another source could replace (of two identical
    sources each has a large reliance and neither adds anything), and a shuffled case is one that no patient is like.

    Args:
      apply, inputs, source, metric, repeats, seed, patients, batched: see `pairing_index`.
      labels: class of each case, shape `(n,)`, or what `metric` takes, first axis the cases.

    Returns:
      `Shuffled`; `loss` is the reliance, in units of the metric.

    Raises:
      ValueError: as `pairing_index`.

    Example:
      >>> labels = np.arange(40) % 2
      >>> reliance(lambda inputs: inputs["used"], {"used": labels * 1.0, "unused": labels * 1.0}, labels, "unused").loss
      0.0

    References:
      Breiman 2001, section 10, with a source in place of a variable.
    """
    return _shuffled(apply, inputs, np.asarray(labels), source, metric, repeats, seed, patients, None, batched)


def benefit_null(
    retrain: Retrain,
    inputs: Sources,
    labels: Shaped[ArrayLike, "n ..."],
    source: str | Sequence[str],
    *,
    metric: Metric | None = None,
    permutations: int = 199,
    seed: int = 0,
    patients: Patients | None = None,
    within: Patients | None = None,
) -> BenefitNull:
    r"""Test of whether training with a source helped, against training with the source of other patients.

    .. math:: p = \frac{1 + \#\{r : M_r \ge M_0\}}{1 + R}

    The source is exchanged between all patients, those trained on and those tested, before training; the model is then
    trained and tested anew. Everything else of the procedure stays as it is: the architecture and its size, the splits,
    and the random key, so that a difference cannot come from them.

    Evidence of: the source carrying information on the label that this procedure turned into a better score, beyond
    the other sources and beyond having more inputs. Not evidence of: how large the benefit is for new patients (give
    the paired difference between the models, with its interval), nor of *why* (a scanner's mark in the source counts as
    information). Strictly the null hypothesis is that the source is independent of label and other sources together.
    A large p-value is no proof of uselessness: it may be that the model could not learn to use the source.
    Ties count against the source, so that with few tested cases an AUC gives p-values that are a little too large.

    Args:
      retrain: `retrain(inputs, key) -> scores`: trains on some rows and scores others, such as out of fold, with its
        splits fixed. Never the rows that a fit has seen. NaN for rows that are never tested, the same in every fit.
      inputs, labels, source, metric, patients: see `reliance`.
      permutations: number of retrained models r; the smallest p-value is 1 / (1 + r).
      seed: of the permutations and of the key.
      within: sites, folds or other strata that patients are exchanged inside of, shape `(n,)`.

    Returns:
      `BenefitNull`.

    Raises:
      ValueError: a source that is not there, rows without scores in one fit that have them in another, or nothing to
        exchange.

    Example:
      >>> labels = np.arange(40) % 2
      >>> inputs = {"image": np.zeros(40), "clinical": labels + np.linspace(0, 0.5, 40)}
      >>> benefit_null(lambda inputs, key: inputs["clinical"], inputs, labels, "clinical", permutations=19).p_value
      0.05

    References:
      Ojala & Garriga 2010, test 1, with a source permuted in place of the labels; Phipson & Smyth 2010 for the p-value.
    """
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; expected at least 1, and 199 for p-values down to 0.005.")
    arrays, labels = checked_inputs(inputs, labels)
    metric = metric or auc
    exchange = _exchange(arrays, names := source_names(source, arrays), patients, within)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"benefit_null"))
    tested = None
    values = []
    for repeat in range(-1, permutations):
        drawn = {} if repeat < 0 else _moved(arrays, names, exchange.draw(generator(seed, names, repeat)))
        scores = _checked_scores(retrain(arrays | drawn, key), len(labels), "retrain", missing=True)
        found = np.asarray(~np.isnan(scores.reshape(len(scores), -1)).any(axis=1))
        tested = found if tested is None else tested
        if not found.any() or (found != tested).any():
            raise ValueError(
                f"retrain scored {found.sum()} of {len(found)} rows, and {tested.sum()} on the data as they are; "
                "expected the same rows in every fit. Fix the splits before calling."
            )
        values.append(_value(metric, labels[tested], scores[tested]))
    observed, null = values[0], np.array(values[1:])
    p_value = float((1 + np.sum(null >= observed)) / (1 + permutations))
    return BenefitNull(
        gain=observed - float(null.mean()),
        p_value=p_value,
        p_error=float(np.sqrt(p_value * (1 - p_value) / (1 + permutations))),
        observed=observed,
        null=null,
        fixed=exchange.fixed,
    )


def row_exchange(
    rows: int,
    *,
    patients: Patients | None = None,
    within: Patients | None = None,
    agreeing: bool = False,
) -> Exchange:
    """How patients may exchange their rows.

    Patients exchange when they have equally many rows and, row by row, the same strata. Rows keep their order inside a
    patient (with `within`, inside a stratum of the patient).

    Args:
      rows: number of rows n.
      patients: patient of each row, shape `(n,)`; by default every row is a patient of its own.
      within: stratum of each row, shape `(n,)`.
      agreeing: every patient has the same values in all rows, such as one clinical record for several images; then the
        number of rows need not match, only the strata.

    Raises:
      ValueError: nobody can exchange with anybody.

    Example:
      >>> exchange = row_exchange(5, patients=np.array(["a", "a", "b", "b", "c"]))
      >>> exchange.fixed, sorted(exchange.draw(np.random.default_rng(0)).tolist())
      (1, [0, 1, 2, 3, 4])
    """
    patient = patient_codes(patients, rows)
    stratum = np.zeros(rows, int) if within is None else np.unique(np.asarray(within), return_inverse=True)[1]
    if stratum.shape != (rows,):
        raise ValueError(f"within has shape {stratum.shape}; expected ({rows},), one stratum a row.")
    order = np.lexsort((np.arange(rows), stratum, patient))
    blocks = np.split(order, np.flatnonzero(np.diff(patient[order])) + 1)
    pools: dict[tuple[int, ...], list[np.ndarray]] = {}
    for block in blocks:
        pattern = stratum[block]
        pools.setdefault(tuple(np.unique(pattern) if agreeing else pattern), []).append(block)
    exchanging = [tuple(pool) for pool in pools.values() if len(pool) > 1]
    if not exchanging:
        raise ValueError(
            f"{counted(len(blocks), 'patient')} in {counted(rows, 'row')}: no two have equally many rows"
            f"{'' if within is None else ' of the same strata'}, so that nothing can be exchanged. "
            "Use one row a patient, or fewer strata."
        )
    return Exchange(
        recipients=tuple(exchanging),
        donors=tuple(np.stack([block[:1] if agreeing else block for block in pool]) for pool in exchanging),
        rows=rows,
        fixed=sum(len(pool) == 1 for pool in pools.values()),
    )


def shuffled_scores(
    apply: Apply,
    inputs: Mapping[str, np.ndarray],
    changes: Iterable[Mapping[str, np.ndarray]],
    count: int,
    *,
    batched: bool,
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Scores of the data, and of the data after each change.

    Args:
      apply: see the module's text.
      inputs: source to array, first axis the n cases.
      changes: each the sources that differ; made one after the other, so that they need not fit in memory together.
      count: number of changes.
      batched: whether `apply` takes stacked cases; a call then has at most `ROWS_AT_ONCE` rows and `BYTES_AT_ONCE`
        bytes, or one change.

    Returns:
      Scores of the data, shape `(n,)` or `(n, k)`, and an iterator over those of every change.

    Raises:
      ValueError: scores of another shape or not finite, or that differ between two calls with the same rows: dropout is
        on, or, with `batched=True`, a row's score depends on the other rows.

    Example:
      >>> x = np.arange(3.0)
      >>> baseline, changed = shuffled_scores(lambda inputs: inputs["a"], {"a": x}, [{"a": -x}], 1, batched=True)
      >>> [scores.tolist() for scores in changed]
      [[-0.0, -1.0, -2.0]]
    """
    rows = len(next(iter(inputs.values())))
    size = sum(array.nbytes for array in inputs.values())
    at_once = max(1, min(ROWS_AT_ONCE // rows, BYTES_AT_ONCE // max(size, 1), count + 1)) if batched else 1
    unchanged = {name: _repeated(array, at_once) for name, array in inputs.items()}

    def run(requested: Iterable[Mapping[str, np.ndarray]]) -> Iterator[np.ndarray]:
        pending = iter(requested)
        while chunk := list(itertools.islice(pending, at_once)):
            filled = chunk + [{}] * (at_once - len(chunk))
            stacked = {
                name: np.concatenate([change.get(name, array) for change in filled])
                for name, array in inputs.items()
                if any(name in change for change in chunk)
            }
            scores = _checked_scores(apply(unchanged | stacked), at_once * rows, "apply")
            yield from scores.reshape(at_once, rows, *scores.shape[1:])[: len(chunk)]

    baseline = next(run([{}]))
    # The data once more, now among changed rows: what depends on chance or on other rows shows here.
    scores = run(itertools.chain([{}], changes))
    again = next(scores)
    difference = float(np.abs(again - baseline).max())
    if difference > SAME_SCORE * max(float(np.ptp(baseline)), np.finfo(float).tiny):
        raise ValueError(
            f"apply: scores of the same rows differ by up to {difference:.3g} between two calls. Switch dropout and "
            "augmentation off"
            f"{', and leave batched=False where a score depends on the other rows of the call' if batched else ''}."
        )
    return baseline, scores


def checked_inputs(inputs: Sources, labels: ArrayLike) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and labels as NumPy arrays of one length."""
    arrays, answers = {name: np.asarray(array) for name, array in inputs.items()}, np.asarray(labels)
    if not arrays:
        raise ValueError("inputs is empty; expected a mapping from source to array.")
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(answers):
            raise ValueError(
                f"inputs[{name!r}] has shape {array.shape}, labels {answers.shape}; expected one row a case in both."
            )
    return arrays, answers


def source_names(source: str | Sequence[str], inputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The sources to shuffle.

    Raises:
      ValueError: `inputs` lacks one.
    """
    names = (source,) if isinstance(source, str) else tuple(source)
    for name in names:
        if name not in inputs:
            raise ValueError(f"no source {name!r} in inputs; they hold {listed(inputs)}.")
    return names


def agree_in_patients(values: Sequence[np.ndarray], patients: Patients | None) -> bool:
    """Whether all rows of every patient hold the same values."""
    if patients is None:
        return False
    patient = patient_codes(patients, len(values[0]))
    first = np.unique(patient, return_index=True)[1][patient]
    return all(np.array_equal(array, array[first]) for array in values)


def generator(seed: int, names: Sequence[str], repeat: int) -> np.random.Generator:
    """Random numbers of one shuffle: by name, so that leaving another source or column out changes nothing."""
    return np.random.default_rng([seed, zlib.crc32("\0".join(names).encode()), repeat])


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; for scores `(n, k)` the mean over classes, each against the rest.

    Raises:
      ValueError: labels are not 0 … k-1, or a class does not occur.
    """
    classes = 2 if scores.ndim == 1 else scores.shape[1]
    found = np.unique(labels).tolist()
    if labels.ndim != 1 or found != list(range(classes)):
        raise ValueError(
            f"labels: found {listed(found)} in {len(labels)} rows; an AUC of scores {scores.shape} needs classes "
            f"0 to {classes - 1}, each in some row. Pass another `metric` for other labels."
        )
    if scores.ndim == 1:
        return classification.auc(labels, scores)
    return float(np.mean([classification.auc(labels == one, scores[:, one]) for one in range(classes)]))


def _shuffled(apply, inputs, labels, source, metric, repeats, seed, patients, within, batched) -> Shuffled:
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1, and 30 for a Monte-Carlo error.")
    arrays, labels = checked_inputs(inputs, labels)
    names = source_names(source, arrays)
    exchange = _exchange(arrays, names, patients, within)
    changes = (_moved(arrays, names, exchange.draw(generator(seed, names, repeat))) for repeat in range(repeats))
    unshuffled, scores = shuffled_scores(apply, arrays, changes, repeats, batched=batched)
    metric = metric or auc
    baseline = _value(metric, labels, unshuffled)
    draws = np.array([_value(metric, labels, drawn) for drawn in scores])
    error = float(draws.std(ddof=1) / np.sqrt(repeats)) if repeats > 1 else float("nan")
    return Shuffled(baseline - float(draws.mean()), error, baseline, draws, exchange.fixed)


def _exchange(arrays, names, patients, within) -> Exchange:
    rows = len(next(iter(arrays.values())))
    agreeing = agree_in_patients([arrays[name] for name in names], patients)
    return row_exchange(rows, patients=patients, within=within, agreeing=agreeing)


def _moved(arrays, names, rows) -> dict[str, np.ndarray]:
    return {name: arrays[name][rows] for name in names}


def _value(metric: Metric, labels: np.ndarray, scores: np.ndarray) -> float:
    return float(metric(labels, scores))


def _repeated(array: np.ndarray, times: int) -> np.ndarray:
    return array if times == 1 else np.concatenate([array] * times)


def _checked_scores(scores: ArrayLike, rows: int, caller: str, *, missing: bool = False) -> np.ndarray:
    found = np.asarray(scores)
    if found.ndim not in (1, 2) or len(found) != rows or found.shape[1:] == (1,):
        raise ValueError(
            f"{caller} returned scores of shape {found.shape} for {rows} rows; expected ({rows},) or ({rows}, classes)."
        )
    bad = int((np.isinf(found) if missing else ~np.isfinite(found)).sum())
    if bad:
        raise ValueError(f"{caller} returned {counted(bad, 'score')} that {'is' if bad == 1 else 'are'} not finite.")
    return found
