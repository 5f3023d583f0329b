"""Clinical values lifted to as many coordinates as an image has features, without a weight to learn, or with few.

The encodings themselves are `fusion_jax.quality.encoding`'s; here they become an encoder of a model. What is fitted to
training patients lies in the collection `encoding` beside `params`: no optimiser moves it, checkpoints and exports hold
it, and folds differ in values alone, so that one compiled program serves them all. Settings and saved variables rebuild
a model; the random coordinates are drawn from `seed`.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, Num
from fusion_jax.quality.encoding import ENCODINGS, Encoding, Projection, Scaling

__all__ = ["Kind", "ValueEncoding", "fit_value_encoding"]

Kind = Literal["positional", "linear", "pca", "fourier", "repetition", "learned"]


class ValueEncoding(nn.Module):
    r"""Coordinates of a few clinical values, a fixed function of each row.

    ==============  ===================================================================================  ===========
    kind            coordinates                                                                          fitted
    ==============  ===================================================================================  ===========
    `positional`    sines and cosines of each value, `size / t` coordinates a column                     no
    `linear`        one random matrix times the values                                                   no
    `pca`           whitened principal scores in random orthogonal directions                            always
    `fourier`       cosines of random projections                                                        no
    `repetition`    the values over and over; `size = t` gives the values themselves                     no
    `learned`       :math:`\max(0, w_{tc} y_t + b_{tc})`, `size / t` trained coordinates a column        no
    ==============  ===================================================================================  ===========

    `scaling="robust"` needs a fit whatever the kind: see `fit_value_encoding`. Otherwise values are taken as they come.
    The published positional encoding takes native units (a platelet count of 187, a spleen of 12 cm) with its base of
    10,000; standardised values are near zero, where most of its coordinates stand still, and want a base near 10. All
    other kinds want standardised values, from the table's own encoder or by `scaling="robust"`.

    Attributes:
      kind: see above.
      size: number of coordinates of all columns together; static.
      scaling: "native" for values as they come, "robust" for (value − median) / interquartile range of the training
        patients. `pca` always standardises.
      base: of `positional`: wavelengths run from 2π to 2π base, in units of the values.
      length_scale: of `fourier`, in units of the values.
      seed: of the random coordinates of `linear`, `pca` and `fourier`.
      scale: factor of all coordinates. A larger block also has a larger norm and so a larger effective learning rate;
        a control of equal norm sets this.
      statistics: what `fit_value_encoding` found; only `init` reads it.
      dtype: without effect: half precision would lose the phase of native values. The result is float32.

    Example:
      >>> encoder = ValueEncoding("positional", size=192)
      >>> markers = jnp.array([[187.0, 12.0, 41.0], [95.0, 15.5, 33.0]])
      >>> features, variables = encoder.init_with_output(jax.random.key(0), markers, train=False)
      >>> features.shape, len(variables)
      ((2, 192), 0)

    References:
      Wang et al. 2023, Eq. 8 and 9; specs/fusion_quality.md, sections 6 and 10.
    """

    kind: Kind
    size: int
    scaling: Literal["native", "robust"] = "native"
    base: float = 10_000.0
    length_scale: float = 1.0
    seed: int = 0
    scale: float = 1.0
    statistics: Mapping[str, Any] | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, "b t"], *, train: bool, mask: Bool[ArrayLike, "b"] | None = None
    ) -> Float[Array, "b size"]:
        """Coordinates of each row.

        Args:
          x: clinical values, shape `(b, t)`, without missing ones.
          train: changes nothing here.
          mask: changes nothing here: rows are encoded one by one.

        Returns:
          Coordinates, float32, shape `(b, size)`.

        Raises:
          ValueError: `x` is no table, `size` does not divide among its columns where it must, a column is missing or
            new against the fit, or a fit is needed and there was none.
        """
        x = jnp.asarray(x)
        if x.ndim != 2 or not x.shape[1]:
            raise ValueError(f"ValueEncoding: x has shape {x.shape}; expected clinical values, (b, t) with t > 0.")
        if self.size < 1:
            raise ValueError(f"ValueEncoding: size is {self.size}; expected at least one coordinate.")
        encoding = _encoding(self)
        x = x.astype(jnp.float32)
        columns = x.shape[1]
        if _is_fitted(self):
            scaling = Scaling(self._fitted("centre", columns), self._fitted("scale", columns))
        else:
            scaling = Scaling(jnp.zeros(columns, jnp.float32), jnp.ones(columns, jnp.float32))
        if self.kind == "learned":
            # As many repeated coordinates as columns are the scaled values themselves.
            return self.scale * self._learned(encoding.encode(scaling, x, columns))
        params: Any = scaling
        if self.kind in ("linear", "pca", "fourier"):
            axes = self._fitted("axes", columns) if self.kind == "pca" else jnp.eye(columns, dtype=jnp.float32)
            params = Projection(scaling, axes, jax.random.key(self.seed))
        return self.scale * encoding.encode(params, x, self.size)

    def _fitted(self, name: str, columns: int) -> Array:
        """One statistic of the fit, from the variables; `statistics` where they are being made."""

        def initial() -> Array:
            if self.statistics is None:
                raise ValueError(
                    f"ValueEncoding: kind={self.kind!r} with scaling={self.scaling!r} is fitted to training patients, "
                    "and there is no fit. Initialise fit_value_encoding(encoder, values), or, for any kind but pca, "
                    "take scaling='native'."
                )
            return jnp.asarray(self.statistics[name], jnp.float32)

        value = self.variable("encoding", name, initial).value
        if value.shape[0] != columns:
            raise ValueError(
                f"ValueEncoding: x has {columns} columns, and was fitted to {value.shape[0]}; expected the same "
                "columns in the same order."
            )
        return value

    def _learned(self, values: Array) -> Array:
        columns = values.shape[1]
        each = self.size // columns
        if self.size % columns:
            raise ValueError(
                f"ValueEncoding: {self.size} coordinates do not divide among {columns} columns; the nearest sizes that "
                f"do are {max(each, 1) * columns} and {(max(each, 1) + 1) * columns}."
            )
        # Kinks at −b/w, spread over standardised values; without them a linear head would see the values alone.
        kernel = self.param("kernel", nn.initializers.normal(1.0), (columns, each), jnp.float32)
        bias = self.param("bias", nn.initializers.normal(1.0), (columns, each), jnp.float32)
        return nn.relu(values[:, :, None] * kernel[None] + bias[None]).reshape(len(values), self.size)


def fit_value_encoding(encoder: ValueEncoding, values: Num[np.ndarray, "n t"]) -> ValueEncoding:
    """The encoder with centre, scale and principal axes of a cohort, ready for `init`.

    A trained model needs no fit again: its variables hold the statistics, whatever `statistics` says.

    Args:
      encoder: of any kind; one that needs no fit comes back as it is.
      values: clinical values of the training patients only, one row a patient (rows that repeat a patient would weigh
        that patient more), shape `(n, t)`, without missing ones.

    Returns:
      The encoder with its `statistics`, plain numbers.

    Raises:
      ValueError: no patient, or a value that is not a number.

    Example:
      >>> values = np.array([[1.0, 20.0], [2.0, 60.0], [3.0, 40.0], [5.0, 90.0]])
      >>> encoder = fit_value_encoding(ValueEncoding("repetition", size=2, scaling="robust"), values)
      >>> encoder.statistics["centre"]
      (2.5, 50.0)
    """
    if not _is_fitted(encoder):
        return encoder
    params = _encoding(encoder).fit(values, jax.random.key(encoder.seed))
    scaling = params.scaling if isinstance(params, Projection) else params
    statistics: dict[str, Any] = {"centre": _plain(scaling.centre), "scale": _plain(scaling.scale)}
    if encoder.kind == "pca":
        statistics["axes"] = tuple(_plain(row) for row in params.axes)
    return encoder.clone(statistics=statistics)


def _is_fitted(encoder: ValueEncoding) -> bool:
    return encoder.kind == "pca" or encoder.scaling == "robust"


def _encoding(encoder: ValueEncoding) -> Encoding:
    if encoder.kind not in get_args(Kind):
        raise ValueError(f"ValueEncoding: kind is {encoder.kind!r}; expected one of {', '.join(get_args(Kind))}.")
    if encoder.scaling not in ("native", "robust"):
        raise ValueError(f"ValueEncoding: scaling is {encoder.scaling!r}; expected 'native' or 'robust'.")
    if encoder.kind == "pca":
        return ENCODINGS["pca"]()
    settings: dict[str, Any] = {"scaling": encoder.scaling}
    if encoder.kind == "positional":
        settings["base"] = encoder.base
    if encoder.kind == "fourier":
        settings["length_scale"] = encoder.length_scale
    return ENCODINGS["repetition" if encoder.kind == "learned" else encoder.kind](**settings)


def _plain(numbers: ArrayLike) -> tuple[float, ...]:
    return tuple(float(number) for number in np.asarray(numbers))
