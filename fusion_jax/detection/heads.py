"""Heads: what reads maps or regions and answers with logits and box deltas, always in float32."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Float, Key
from fusion_jax.encoders.initial import Initializer, he_normal
from fusion_jax.encoders.layers import Conv, ConvTranspose

__all__ = ["BoxHead", "BoxPredictor", "DenseHead", "MaskHead", "MaskPredictor", "ProposalHead"]

MASK_CONVOLUTIONS = 4
TOWER = 4
"""Convolutions before each answer of a one-stage head (Lin et al. 2017)."""

PRIOR = 0.01
"""Probability of an object that an untrained one-stage head answers, so that the many empty anchors do not rule the
first steps (Lin et al. 2017, section 4.1)."""


def small_normal(deviation: float) -> Initializer:
    """Initial values with a standard deviation, drawn as one row: see `fusion_jax.encoders.initial`.

    Args:
      deviation: 0.01 for the layers of proposals (Ren et al. 2015), 0.001 for box deltas.
    """

    def initial(key: Key, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
        row = jax.random.normal(key, (math.prod(shape),), dtype)
        return (row * jnp.asarray(deviation, dtype)).reshape(shape)

    return initial


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor, by one head for all levels: 41,803 parameters with 64 channels.

    Attributes:
      anchors: of a cell.
      dtype: of the computation.

    Example:
      >>> head = ProposalHead(anchors=3)
      >>> (objectness, deltas), _ = head.init_with_output(jax.random.key(0), (jnp.zeros((1, 4, 4, 8)),))
      >>> objectness.shape, deltas.shape
      ((1, 48), (1, 48, 4))

    References:
      Ren et al. 2015, section 3.1; the order of anchors is that of `fusion_jax.detection.anchors`.
    """

    anchors: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[ArrayLike, "b _h _w c"], ...]
    ) -> tuple[Float[Array, "b a"], Float[Array, "b a 4"]]:
        """Objectness logits and deltas, float32, the levels one after the other."""
        channels = jnp.shape(maps[0])[-1]
        initial = small_normal(0.01)
        conv = Conv(channels, 3, padding=1, dtype=self.dtype, kernel_init=initial, name="conv")
        objectness = Conv(self.anchors, 1, dtype=self.dtype, kernel_init=initial, name="objectness")
        deltas = Conv(4 * self.anchors, 1, dtype=self.dtype, kernel_init=initial, name="deltas")
        hidden = [nn.relu(conv(one)) for one in maps]
        return _by_anchor([objectness(one) for one in hidden], 1)[..., 0], _by_anchor([deltas(x) for x in hidden], 4)


class BoxHead(nn.Module):
    """Two dense layers with ReLU over the flattened features of a region.

    Attributes:
      hidden: width of both.
      dtype: of the computation.
    """

    hidden: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, regions: Float[ArrayLike, "*n f"]) -> Float[Array, "*n hidden"]:
        """Features of every region."""
        x = jnp.asarray(regions).astype(self.dtype)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal, name=name)(x))
        return x


class BoxPredictor(nn.Module):
    """Logits of every class, the background first, and box deltas for each.

    Attributes:
      classes: with the background.
      dtype: of the computation.
    """

    classes: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "*n f"]) -> tuple[Float[Array, "*n classes"], Float[Array, "*n classes 4"]]:
        """Class logits and deltas, float32."""
        classes, boxes = small_normal(0.01), small_normal(0.001)
        logits = nn.Dense(self.classes, dtype=self.dtype, kernel_init=classes, name="classes")(x)
        deltas = nn.Dense(4 * self.classes, dtype=self.dtype, kernel_init=boxes, name="boxes")(x)
        return logits.astype(jnp.float32), deltas.reshape(*deltas.shape[:-1], self.classes, 4).astype(jnp.float32)


class MaskHead(nn.Module):
    """Four convolutions of 3 with ReLU over the features of a region.

    Attributes:
      hidden: channels.
      dtype: of the computation.
    """

    hidden: int = 256
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, regions: Float[ArrayLike, "n h w c"]) -> Float[Array, "n h w hidden"]:
        """Features of every position."""
        x = jnp.asarray(regions).astype(self.dtype)
        for i in range(MASK_CONVOLUTIONS):
            conv = Conv(self.hidden, 3, padding=1, dtype=self.dtype, kernel_init=he_normal, name=f"conv_{i}")
            x = nn.relu(conv(x))
        return x


class MaskPredictor(nn.Module):
    """Twice as many positions along both axes, and a logit of every class in each.

    Attributes:
      classes: with the background.
      hidden: channels in between.
      dtype: of the computation.

    References:
      He et al. 2017, "Mask R-CNN", Figure 4.
    """

    classes: int
    hidden: int = 256
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "n h w c"]) -> Float[Array, "n h2 w2 classes"]:
        """Mask logits, float32."""
        deconv = ConvTranspose(self.hidden, 2, 2, "VALID", dtype=self.dtype, kernel_init=he_normal, name="deconv")
        x = nn.relu(deconv(x))
        return Conv(self.classes, 1, dtype=self.dtype, kernel_init=he_normal, name="logits")(x).astype(jnp.float32)


class DenseHead(nn.Module):
    """One stage: class logits and box deltas of every anchor, each behind four convolutions of 3 with ReLU.

    Attributes:
      classes: without a background, which is the answer of no class.
      anchors: of a cell.
      hidden: channels of the convolutions.
      dtype: of the computation.

    References:
      Lin et al. 2017, "Focal loss for dense object detection", section 4.
    """

    classes: int
    anchors: int
    hidden: int = 64
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[ArrayLike, "b _h _w c"], ...]
    ) -> tuple[Float[Array, "b a classes"], Float[Array, "b a 4"]]:
        """Class logits and deltas, float32, the levels one after the other."""
        answers = []
        for name, width, bias in (
            ("classes", self.classes, -math.log((1 - PRIOR) / PRIOR)),
            ("boxes", 4, 0.0),
        ):
            tower = [
                Conv(self.hidden, 3, padding=1, dtype=self.dtype, kernel_init=he_normal, name=f"{name}_conv_{i}")
                for i in range(TOWER)
            ]
            last = Conv(
                self.anchors * width,
                3,
                padding=1,
                dtype=self.dtype,
                kernel_init=small_normal(0.01),
                bias_init=nn.initializers.constant(bias),
                name=name,
            )
            found = []
            for one in maps:
                for conv in tower:
                    one = nn.relu(conv(one))
                found.append(last(one))
            answers.append(_by_anchor(found, width))
        return answers[0], answers[1]


def _by_anchor(maps: list[Array], width: int) -> Array:
    """`width` numbers of every anchor, `(b, a, width)`, in the order of `make_anchors`."""
    return jnp.concatenate([one.reshape(len(one), -1, width) for one in maps], axis=1).astype(jnp.float32)
