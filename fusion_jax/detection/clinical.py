r"""Clinical data inside a detector: as a vector, as a map, joined with maps, and appended to what a head reads.

Nothing here knows which detector it is part of. A case without clinical data has a vector of zeros, and its map adds
nothing to the image's.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Float
from fusion_jax.detection.backbones import GROUPS
from fusion_jax.detection.config import FuseKind
from fusion_jax.encoders.initial import he_normal
from fusion_jax.encoders.layers import Conv, ConvTranspose
from fusion_jax.encoders.norm import Norm, NormKind

__all__ = [
    "ClinicalEmbedding",
    "ClinicalMLP",
    "FuseMaps",
    "Repeat",
    "Spatialise",
    "append_vector",
    "doublings",
    "embedding_widths",
]


def embedding_widths(vector: int, numeric: int, categories: int) -> tuple[int, ...]:
    """Widths of the embeddings, which share what the numbers leave of the vector; the first ones get what is over.

    Example:
      >>> embedding_widths(64, 9, 1), embedding_widths(64, 3, 2)
      ((55,), (31, 30))
    """
    each, over = divmod(vector - numeric, categories) if categories else (0, 0)
    return tuple(each + (i < over) for i in range(categories))


class ClinicalEmbedding(nn.Module):
    r"""Numbers as they are, then an embedding of every category, :math:`Z^C = [x; E_1(k_1); \dots]`.

    Attributes:
      numeric: columns that are numbers, the first ones.
      levels: number of levels of each category; their codes follow. A code outside 0 to the number of levels is a
        missing value, whose embedding is zeros.
      vector: width of the whole where there is a category.

    Example:
      >>> module = ClinicalEmbedding(numeric=1, levels=(2,), vector=4)
      >>> rows = jnp.array([[36.6, 1.0], [36.6, -1.0]])
      >>> found, _ = module.init_with_output(jax.random.key(0), rows, jnp.array([True, True]))
      >>> found[1].round(1).tolist()
      [36.6, 0.0, 0.0, 0.0]

    References:
      Hsieh et al., section 3.2; specs/mdf_net.md, section 3 (order and widths are those of the authors' code).
    """

    numeric: int
    levels: tuple[int, ...] = ()
    vector: int = 64

    @nn.compact
    def __call__(self, clinical: Float[ArrayLike, "b t"], there: Bool[ArrayLike, " b"]) -> Float[Array, "b f"]:
        """The vector of each case, float32; zeros where there is no clinical data.

        Raises:
          ValueError: another number of columns.
        """
        clinical, there = jnp.asarray(clinical).astype(jnp.float32), jnp.asarray(there)
        if clinical.shape[1] != self.numeric + len(self.levels):
            raise ValueError(
                f"the source 'clinical' has {clinical.shape[1]} columns; expected {self.numeric} numbers and then "
                f"{len(self.levels)} codes of categories. Encode the columns in this order, or change the detector."
            )
        clinical = jnp.where(there[:, None], clinical, 0)
        parts = [clinical[:, : self.numeric]]
        for i, width in enumerate(embedding_widths(self.vector, self.numeric, len(self.levels))):
            table = self.param(f"embedding_{i}", _unit_normal, (self.levels[i], width), jnp.float32)
            code = clinical[:, self.numeric + i].astype(jnp.int32)
            known = (code >= 0) & (code < self.levels[i]) & there
            parts.append(jnp.where(known[:, None], table[jnp.where(known, code, 0)], 0))
        return jnp.concatenate(parts, axis=1)


class ClinicalMLP(nn.Module):
    """Dense layers with norm and leaky ReLU, on the vector before it becomes a map.

    Attributes:
      widths: of the layers.
      norm: as in `Norm`.
      dtype: of the computation.
    """

    widths: tuple[int, ...]
    norm: NormKind = "batch"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, vector: Float[ArrayLike, "b f"], *, train: bool, mask: Bool[ArrayLike, " b"]
    ) -> Float[Array, "b _f"]:
        """The vector behind the last layer."""
        x = jnp.asarray(vector).astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x)
            x = Norm(self.norm, GROUPS, dtype=self.dtype, name=f"bn_{i}")(x, train=train, mask=mask)
            x = nn.leaky_relu(x)
        return x


def doublings(height: int, width: int) -> int:
    """How many doublings make a map of an image's size: the most among those whose last map wastes least.

    Example:
      >>> doublings(512, 512), doublings(384, 512), doublings(640, 640)
      (9, 7, 7)
    """
    most = int(math.log2(min(height, width)))

    def area(count: int) -> int:
        return math.prod(-(-extent // 2**count) * 2**count for extent in (height, width))

    return min(range(max(1, most - 3), most + 1), key=lambda count: (area(count), -count))


class Spatialise(nn.Module):
    r"""A vector becomes an image of `out` channels, :math:`S = (f_{conv} \circ f_{deconv})^n(Z^C)`.

    Each block doubles the size by a transposed convolution and looks at neighbours by a convolution of 3, both with
    norm and ReLU; none after the last. From one position for squares of a power of two; from a few, which all hold the
    vector, for other sizes, and then cut. With a vector of 64 and 512 pixels: nine blocks, 447,369 parameters.

    Attributes:
      height, width: of the image.
      channels: of the blocks.
      out: channels of the image.
      norm, dtype: as in `Norm`.
      remat: compute each block again for the gradient: the last ones hold 64 channels at full size.

    Example:
      >>> module = Spatialise(16, 16, channels=8)
      >>> jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False, mask=jnp.ones(2, bool)),
      ...                jnp.ones((2, 8)))[0].shape
      (2, 16, 16, 3)

    References:
      Hsieh et al., section 3.2 and Figure 2; specs/mdf_net.md, section 4.2.
    """

    height: int
    width: int
    channels: int = 64
    out: int = 3
    norm: NormKind = "batch"
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, vector: Float[ArrayLike, "b f"], *, train: bool, mask: Bool[ArrayLike, " b"]
    ) -> Float[Array, "b h w out"]:
        """The image of each vector; rows that `mask` leaves out move no statistics."""
        vector = jnp.asarray(vector).astype(self.dtype)
        count = doublings(self.height, self.width)
        start = (-(-self.height // 2**count), -(-self.width // 2**count))
        x = jnp.broadcast_to(vector[:, None, None, :], (len(vector), *start, vector.shape[1]))
        block_type = nn.remat(_Doubling) if self.remat else _Doubling
        for i in range(count):
            last = i == count - 1
            out = self.out if last else self.channels
            x = block_type(self.channels, out, last, self.norm, train, self.dtype, name=f"block_{i}")(x, mask)
        return x[:, : self.height, : self.width]


class _Doubling(nn.Module):
    channels: int
    out: int
    last: bool
    norm: NormKind
    train: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, mask: ArrayLike) -> Array:
        def normalise(x: Array, name: str) -> Array:
            norm = Norm(self.norm, GROUPS, dtype=self.dtype, name=name)
            return norm(x, train=self.train, mask=mask)

        common: dict[str, Any] = {"dtype": self.dtype, "kernel_init": he_normal}
        x = ConvTranspose(self.channels, 2, 2, "VALID", name="deconv", **common)(x)
        x = nn.relu(normalise(x, "deconv_bn"))
        x = normalise(Conv(self.out, 3, padding=1, name="conv", **common)(x), "conv_bn")
        return x if self.last else nn.relu(x)


class Repeat(nn.Module):
    """One dense layer of the vector, the same in every position of every map.

    Attributes:
      channels: of the maps.
      dtype: of the computation.
    """

    channels: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, vector: Float[ArrayLike, "b f"], sizes: tuple[tuple[int, int], ...]
    ) -> tuple[Float[Array, "b _h _w c"], ...]:
        """A map of each of the sizes (height, width)."""
        answer = nn.Dense(self.channels, dtype=self.dtype, name="dense")(jnp.asarray(vector).astype(self.dtype))
        shape = (len(answer), self.channels)
        return tuple(jnp.broadcast_to(answer[:, None, None, :], (shape[0], *size, shape[1])) for size in sizes)


class FuseMaps(nn.Module):
    r"""Two maps of one size become one: :math:`Z = f(C \oplus I)`, and with `residual` :math:`Z = f(C \oplus I)+I+C`.

    ============  =========================================================================
    kind          :math:`C \oplus I`
    ============  =========================================================================
    add           :math:`I + C`
    concatenate   :math:`W [I; C]`, back to the channels of the image
    gate          :math:`I + \sigma(W [I; C]) \odot C`
    film          :math:`I \odot (1 + \gamma(C)) + \beta(C)`, with linear gamma and beta
    ============  =========================================================================

    With convolutions of 1 for W, gamma and beta. Where there is no clinical data, :math:`C` counts as zero, and "film"
    leaves the image's map as it is.

    Attributes:
      kind: see above.
      depth: how many convolutions of 3, with norm and ReLU, follow as :math:`f`.
      residual: add both maps to what leaves them.
      norm, dtype: as in `Norm`.

    Example:
      >>> one = jnp.ones((1, 2, 2, 1))
      >>> fused = FuseMaps().apply({}, one, one, jnp.array([True]), train=False, mask=jnp.array([True]))
      >>> fused.ravel().tolist()
      [2.0, 2.0, 2.0, 2.0]

    References:
      Hsieh et al., Eq. 2; specs/mdf_net.md, M2 and M3. Perez et al. 2018 for "film".
    """

    kind: FuseKind = "add"
    depth: int = 0
    residual: bool = False
    norm: NormKind = "batch"
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[ArrayLike, "b h w c"],
        clinical: Float[ArrayLike, "b h w c"],
        there: Bool[ArrayLike, " b"],
        *,
        train: bool,
        mask: Bool[ArrayLike, " b"],
    ) -> Float[Array, "b h w c"]:
        """The fused map.

        Args:
          image, clinical: maps.
          there: which cases have clinical data.
          train, mask: as in `Norm`.
        """
        image, clinical = jnp.asarray(image).astype(self.dtype), jnp.asarray(clinical).astype(self.dtype)
        known = jnp.asarray(there)[:, None, None, None]
        clinical = jnp.where(known, clinical, 0)
        channels = image.shape[-1]

        def pointwise(x: Array, name: str) -> Array:
            return Conv(channels, 1, dtype=self.dtype, name=name)(x)

        if self.kind == "add":
            fused = image + clinical
        elif self.kind == "concatenate":
            fused = pointwise(jnp.concatenate([image, clinical], axis=-1), "join")
        elif self.kind == "gate":
            fused = image + nn.sigmoid(pointwise(jnp.concatenate([image, clinical], axis=-1), "gate")) * clinical
        elif self.kind == "film":
            scale, shift = (jnp.where(known, pointwise(clinical, name), 0) for name in ("scale", "shift"))
            fused = image * (1 + scale) + shift
        else:
            raise ValueError(f"FuseMaps: kind is {self.kind!r}; expected 'add', 'concatenate', 'gate' or 'film'.")
        for i in range(self.depth):
            bias = self.norm == "none"
            fused = Conv(channels, 3, padding=1, use_bias=bias, dtype=self.dtype, name=f"conv_{i}")(fused)
            fused = Norm(self.norm, GROUPS, dtype=self.dtype, name=f"bn_{i}")(fused, train=train, mask=mask)
            fused = nn.relu(fused)
        return fused + image + clinical if self.residual else fused


def append_vector(features: Float[ArrayLike, "b *n f"], vector: Float[ArrayLike, "b t"]) -> Float[Array, "b *n ft"]:
    r"""Every feature vector of a case with the case's vector behind it, :math:`[\tilde Z; Z^C]`.

    Args:
      features: of regions `(b, p, f)`, or of positions `(b, h, w, f)`.
      vector: of the case.

    Returns:
      Features in their own dtype.

    Example:
      >>> append_vector(jnp.zeros((1, 2, 1)), jnp.ones((1, 2))).tolist()
      [[[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]]

    References:
      Hsieh et al., Eq. 4.
    """
    features = jnp.asarray(features)
    rows = jnp.asarray(vector).astype(features.dtype)
    rows = rows.reshape(rows.shape[0], *(1,) * (features.ndim - 2), rows.shape[1])
    return jnp.concatenate([features, jnp.broadcast_to(rows, (*features.shape[:-1], rows.shape[-1]))], axis=-1)


def _unit_normal(key: Any, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    return jax.random.normal(key, shape, dtype)
