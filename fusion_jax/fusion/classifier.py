"""One composable classifier (an encoder a source, an operator, a head), and the fusion of whole classifiers.

The order of the sources is that of `encoders` (or `members`), a `FrozenDict` that Flax makes of any mapping. A row of a
source counts where the case is valid and the source is there; nothing else of the batch is looked at, so what an
absent input holds changes neither outputs nor gradients nor running statistics.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from fusion_jax.arrays import Array, ArrayLike, Bool, Float, Outputs
from fusion_jax.fusion.operators import Concatenate, Operator, concatenate
from fusion_jax.wording import listed

__all__ = ["AverageFusion", "FusionClassifier", "ProbabilityFusion", "drop_sources"]

Inputs = Mapping[str, Any]
Masks = Mapping[str, Bool[ArrayLike, "b"]]
SHOWN = 5
"""Names that a message lists."""


def drop_sources(
    key: jax.Array, present: Bool[ArrayLike, "b s"], probability: Float[ArrayLike, ""]
) -> Bool[Array, "b s"]:
    """Which sources are left after each was dropped at random; of those a case has, one always stays.

    Args:
      key: of the draw.
      present: which sources each case has, shape `(b, s)`.
      probability: with which a source is dropped.

    Example:
      >>> drop_sources(jax.random.key(0), jnp.array([[True, False]]), 0.99).tolist()
      [[True, False]]

    References:
      Neverova et al. 2016 (ModDrop).
    """
    present = jnp.asarray(present)
    drawn = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
    # Rounding can give two sources one number; both stay then.
    kept = (drawn >= probability) | (drawn == jnp.max(drawn, axis=1, keepdims=True))
    return present & kept


class FusionClassifier(nn.Module):
    """Encoders, a fusion operator, a head and a linear layer: every model from a single source to attention.

    Attributes:
      encoders: source to its encoder; the order is that of the fusion. Parameters are under `encoders_<source>`.
      fuse: operator over the features; parameters under `fuse`. One source passes through the default.
      head: module between fused vector and last layer, an `MLP` as a rule; None for none. Parameters under `head`.
      classes: logits of each case: 1 for two classes or survival, else the number of classes.
      source_heads: sources with a linear layer of their own, from features to logits; under `source_head_<source>`.
      stop_fused_gradient: whether the fused logits leave the encoders alone in training, so that only the heads of the
        sources train them.
      frozen_encoders: sources whose encoder stays as it is: no gradient, and running statistics as at inference. For
        training in stages; the optimiser's weight decay has to be kept away as well (see `frozen_rates`).
      source_dropout: probability with which a source is hidden from the fusion in training; a case keeps at least one.
        What stands for an absent source is then learned, where the operator has room for it.
      dtype: of the linear layers' computation; encoders, operator and head have their own.

    Example:
      >>> from fusion_jax.encoders import MLP, as_model
      >>> from fusion_jax.arrays import Batch
      >>> module = FusionClassifier({"pet": MLP((4,)), "age": MLP((2,))}, classes=1)
      >>> rows = jnp.ones(2, bool)
      >>> batch = Batch({"pet": jnp.ones((2, 3)), "age": jnp.ones((2, 1))}, {}, rows, {"pet": rows, "age": rows}, rows)
      >>> outputs, _ = as_model(module).apply(as_model(module).init(jax.random.key(0), batch), batch, train=False)
      >>> outputs.logits.shape, {name: outputs.features[name].shape for name in module.encoders}
      ((2, 1), {'pet': (2, 4), 'age': (2, 2)})
    """

    encoders: Mapping[str, nn.Module]
    fuse: Operator = concatenate
    head: nn.Module | None = None
    classes: int = 1
    source_heads: Sequence[str] = ()
    stop_fused_gradient: bool = False
    frozen_encoders: Sequence[str] = ()
    source_dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Freeze the mapping, which keeps its order and makes the module hashable."""
        self.encoders = FrozenDict(self.encoders)
        self.source_heads, self.frozen_encoders = tuple(self.source_heads), tuple(self.frozen_encoders)
        super().__post_init__()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in the order of the fusion."""
        return tuple(self.encoders)

    @nn.compact
    def __call__(self, inputs: Inputs, *, present: Masks, valid: Bool[ArrayLike, "b"], train: bool) -> Outputs:
        """Logits and features of a batch.

        Args:
          inputs: source to array; more sources than the model reads are welcome.
          present: source to which rows have it, each `(b,)`.
          valid: which rows are cases, shape `(b,)`.
          train: whether dropout acts (keys "dropout" and "sources") and running statistics move.

        Raises:
          ValueError: settings that contradict each other, or a batch without one of the sources.
        """
        self._check(inputs, present)
        masks = {name: jnp.asarray(valid) & jnp.asarray(present[name]) for name in self.sources}
        features = {}
        for name, encoder in self.encoders.items():
            frozen = name in self.frozen_encoders
            x = _hide(jnp.asarray(inputs[name]), masks[name])
            values = encoder(x, train=train and not frozen, mask=masks[name])
            features[name] = _hide(jax.lax.stop_gradient(values) if frozen else values, masks[name])
            self._check_trained(name, encoder)
        logits = {
            name: nn.Dense(self.classes, dtype=self.dtype, name=f"source_head_{name}")(features[name])
            for name in self.sources
            if name in self.source_heads
        }
        fused = self.fuse(
            jax.lax.stop_gradient(features) if self.stop_fused_gradient else features,
            self._shown(masks, train=train),
            order=self.sources,
            learn_missing=self.source_dropout > 0,
        )
        if self.head is not None:
            fused = self.head(fused, train=train, mask=jnp.asarray(valid))
        fused = nn.Dense(self.classes, dtype=self.dtype, name="classifier")(fused)
        return _outputs(fused, logits, features)

    def _shown(self, masks: dict[str, Array], *, train: bool) -> dict[str, Array]:
        if not (train and self.source_dropout > 0):
            return masks
        stacked = jnp.stack([masks[name] for name in self.sources], axis=1)
        kept = drop_sources(self.make_rng("sources"), stacked, self.source_dropout)
        return {name: kept[:, number] for number, name in enumerate(self.sources)}

    def _check(self, inputs: Inputs, present: Masks) -> None:
        if not self.encoders:
            raise ValueError("FusionClassifier: no encoder; expected one for every source that the model reads.")
        _check_sources(self, inputs, present)
        for attribute in ("source_heads", "frozen_encoders"):
            for name in getattr(self, attribute):
                if name not in self.encoders:
                    raise ValueError(
                        f"FusionClassifier: {attribute} names {name!r}; its encoders are "
                        f"{listed(self.sources, SHOWN)}. Name one of them."
                    )
        if not 0 <= self.source_dropout < 1:
            raise ValueError(
                f"FusionClassifier: source_dropout is {self.source_dropout}; expected a probability, at least 0 and "
                "below 1."
            )
        if self.classes < 1:
            raise ValueError(f"FusionClassifier: classes is {self.classes}; expected 1 for two classes, or more.")

    def _check_trained(self, name: str, encoder: nn.Module) -> None:
        """No encoder is left as it was drawn without anybody having said so."""
        unreached = self.stop_fused_gradient and name not in self.source_heads and name not in self.frozen_encoders
        if unreached and self.is_initializing() and encoder.variables.get("params"):
            raise ValueError(
                f"FusionClassifier: nothing would train the encoder of {name!r}: stop_fused_gradient keeps the fused "
                "loss from it, and it has no head. Add it to source_heads, or to frozen_encoders."
            )


class _OfMembers(nn.Module):
    """Fuses what whole classifiers say."""

    members: Mapping[str, FusionClassifier]

    def __post_init__(self) -> None:
        """Freeze the mapping, which keeps its order and makes the module hashable."""
        self.members = FrozenDict(self.members)
        super().__post_init__()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that the members read."""
        return _sources_of(self.members)


