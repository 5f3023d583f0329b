"""A general cohort whose signal is dialled in: how much of it is unique, redundant, noisily redundant, synergistic."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Arrays, Cohort, Lazy, Source
from fusion_jax.data.image import Image
from fusion_jax.data.synthetic.draws import case_stream, checked_n, column_stream, proportional, shuffled_levels
from fusion_jax.data.synthetic.truth import AUC, Synthetic, Truth, area_under_curve

__all__ = ["COORDINATES", "Signal", "bayes_auc", "d_prime", "dial", "log_likelihood_ratio"]

COORDINATES = ("unique", "redundant", "noisy_redundant", "synergy")
"""What the first four coordinates of every source carry; the others are nuisance."""

NOISE = 0.25
"""Standard deviation of the pixel noise, in peaks of a blob of one standard deviation."""


@dataclasses.dataclass(frozen=True)
class Signal:
    r"""How the class `y` (0 or 1) enters the coordinates of `S` sources, in units of the noise's standard deviation.

    With independent standard normal noises :math:`e` and :math:`c = y - \tfrac12`, source :math:`s` sees

    .. math::
        u_s &= a_s c + e^u_s   && \text{unique} \\
        r   &= b\, c + e^r     && \text{redundant: one number, with its noise, in every source} \\
        v_s &= g\, c + e^v_s   && \text{noisily redundant: one mean, a noise for every source} \\
        x_s &= k\, t_s + e^x_s && \text{synergy: signs with } t_1 \cdots t_S = 2y - 1

    where all but one of the signs :math:`t_s` are fair coins: any part of the sources tells nothing of their product.

    Attributes:
      unique: source to :math:`a_s`, its own d'; the names and the order of the sources.
      redundant: :math:`b`, the d' that all sources share; fusion cannot add to it.
      noisy_redundant: :math:`g`, the d' that every source brings anew; fusion averages the noise away.
      synergy: :math:`k`, half the distance of the signs' means; seen by all sources together only.
      prevalence: share of the class 1.

    Raises:
      ValueError: no source, synergy of one source, a negative or infinite strength, a prevalence outside (0, 1).
    """

    unique: Mapping[str, float]
    redundant: float = 0.0
    noisy_redundant: float = 0.0
    synergy: float = 0.0
    prevalence: float = 0.5

    def __post_init__(self) -> None:
        strengths = {f"unique[{name!r}]": value for name, value in self.unique.items()} | {
            name: getattr(self, name) for name in COORDINATES[1:]
        }
        for name, value in strengths.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; expected a strength of at least 0, in standard deviations.")
        if not self.unique:
            raise ValueError(
                "unique names no source; expected at least one, with strength 0 if it has none of its own."
            )
        if self.synergy and len(self.unique) < 2:
            raise ValueError("synergy of a single source; expected two sources or more, or synergy 0.")
        if not 0 < self.prevalence < 1:
            raise ValueError(f"prevalence is {self.prevalence!r}; expected a share between 0 and 1.")


def dial(
    n: int,
    *,
    unique: Mapping[str, float],
    redundant: float = 0.0,
    noisy_redundant: float = 0.0,
    synergy: float = 0.0,
    prevalence: float = 0.5,
    dimension: int | Mapping[str, int] = 8,
    images: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Synthetic:
    """Cohort of sources whose unique, redundant, noisily redundant and synergistic signal is set by hand.

    `Signal` has the model. A source is a vector of standard normal coordinates: the four of `COORDINATES`, then
    nuisance. A source named in `images` is drawn as a picture instead: coordinate `j` is the height of a blob in the
    j-th cell of a square, in white noise that is orthogonal to every blob, so that the picture holds exactly the
    information of the vector. Not realistic: signal is Gaussian, linear (but for synergy), and always in one place.

    Args:
      n: number of cases.
      unique: source to its own d'; all sources are named here.
      redundant: d' that all sources share, noise and all.
      noisy_redundant: d' that every source brings anew.
      synergy: strength of the signs whose product is the class.
      prevalence: share of the class 1, met to the nearest case.
      dimension: coordinates of a source, at least 4; one number for all, or by source.
      images: source to the side of its picture in pixels.
      seed: of all draws; noise depends on seed and index of the case alone.

    Returns:
      Cohort with the label column `label`, and its truth; `hidden[source]` are coordinates, shape `(n, dimension)`.

    Raises:
      ValueError: strengths, dimensions or sides that mean nothing.

    Example:
      >>> cohort, truth = dial(200, unique={"image": 1.0, "clinical": 0.5}, redundant=0.5, images={"image": 32})
      >>> len(cohort), cohort.label.sum().item(), cohort.sources["image"][0].shape, cohort.sources["clinical"][0].shape
      (200, 100, (32, 32, 1), (8,))
      >>> round(bayes_auc(Signal({"image": 1.0, "clinical": 0.5}, redundant=0.5), n=100_000).value, 2)
      0.81
    """
    n = checked_n(n, 2, "dial")
    signal = Signal(unique, redundant, noisy_redundant, synergy, prevalence)
    images = dict(images or {})
    sizes = _sizes(signal, dimension, images)
    counts = proportional([1 - prevalence, prevalence], n)
    label = shuffled_levels(counts, column_stream(seed, "label"))
    informative = _draws(signal)
    nuisance = sum(sizes.values()) - len(COORDINATES) * len(sizes)
    noise = np.stack([case_stream(seed, i).standard_normal(informative + nuisance) for i in range(n)])
    coordinates = _coordinates(signal, label, noise[:, :informative])
    hidden, start = {}, informative
    for source, values in coordinates.items():
        end = start + sizes[source] - len(COORDINATES)
        hidden[source] = np.concatenate([values, noise[:, start:end]], axis=1)
        start = end
    identity = json.dumps(["dial", seed, n, dataclasses.asdict(signal), sizes, images], sort_keys=True)
    sources: dict[str, Source] = {}
    for source in signal.unique:
        if source in images:
            picture = _Picture(hidden[source], images[source], seed, f"pixels of {source}")
            sources[source] = Lazy(picture, np.arange(n), "image", f"{identity} {source}")
        else:
            sources[source] = Arrays(hidden[source].astype(np.float32), "array")
    cohort = Cohort.from_arrays(sources, label=label, name="dialled")
    evidence = {source: log_likelihood_ratio(signal, {source: coordinates[source]})[:, None] for source in hidden}
    together = log_likelihood_ratio(signal, coordinates)[:, None]
    return Synthetic(cohort, Truth(("label",), label[:, None], evidence, together, hidden))


def log_likelihood_ratio(signal: Signal, coordinates: Mapping[str, Float[np.ndarray, "n f"]]) -> Float[np.ndarray, "n"]:
    r"""Exact log-likelihood ratio of the classes given some of the sources.

    .. math:: \ell = \sum_{s} (a_s u_s + g v_s) + b\, r + 2 \operatorname{artanh} \prod_s \tanh(k x_s)

    The last term is there only if all sources of the signal are.

    Args:
      signal: the model.
      coordinates: of the sources that are seen; the first four columns are those of `COORDINATES`.

    Returns:
      log p(coordinates | 1) - log p(coordinates | 0), shape `(n,)`.

    Raises:
      ValueError: no source, or one that the signal does not have.

    Example:
      >>> seen = {"image": np.array([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])}
      >>> log_likelihood_ratio(Signal({"image": 2.0, "clinical": 0.0}), seen).tolist()
      [2.0, -2.0]
    """
    _known(signal, coordinates)
    first = next(iter(coordinates.values()))
    ratio = signal.redundant * first[:, 1]
    for source, values in coordinates.items():
        ratio = ratio + signal.unique[source] * values[:, 0] + signal.noisy_redundant * values[:, 2]
    if signal.synergy and set(coordinates) == set(signal.unique):
        product = np.prod([np.tanh(signal.synergy * values[:, 3]) for values in coordinates.values()], axis=0)
        # Strong signs round to 1, where artanh is infinite; the largest float below bounds the term at 36.7.
        ratio = ratio + 2 * np.arctanh(np.clip(product, -1 + 2**-53, 1 - 2**-53))
    return ratio


def d_prime(signal: Signal, sources: Sequence[str] | None = None) -> float:
    r"""Distance of the classes given some sources, without the synergy.

    .. math:: d'^2 = \sum_{s} (a_s^2 + g^2) + b^2

    Args:
      signal: the model.
      sources: those that are seen; all where None.

    Returns:
      The distance in standard deviations. Without synergy, or without one of the sources, `auc_of_d_prime` of it is
      the AUC.

    Example:
      >>> d_prime(Signal({"a": 0.0, "b": 0.0}, noisy_redundant=1.0)) ** 2
      2.0
    """
    sources = tuple(signal.unique) if sources is None else tuple(dict.fromkeys(sources))
    _known(signal, sources)
    own = sum(signal.unique[source] ** 2 + signal.noisy_redundant**2 for source in sources)
    return math.sqrt(own + signal.redundant**2)


def bayes_auc(signal: Signal, sources: Sequence[str] | None = None, *, n: int = 1_000_000, seed: int = 0) -> AUC:
    """AUC of the best possible model of some sources, by Monte Carlo of the exact likelihood ratio.

    Args:
      signal: the model.
      sources: those that the model sees; all where None.
      n: number of cases drawn, half of either class (prevalence does not change an AUC).
      seed: of the draw.

    Returns:
      The AUC with its standard error, about 0.0004 at a million cases.

    Raises:
      ValueError: a source that the signal does not have, or fewer than four cases.

    Example:
      >>> both = Signal({"a": 0.0, "b": 0.0}, synergy=2.0)
      >>> auc = {seen: bayes_auc(both, seen, n=100_000).value for seen in (("a",), ("a", "b"))}
      >>> [round(value, 2) for value in auc.values()]
      [0.5, 0.99]
    """
    n = checked_n(n, 4, "bayes_auc")
    sources = tuple(signal.unique) if sources is None else tuple(dict.fromkeys(sources))
    _known(signal, sources)
    rng = column_stream(seed, "bayes_auc")
    label = np.arange(n) % 2
    chunks = np.array_split(label, math.ceil(n / 100_000))
    ratios = []
    for chunk in chunks:
        coordinates = _coordinates(signal, chunk, rng.standard_normal((len(chunk), _draws(signal))))
        ratios.append(log_likelihood_ratio(signal, {source: coordinates[source] for source in sources}))
    return area_under_curve(np.concatenate(ratios), label == 1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Picture:
    """Coordinates as the heights of blobs in white noise."""

    coordinates: Float[np.ndarray, "n f"]
    side: int
    seed: int
    purpose: str

    def __call__(self, row: int) -> Image:
        blobs = _blobs(self.coordinates.shape[1], self.side)
        noise = case_stream(self.seed, row, self.purpose).standard_normal((self.side, self.side))
        # Blobs do not overlap: what the noise has of each is taken out one by one.
        share = np.tensordot(blobs, noise, axes=2) / np.square(blobs).sum(axis=(1, 2))
        values = NOISE * noise + np.tensordot(self.coordinates[row] - NOISE * share, blobs, axes=1)
        return Image(values[..., None].astype(np.float32))


def _blobs(count: int, side: int) -> np.ndarray:
    """One bump of height 1 in every cell of a square, shape `(count, side, side)`."""
    cells = math.ceil(math.sqrt(count))
    cell = side // cells
    profile = np.sin(np.pi * (np.arange(cell) + 0.5) / cell)
    bump = np.outer(profile, profile)
    blobs = np.zeros((count, side, side))
    for j in range(count):
        y, x = (cell * index for index in divmod(j, cells))
        blobs[j, y : y + cell, x : x + cell] = bump
    return blobs


def _draws(signal: Signal) -> int:
    return 4 * len(signal.unique)


def _coordinates(
    signal: Signal, label: Int[np.ndarray, "n"], noise: Float[np.ndarray, "n e"]
) -> dict[str, Float[np.ndarray, "n 4"]]:
    """Informative coordinates of every source, from the class and standard normal numbers."""
    count = len(signal.unique)
    centred = label - 0.5
    shared = signal.redundant * centred + noise[:, 0]
    own, anew, beside = (noise[:, 1 + j * count : 1 + (j + 1) * count] for j in range(3))
    # All but the last source toss a coin; the last one makes the product the class.
    signs = np.ones((len(label), count))
    signs[:, :-1] = np.where(noise[:, 1 + 3 * count : 4 * count] > 0, 1.0, -1.0)
    signs[:, -1] = (2 * label - 1) * np.prod(signs, axis=1)
    return {
        source: np.stack(
            [
                signal.unique[source] * centred + own[:, s],
                shared,
                signal.noisy_redundant * centred + anew[:, s],
                signal.synergy * signs[:, s] + beside[:, s],
            ],
            axis=1,
        )
        for s, source in enumerate(signal.unique)
    }


def _known(signal: Signal, sources: Sequence[str] | Mapping[str, object]) -> None:
    if not sources:
        raise ValueError("no source is seen; expected at least one.")
    for source in sources:
        if source not in signal.unique:
            raise ValueError(f"source {source!r}: the signal has {', '.join(map(repr, signal.unique))}.")


def _sizes(signal: Signal, dimension: int | Mapping[str, int], images: Mapping[str, int]) -> dict[str, int]:
    sizes = {}
    for source in signal.unique:
        size = dimension if isinstance(dimension, int) else dimension.get(source, 8)
        if size < len(COORDINATES):
            raise ValueError(f"source {source!r}: dimension {size}; expected at least {len(COORDINATES)}.")
        sizes[source] = size
    named = {} if isinstance(dimension, int) else dimension
    for what, names in (("dimension", named), ("images", images)):
        for source in names:
            if source not in sizes:
                raise ValueError(f"{what} names {source!r}; the sources are {', '.join(map(repr, sizes))}.")
    for source, side in images.items():
        least = 3 * math.ceil(math.sqrt(sizes[source]))
        if side < least:
            raise ValueError(
                f"images[{source!r}] is {side} pixels; expected at least {least} for {sizes[source]} blobs."
            )
    return sizes
