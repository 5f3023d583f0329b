"""Images of several sources as the channels of one encoder: fusion before the first convolution."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fusion_jax.arrays import Array, ArrayLike, Bool, Outputs
from fusion_jax.wording import listed

__all__ = ["StackedClassifier"]


class StackedClassifier(nn.Module):
    """One encoder of the images of all sources, stacked as channels in the order of `sources`; a head; a linear layer.

    An absent image counts as zeros, the mean of an image that was standardised. `Outputs.features` of a source are what
    the encoder makes of it with zeros in place of all others: nothing else here belongs to one source.

    Attributes:
      sources: images on one grid; each may have several channels.
      encoder: of the stacked images; parameters under `encoder`.
      head: module between features and last layer; None for none. Parameters under `head`.
      classes: logits of each case: 1 for two classes or survival, else the number of classes.
      axes: 2 for images in the plane, 3 for volumes; None for either.
      dtype: of the last layer's computation; encoder and head have their own.

    Example:
      >>> from fusion_jax.arrays import Batch
      >>> from fusion_jax.encoders import SmallCNN, as_model
      >>> model = as_model(StackedClassifier(("pet", "ct"), SmallCNN(widths=(4,))))
      >>> rows, image = jnp.ones(2, bool), jnp.ones((2, 8, 8, 8, 1))
      >>> batch = Batch({"pet": image, "ct": image}, {}, rows, {"pet": rows, "ct": rows}, rows)
      >>> outputs, _ = model.apply(model.init(jax.random.key(0), batch), batch, train=False)
      >>> outputs.logits.shape, outputs.features["ct"].shape
      ((2, 1), (2, 4))
    """

    sources: Sequence[str]
    encoder: nn.Module
    head: nn.Module | None = None
    classes: int = 1
    axes: int | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Make the module hashable."""
        self.sources = tuple(self.sources)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        present: Mapping[str, Bool[ArrayLike, "b"]],
        valid: Bool[ArrayLike, "b"],
        train: bool,
    ) -> Outputs:
        """Logits and features of a batch; arguments as for `FusionClassifier`.

        Raises:
          ValueError: no source, a batch without one of them, or images on different grids or of other dimensions.
        """
        self._check(inputs, present)
        images: dict[str, Array] = {}
        for name in self.sources:
            there = (jnp.asarray(valid) & jnp.asarray(present[name])).reshape(-1, *(1,) * (inputs[name].ndim - 1))
            image = jnp.asarray(inputs[name])
            images[name] = jnp.where(there, image, jnp.zeros((), image.dtype))
        mask = jnp.asarray(valid)
        h = self.encoder(jnp.concatenate(list(images.values()), axis=-1), train=train, mask=mask)
        features = {}
        for name in self.sources:
            alone = [image if other == name else jnp.zeros_like(image) for other, image in images.items()]
            # As at inference: running statistics move once, with the stack. Who asks for no features pays nothing.
            values = self.encoder(jnp.concatenate(alone, axis=-1), train=False, mask=mask)
            there = jnp.asarray(valid) & jnp.asarray(present[name])
            features[name] = jnp.where(there[:, None], values, 0.0).astype(jnp.float32)
        if self.head is not None:
            h = self.head(h, train=train, mask=mask)
        logits = nn.Dense(self.classes, dtype=self.dtype, name="classifier")(h)
        return Outputs(logits.astype(jnp.float32), {}, features)

    def _check(self, inputs: Mapping[str, Any], present: Mapping[str, Any]) -> None:
        if not self.sources:
            raise ValueError("StackedClassifier: no source; expected at least one image.")
        lacking = [name for name in self.sources if name not in inputs or name not in present]
        if lacking:
            raise ValueError(
                f"StackedClassifier reads {listed(self.sources)}; the batch lacks input or mask of {listed(lacking)}. "
                "Add the source to the cohort, or leave it out of the model."
            )
        first = self.sources[0]
        grid = inputs[first].shape[1:-1]
        for name in self.sources:
            if inputs[name].shape[1:-1] != grid:
                raise ValueError(
                    f"StackedClassifier: {first} has {grid} positions, {name} {inputs[name].shape[1:-1]}; expected one "
                    "grid for images that are stacked. Resample them, or give each an encoder (FusionClassifier)."
                )
        if self.axes is not None and len(grid) != self.axes:
            raise ValueError(
                f"StackedClassifier: {first} has {len(grid)} axes, {grid}; expected {self.axes}. "
                f"{'Take a slice or a projection' if self.axes == 2 else 'Give volumes'}, or the network of the other "
                "number of axes."
            )