class ProbabilityFusion(_OfMembers):
    r"""Probabilities of whole classifiers, fused by an operator and a head.

    .. math:: f = \mathrm{head}(\mathrm{fuse}(\sigma(z_1), \dots, \sigma(z_s)))

    A classifier's row counts where at least one of its sources is there. What enters the fusion, and stands in
    `Outputs.features` under the classifier's name, is `(b, 1)` for one logit and `(b, k)` of the softmax for more;
    `Outputs.source_logits` holds the classifiers' own logits, so that a joint loss can reach them.

    Attributes:
      members: name to classifier; parameters under `members_<name>`.
      fuse: operator over the probabilities. By default one after the other, with one half in place of an absent one.
      head: module between fused vector and last layer; None for none.
      classes: logits of each case, as for `FusionClassifier`.
      dtype: of the last layer's computation.

    Example:
      >>> from fusion_jax.encoders import MLP, PassThrough, as_model
      >>> from fusion_jax.arrays import Batch
      >>> member = lambda name: FusionClassifier({name: PassThrough()})
      >>> module = ProbabilityFusion({"pet": member("pet"), "age": member("age")}, head=MLP((16,)))
      >>> rows = jnp.ones(2, bool)
      >>> batch = Batch({"pet": jnp.ones((2, 3)), "age": jnp.ones((2, 1))}, {}, rows, {"pet": rows, "age": rows}, rows)
      >>> variables = as_model(module).init(jax.random.key(0), batch)
      >>> variables["params"]["head"]["Dense_0"]["kernel"].shape
      (2, 16)

    References:
      Holste et al. 2021, Figure 1; specs/breast_mri_fusion.md, section 4 (the head's input follows the operator);
      Wang W. et al. 2020, Eq. 4 in the reading H3 (ii) of specs/hcc_fusion.md, with `classes=2` and no head.
    """

    fuse: Operator = Concatenate(missing=0.5)
    head: nn.Module | None = None
    classes: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, present: Masks, valid: Bool[ArrayLike, "b"], train: bool) -> Outputs:
        """Logits, members' logits and probabilities of a batch; arguments as for `FusionClassifier`."""
        logits, masks = _member_logits(self, self.members, inputs, present, valid, train=train)
        features = {name: _hide(_probabilities(z), masks[name]) for name, z in logits.items()}
        fused = self.fuse(features, masks, order=tuple(self.members))
        if self.head is not None:
            fused = self.head(fused, train=train, mask=jnp.asarray(valid))
        fused = nn.Dense(self.classes, dtype=self.dtype, name="classifier")(fused)
        return _outputs(fused, logits, features)


