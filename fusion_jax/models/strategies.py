"""Networks for anybody's cohort: a strategy by name, encoders by name, widths that suit a few hundred cases."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn

from fusion_jax.data.cohort import Cohort
from fusion_jax.encoders import (
    MLP,
    BitConv,
    MobileNetV3Large,
    MobileNetV3Small,
    PassThrough,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    SmallCNN,
    ValueEncoding,
    fit_value_encoding,
)
from fusion_jax.fusion import OPERATORS, AverageFusion, FusionClassifier, ProbabilityFusion
from fusion_jax.records.arguments import close_to
from fusion_jax.wording import listed

__all__ = [
    "CLINICAL_ENCODERS",
    "FUSED_BY",
    "IMAGE_ENCODERS",
    "STRATEGIES",
    "Design",
    "build",
    "check_encoders",
    "published",
    "strategy_sources",
]

FUSED_BY: Mapping[str, str] = {
    "concatenate": "concatenate",
    "feature-fusion": "concatenate",
    "positional": "concatenate",
    "add": "add",
    "multiply": "multiply",
    "average": "average",
    "gated": "gated",
    "film": "film",
    "bilinear": "low_rank_bilinear",
    "cross-attention": "cross_attention",
}
"""Strategy to the operator over features; `probability` and `averaging` fuse what whole networks say."""

WIDTHS = {"gated": "width", "low_rank_bilinear": "rank", "cross_attention": "width"}
"""Operators that project, and the attribute that says to how many features."""

STRATEGIES: tuple[str, ...] = (
    "image-only",
    "clinical-only",
    *FUSED_BY,
    "probability",
    "averaging",
    "published",
    "genotype",
)

IMAGE_ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "mobilenet-small": MobileNetV3Small,
    "mobilenet-large": MobileNetV3Large,
}

CLINICAL_ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "bits": BitConv,
    "pass-through": PassThrough,
    **{
        kind: partial(ValueEncoding, kind)
        for kind in ("positional", "linear", "pca", "fourier", "repetition", "learned")
    },
}

ENCODINGS = tuple(name for name, made in CLINICAL_ENCODERS.items() if isinstance(made, partial))

PROBABILITY_WIDTH = 16


class Design(NamedTuple):
    """What a network is built from.

    Attributes:
      strategy: name of it, or `<source>-only`.
      sources: that it reads, in its order.
      shapes: source to the shape of a case.
      classes: logits: 1 for two classes or survival, else the number of classes.
      survival: whether the one logit is a log risk.
      encoder: of images without an own one.
      encoders: source to the name of its encoder, or an object with `name` and settings of it.
      encoding: settings of the encoding of clinical values under `positional`.
      features: of every source, as far as the encoder can choose.
      head: widths of the layers between fusion and last layer.
      dropout: in the head.
      source_heads: whether every source has logits of its own.
      stop_fused_gradient: whether the fused loss leaves the encoders alone.
      source_dropout: probability with which a source is hidden in training.
      dtype: of the computation.
    """

    strategy: str
    sources: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    classes: int
    survival: bool = False
    encoder: str | Mapping[str, Any] = "cnn"
    encoders: Mapping[str, str | Mapping[str, Any]] = {}
    encoding: Mapping[str, Any] = {}
    features: int = 32
    head: tuple[int, ...] = (32,)
    dropout: float = 0.25
    source_heads: bool = False
    stop_fused_gradient: bool = False
    source_dropout: float = 0.0
    dtype: str = "float32"


def strategy_sources(cohort: Cohort, strategy: str, inputs: Sequence[str] = ()) -> tuple[str, ...]:
    """Sources that a strategy reads: images first, then clinical data, each in the order of the cohort.

    Args:
      cohort: any.
      strategy: its name.
      inputs: the only sources to be read; all by default.

    Raises:
      ValueError: the cohort lacks what the strategy needs; the message says what it has.

    Example:
      >>> import numpy as np
      >>> cohort = Cohort.from_arrays({"clinical": np.zeros((2, 3)), "ct": np.zeros((2, 4, 4, 1))}, label=[0, 1])
      >>> strategy_sources(cohort, "gated"), strategy_sources(cohort, "ct-only")
      (('ct', 'clinical'), ('ct',))
    """
    images = [name for name, source in cohort.sources.items() if source.kind == "image"]
    clinical = [name for name, source in cohort.sources.items() if source.kind in ("table", "array")]
    for name in inputs:
        if name not in (*images, *clinical):
            raise ValueError(
                f"{cohort.name}: no source {name!r} that a network reads; {close_to(name, [*images, *clinical])}"
            )
    images, clinical = ([name for name in part if not inputs or name in inputs] for part in (images, clinical))
    had = f"it has the images {listed(images, 8) or 'none'} and the clinical sources {listed(clinical, 8) or 'none'}"
    if strategy not in STRATEGIES:
        source = strategy.removesuffix("-only")
        if source not in (*images, *clinical):
            raise ValueError(
                f"{cohort.name}: {strategy} reads a source {source!r}; {close_to(source, [*images, *clinical])}"
            )
        return (source,)
    if strategy == "image-only":
        if not images:
            raise ValueError(f"{cohort.name}: image-only needs an image; {had}. Choose clinical models.")
        return tuple(images)
    if strategy == "clinical-only":
        if not clinical:
            raise ValueError(
                f"{cohort.name}: clinical-only needs clinical data; {had}. Declare a source of columns: "
                '[sources.clinical] columns = ["age", ...].'
            )
        return tuple(clinical)
    found = (*images, *clinical)
    if strategy == "genotype" and not images:
        raise ValueError(f"{cohort.name}: {strategy} needs an image; {had}.")
    if strategy in ("published", "genotype"):
        return found
    if len(found) < 2:
        raise ValueError(
            f"{cohort.name}: {strategy} fuses at least two sources; {had}. Choose image-only or clinical-only, or add "
            "a source."
        )
    if strategy in ("feature-fusion", "positional") and not (images and clinical):
        raise ValueError(f"{cohort.name}: {strategy} fuses images with clinical data; {had}. Choose concatenate.")
    return found


def build(design: Design, values: Mapping[str, Any] | None = None) -> nn.Module:
    """The network of a design.

    Args:
      design: what to build.
      values: clinical source to its values of the training cases, `(n, t)`, for encodings that are fitted; not needed
        for a network whose variables are at hand.

    Raises:
      ValueError: an encoder or setting that does not exist or does not fit its source; the message names it.

    Example:
      >>> module = build(Design("concatenate", ("ct", "clinical"), {"ct": (8, 8, 1), "clinical": (3,)}, classes=1))
      >>> module.sources
      ('ct', 'clinical')
    """
    encoders = {name: _encoder(design, name, (values or {}).get(name)) for name in design.sources}
    dtype = design.dtype
    common: dict[str, Any] = {"classes": design.classes, "dtype": dtype}
    if design.strategy in ("probability", "averaging"):
        members = {
            name: FusionClassifier({name: encoder}, head=_head(design), **common) for name, encoder in encoders.items()
        }
        if design.strategy == "averaging":
            return AverageFusion(members, scale="logit" if design.survival else "probability")
        return ProbabilityFusion(members, head=MLP((PROBABILITY_WIDTH,), dtype=dtype), **common)
    operator = OPERATORS[FUSED_BY.get(design.strategy, "concatenate")]
    settings: dict[str, Any] = {"dtype": dtype}
    kind = FUSED_BY.get(design.strategy, "concatenate")
    if kind in WIDTHS:
        settings[WIDTHS[kind]] = design.features
    return FusionClassifier(
        encoders,
        fuse=operator.clone(**settings),
        head=_head(design),
        source_heads=design.sources if design.source_heads else (),
        stop_fused_gradient=design.stop_fused_gradient,
        source_dropout=design.source_dropout,
        **common,
    )


def check_encoders(
    cohort: Cohort,
    sources: Sequence[str],
    encoder: str | Mapping[str, Any] | None,
    encoders: Mapping[str, str | Mapping[str, Any]],
) -> None:
    """Refuse encoders that do not exist, before anything is read or trained.

    Args:
      cohort: with the sources.
      sources: that the network reads.
      encoder: of images without an own one.
      encoders: of sources that have an own one.

    Raises:
      ValueError: no such encoder, setting or source; the message names the close ones.
    """
    for name in encoders:
        if name not in cohort.sources:
            raise ValueError(f"encoders: {cohort.name} has no source {name!r}; {close_to(name, tuple(cohort.sources))}")
    for name in sources:
        image = cohort.sources[name].kind in ("image", "mask")
        wanted = encoders.get(name) or (encoder if image else None)
        if wanted is not None:
            _named(wanted, IMAGE_ENCODERS if image else CLINICAL_ENCODERS, f"source {name!r}")


def published(name: str, settings: Mapping[str, Any], trunk: str | Mapping[str, Any] | None) -> nn.Module:
    """A published network.

    Args:
      name: in `fusion_jax.models.published.PUBLISHED`.
      settings: of it, numbers and words.
      trunk: encoder of its images in place of its own, by name or as an object with `name`.

    Raises:
      ValueError: no such network or setting.
    """
    from fusion_jax.models.published import PUBLISHED

    if name not in PUBLISHED:
        raise ValueError(f"no published model {name!r}; {close_to(name, PUBLISHED)}")
    given = dict(settings)
    if trunk is not None:
        given["trunk"] = partial(_made, trunk, IMAGE_ENCODERS, "the images")
    try:
        return PUBLISHED[name](**given)
    except TypeError as error:
        raise ValueError(f"published model {name!r}: {error}. It takes other settings.") from None


def _made(
    wanted: str | Mapping[str, Any], choices: Mapping[str, Callable[..., nn.Module]], of: str, **defaults: Any
) -> nn.Module:
    """An encoder by name and settings; `defaults` are those that the caller would like, where they exist."""
    made, settings = _named(wanted, choices, of)
    known = _settings(made)
    taken = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return made(**({key: value for key, value in defaults.items() if key in known} | taken))


def _named(
    wanted: str | Mapping[str, Any], choices: Mapping[str, Callable[..., nn.Module]], of: str
) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """What makes an encoder, and the settings that were given."""
    settings: dict[str, Any] = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = str(settings.pop("name", ""))
    if name not in choices:
        raise ValueError(f"encoder of {of}: no {name!r}; {close_to(name, choices)}")
    made = choices[name]
    known = _settings(made)
    for key in settings:
        if key not in known:
            raise ValueError(f"encoder {name!r} of {of}: no setting {key!r}; {close_to(key, known)}")
    return made, settings


def _settings(made: Callable[..., nn.Module]) -> tuple[str, ...]:
    """Names of the attributes of an encoder that are still open."""
    function: Any = made.func if isinstance(made, partial) else made
    names = [name for name in function.__dataclass_fields__ if name not in ("parent", "name")]
    taken = {*made.keywords, *names[: len(made.args)]} if isinstance(made, partial) else set()
    return tuple(name for name in names if name not in taken)


def _encoder(design: Design, source: str, values: Any = None) -> nn.Module:
    shape: Any = design.shapes[source]
    own = design.encoders.get(source)
    if len(shape) > 1:
        return _made(
            own or design.encoder, IMAGE_ENCODERS, f"source {source!r}", projection=design.features, dtype=design.dtype
        )
    width = shape[-1]
    if own is None:
        own = _clinical_default(design, width)
    settings: dict[str, Any] = {"name": own} if isinstance(own, str) else dict(own)
    if settings.get("name") in ENCODINGS:
        settings.setdefault("size", _even_multiple(width, design.features))
    encoder = _made(
        settings,
        CLINICAL_ENCODERS,
        f"source {source!r}",
        widths=(design.features,),
        out=design.features,
        dtype=design.dtype,
    )
    if isinstance(encoder, ValueEncoding) and values is not None:
        return fit_value_encoding(encoder, values)
    return encoder


def _clinical_default(design: Design, width: int) -> str | Mapping[str, Any]:
    images = any(len(shape) > 1 for shape in design.shapes.values())
    if design.strategy == "feature-fusion" and images:
        return "pass-through"
    if design.strategy == "positional" and images:
        given: dict[str, Any] = dict(design.encoding)
        return {"name": given.pop("kind", "positional"), **given}
    return "mlp"


def _even_multiple(columns: int, features: int) -> int:
    """The encoding size nearest to the features of an image: as many sines as cosines for every column."""
    return 2 * columns * max(1, round(features / (2 * columns)))


def _head(design: Design) -> nn.Module | None:
    return MLP(design.head, dropout=design.dropout, dtype=design.dtype) if design.head else None