class AverageFusion(_OfMembers):
    r"""Mean of the predictions of whole classifiers, over those whose sources a case has; trains nothing of its own.

    .. math:: p = \frac{\sum_i m_i p_i}{\sum_i m_i}, \qquad
              z = \log\frac{p}{1-p} \;(\text{one logit}) \quad\text{or}\quad z_k = \log p_k

    computed without leaving the logarithm. A row without any source has logits 0.

    Attributes:
      members: name to classifier, all of the same `classes`; parameters under `members_<name>`.
      scale: mean of the "probability", or of the "logit" (geometric mean of odds; for survival the mean log risk).

    Example:
      >>> from fusion_jax.encoders import PassThrough, as_model
      >>> from fusion_jax.arrays import Batch
      >>> member = lambda name: FusionClassifier({name: PassThrough()})
      >>> module = AverageFusion({"pet": member("pet"), "age": member("age")})
      >>> rows = jnp.ones(1, bool)
      >>> batch = Batch({"pet": jnp.ones((1, 3)), "age": jnp.ones((1, 1))}, {}, rows, {"pet": rows, "age": ~rows}, rows)
      >>> outputs, _ = as_model(module).apply(as_model(module).init(jax.random.key(0), batch), batch, train=False)
      >>> bool(jnp.allclose(outputs.logits, outputs.source_logits["pet"]))
      True
    """

    scale: Literal["probability", "logit"] = "probability"

    @nn.compact
    def __call__(self, inputs: Inputs, *, present: Masks, valid: Bool[ArrayLike, "b"], train: bool) -> Outputs:
        """Logits, members' logits and probabilities of a batch; arguments as for `FusionClassifier`."""
        if self.scale not in ("probability", "logit"):
            raise ValueError(f"AverageFusion: scale is {self.scale!r}; expected 'probability' or 'logit'.")
        classes = {name: member.classes for name, member in self.members.items()}
        if len(set(classes.values())) > 1:
            found = ", ".join(f"{name} {count}" for name, count in classes.items())
            raise ValueError(f"AverageFusion: members have unequal classes ({found}); expected one number for all.")
        logits, masks = _member_logits(self, self.members, inputs, present, valid, train=train)
        features = {name: _hide(_probabilities(z), masks[name]) for name, z in logits.items()}
        stacked = jnp.stack([logits[name] for name in self.members], axis=1)
        mask = jnp.stack([masks[name] for name in self.members], axis=1)[:, :, None]
        fused = (_mean_logits if self.scale == "logit" else _mean_probability_logits)(stacked, mask)
        return _outputs(fused, logits, features)


def _mean_logits(logits: Float[Array, "b s k"], mask: Bool[Array, "b s 1"]) -> Float[Array, "b k"]:
    count = jnp.maximum(jnp.sum(mask, axis=1), 1).astype(logits.dtype)
    return jnp.sum(jnp.where(mask, logits, 0.0), axis=1) / count


def _mean_probability_logits(logits: Float[Array, "b s k"], mask: Bool[Array, "b s 1"]) -> Float[Array, "b k"]:
    """The number of members cancels in a difference of logarithms, and shifts all of a softmax alike."""
    # A row without members takes all of them, so that nothing infinite is differentiated, and is set to 0.
    some = jnp.any(mask, axis=1)
    counts = jnp.where(mask | ~some[:, None], 1.0, 0.0)

    def log_sum(terms: Array) -> Array:
        return jax.nn.logsumexp(terms, axis=1, b=jnp.broadcast_to(counts, terms.shape))

    if logits.shape[-1] == 1:
        fused = log_sum(jax.nn.log_sigmoid(logits)) - log_sum(jax.nn.log_sigmoid(-logits))
    else:
        fused = log_sum(jax.nn.log_softmax(logits, axis=-1)) - jnp.log(jnp.sum(counts, axis=1))
    return jnp.where(some, fused, 0.0)


def _member_logits(
    module: nn.Module,
    members: Mapping[str, FusionClassifier],
    inputs: Inputs,
    present: Masks,
    valid: Any,
    *,
    train: bool,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Logits of every member, and which rows it can say anything of."""
    if not members:
        raise ValueError(f"{type(module).__name__}: no members; expected at least one classifier.")
    _check_sources(module, inputs, present)
    logits, masks = {}, {}
    for name, member in members.items():
        logits[name] = member(inputs, present=present, valid=valid, train=train).logits
        seen = jnp.stack([jnp.asarray(present[source]) for source in member.encoders], axis=1)
        masks[name] = jnp.asarray(valid) & jnp.any(seen, axis=1)
    return logits, masks


def _sources_of(members: Mapping[str, FusionClassifier]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source for member in members.values() for source in member.encoders))


def _check_sources(module: Any, inputs: Inputs, present: Masks) -> None:
    lacking = [name for name in module.sources if name not in inputs or name not in present]
    if lacking:
        raise ValueError(
            f"{type(module).__name__} reads {listed(module.sources, SHOWN)}; the batch lacks input or mask of "
            f"{listed(lacking, SHOWN)}. Add the source to the cohort, or leave its encoder out of the model."
        )


def _probabilities(logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits, axis=-1)


def _hide(values: Array, mask: Bool[Array, "b"]) -> Array:
    """Zeros in the rows that do not count, also where NaN stands; no gradient goes there."""
    return jnp.where(mask.reshape(-1, *(1,) * (values.ndim - 1)), values, jnp.zeros((), values.dtype))


def _outputs(logits: Array, source_logits: dict[str, Array], features: dict[str, Array]) -> Outputs:
    return jax.tree.map(lambda a: a.astype(jnp.float32), Outputs(logits, source_logits, features))
