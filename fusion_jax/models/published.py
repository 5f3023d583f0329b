"""The models of four papers as expressions over encoders and fusion, with their published numbers of parameters.

Every function returns a Flax module for `as_model`. The trunk of the image can be another one, so that the same fusion
runs on small images and few cores: a function such as `partial(SmallCNN, widths=(8, 16))` or `ResNet18` that takes
`projection`. Numbers of parameters are those of the defaults, on the inputs of the paper.

- Holste et al. 2021: breast MRI, image `(b, 224, 224, 1)` and 33 clinical values; one logit.
- Wang W. et al. 2020: hepatocellular carcinoma, image `(b, 224, 224, 3)` and 9 clinical bits; softmax of two, in which
  column 1 is early recurrence.
- Peng et al. 2020: what an architecture searched for soft-tissue sarcoma is compared with; PET and CT `(b, h, w, 1)` or
  `(b, d, h, w, 1)`. The papers behind these rows print no widths: `STAND_INS` says so, and tables should.
- Wang Y. et al. 2023: portal hypertension, image `(b, 224, 224, 3)` and 3 markers in native units; softmax of two.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from flax import linen as nn

from fusion_jax.encoders import MLP, BitConv, PassThrough, ResNet50, ResNet152, ValueEncoding
from fusion_jax.fusion import FusionClassifier, Operator, ProbabilityFusion, add, concatenate, multiply
from fusion_jax.models.shallow_cnn import DenseHead, ShallowCNN
from fusion_jax.models.stacked import StackedClassifier

__all__ = [
    "PUBLISHED",
    "STAND_INS",
    "Trunk",
    "breast_image_only",
    "breast_non_image_only",
    "dlhn",
    "feature_fusion",
    "fusion_a",
    "fusion_b",
    "fusion_c",
    "fusion_d",
    "learned_feature_fusion",
    "multi_modal_cnn",
    "portal_image_only",
    "portal_markers_only",
    "portal_positional_fusion",
    "portal_raw_fusion",
    "probability_fusion",
    "recurrence_image_only",
    "three_d_multi_modal",
]

Trunk = Callable[..., nn.Module]
"""`trunk(projection=None)` or `trunk(projection=512)`: an image encoder, with a dense layer and ReLU behind it."""

DROPOUT = 0.25


# Holste et al. 2021.


def breast_image_only(*, trunk: Trunk = ResNet50) -> FusionClassifier:
    """Image-Only: 26,125,249 parameters.

    Example:
      >>> breast_image_only().sources
      ('image',)

    References:
      Holste et al. 2021, Figure 1; specs/breast_mri_fusion.md, section 4.
    """
    return FusionClassifier({"image": trunk(projection=None)}, head=MLP((1024, 512), dropout=DROPOUT))


def breast_non_image_only() -> FusionClassifier:
    """Non-Image-Only, with dropout once: 560,129 parameters.

    Example:
      >>> breast_non_image_only().sources
      ('clinical',)

    References:
      Holste et al. 2021, Figure 1; specs/breast_mri_fusion.md, section 4.
    """
    return FusionClassifier({"clinical": MLP((1024, 512), dropout=DROPOUT, dropout_after="last")})


def probability_fusion(*, operator: Operator | None = None, trunk: Trunk = ResNet50) -> ProbabilityFusion:
    """Probability Fusion `[P,P]`: 26,685,443 parameters.

    Args:
      operator: over the two probabilities; one after the other unless given. With `add` or `multiply` the head's input
        is one number, 16 parameters fewer.
      trunk: see the module.

    Example:
      >>> probability_fusion().sources
      ('image', 'clinical')

    References:
      Holste et al. 2021, Figure 1A; specs/breast_mri_fusion.md, section 4.
    """
    members = {"image": breast_image_only(trunk=trunk), "clinical": breast_non_image_only()}
    if operator is None:
        return ProbabilityFusion(members, head=MLP((16,)))
    return ProbabilityFusion(members, fuse=operator, head=MLP((16,)))


def feature_fusion(*, trunk: Trunk = ResNet50) -> FusionClassifier:
    """Feature Fusion `[L,S]`, learned image features beside the clinical values: 26,159,041 parameters.

    Example:
      >>> feature_fusion().sources
      ('image', 'clinical')

    References:
      Holste et al. 2021, Figure 1B; specs/breast_mri_fusion.md, section 4.
    """
    encoders = {"image": trunk(projection=None), "clinical": PassThrough()}
    return FusionClassifier(encoders, head=MLP((1024, 512), dropout=DROPOUT))


def learned_feature_fusion(
    *,
    operator: Operator = concatenate,
    training: Literal["one loss", "multiloss", "multiopt"] = "one loss",
    trunk: Trunk = ResNet50,
) -> FusionClassifier:
    """Learned Feature Fusion: `[L,L]` 25,635,777 parameters; `L+L` (`add`) and `L×L` (`multiply`) 25,373,633.

    Args:
      operator: over the two vectors of 512 features.
      training: "multiloss" and "multiopt" give every encoder a linear head of its own, 1,026 parameters more
        (25,636,803 for `[L,L]`), to be trained with the objective `multiloss`; "multiopt" also keeps the fused loss
        from the encoders.
      trunk: see the module.

    Raises:
      ValueError: an unknown `training`.

    Example:
      >>> learned_feature_fusion(training="multiopt").source_heads
      ('image', 'clinical')

    References:
      Holste et al. 2021, Figure 1C; specs/breast_mri_fusion.md, sections 3 and 4.
    """
    if training not in ("one loss", "multiloss", "multiopt"):
        raise ValueError(f"training is {training!r}; expected 'one loss', 'multiloss' or 'multiopt'.")
    return FusionClassifier(
        {"image": trunk(projection=512), "clinical": MLP((1024, 512))},
        fuse=operator,
        head=MLP((512,), dropout=DROPOUT, input_dropout=DROPOUT),
        source_heads=() if training == "one loss" else ("image", "clinical"),
        stop_fused_gradient=training == "multiopt",
    )


# Wang W. et al. 2020.


def recurrence_image_only(*, trunk: Trunk = ResNet50) -> FusionClassifier:
    """Deep model of the image alone: 23,512,130 parameters.

    Example:
      >>> recurrence_image_only().classes
      2

    References:
      Wang W. et al. 2020, Figure 3; specs/hcc_fusion.md, section 4.
    """
    return FusionClassifier({"image": trunk(projection=None)}, classes=2)


def fusion_a(*, trunk: Trunk = ResNet50) -> FusionClassifier:
    """Model A, 2,048 image features beside the clinical bits: 23,512,148 parameters.

    Example:
      >>> fusion_a().sources
      ('image', 'clinical')

    References:
      Wang W. et al. 2020, Figure 4; specs/hcc_fusion.md, section 4 and H5.
    """
    return FusionClassifier({"image": trunk(projection=None), "clinical": PassThrough()}, classes=2)


def fusion_b(*, image_width: int = 16, trunk: Trunk = ResNet50) -> FusionClassifier:
    """Model B, a few image features beside the clinical bits: 23,540,868 parameters.

    Args:
      image_width: features of the image; the paper does not say how many.
      trunk: see the module.

    Example:
      >>> fusion_b().sources
      ('image', 'clinical')

    References:
      Wang W. et al. 2020, Figure 4; specs/hcc_fusion.md, section 4, H1 and H2.
    """
    return FusionClassifier({"image": trunk(projection=image_width), "clinical": PassThrough()}, classes=2)


def fusion_c(
    *,
    image_width: int = 16,
    clinical_width: int | None = 16,
    layout: Literal["sequence", "map"] = "sequence",
    trunk: Trunk = ResNet50,
) -> FusionClassifier:
    """Model C, a convolution over the clinical bits: 23,543,266 parameters; 23,541,202 without `clinical_width`.

    Args:
      image_width: features of the image.
      clinical_width: features of the bits, by a dense layer with ReLU behind the convolution, as many as in model D;
        None hands on the 144 outputs of the convolution.
      layout: the nine bits in a "sequence", or as a 3 × 3 "map".
      trunk: see the module.

    Example:
      >>> fusion_c().sources
      ('image', 'clinical')

    References:
      Wang W. et al. 2020, Figure 4; specs/hcc_fusion.md, section 4, H1 and H4. The count is derived, not printed:
      trunk 23,508,032, image layer 32,784, convolution 64, clinical layer 2,320, last layer 66.
    """
    clinical = BitConv(filters=16, kernel=3, layout=layout, out=clinical_width)
    return FusionClassifier({"image": trunk(projection=image_width), "clinical": clinical}, classes=2)


def fusion_d(
    *,
    image_width: int = 16,
    clinical_width: int = 16,
    joint: Literal["none", "features", "probabilities"] = "none",
    trunk: Trunk = ResNet50,
) -> FusionClassifier | ProbabilityFusion:
    """Model D, a dense layer on either side: 23,541,042 parameters; 23,541,110 with the heads of the joint loss.

    Args:
      image_width, clinical_width: features of the two sources.
      joint: "features" adds a head to each source, for `joint(softmax_cross_entropy(), {"image": 0.25, "clinical":
        0.25, "fused": 0.5})`; "probabilities" fuses the softmax outputs of these heads instead of the features.
      trunk: see the module.

    Raises:
      ValueError: an unknown `joint`.

    Example:
      >>> fusion_d(joint="features").source_heads
      ('image', 'clinical')

    References:
      Wang W. et al. 2020, Figure 4 and Eq. 4; specs/hcc_fusion.md, section 4 and H3: (i) "features", (ii)
      "probabilities".
    """
    if joint not in ("none", "features", "probabilities"):
        raise ValueError(f"joint is {joint!r}; expected 'none', 'features' or 'probabilities'.")
    encoders = {"image": trunk(projection=image_width), "clinical": MLP((clinical_width,))}
    if joint == "probabilities":
        members = {name: FusionClassifier({name: encoder}, classes=2) for name, encoder in encoders.items()}
        return ProbabilityFusion(members, classes=2)
    return FusionClassifier(encoders, classes=2, source_heads=tuple(encoders) if joint == "features" else ())


# Wang Y. et al. 2023.


def portal_image_only(*, trunk: Trunk = ResNet152) -> FusionClassifier:
    """Image alone: 58,147,906 parameters, 4,098 of them behind the trunk.

    Example:
      >>> portal_image_only().classes
      2

    References:
      Wang Y. et al. 2023, Table 1; specs/fusion_quality.md, section 6.
    """
    return FusionClassifier({"image": trunk(projection=None)}, classes=2)


def portal_markers_only(*, size: int | None = None) -> FusionClassifier:
    """Markers alone: 8 parameters for three markers, or `2 size + 2` for their positional encoding.

    Args:
      size: coordinates of the encoding; None for the markers as they are. The paper's is 2,046.

    Example:
      >>> portal_markers_only(size=2046).sources
      ('markers',)

    References:
      Wang Y. et al. 2023, Table 1; specs/fusion_quality.md, section 6.
    """
    return FusionClassifier({"markers": _encoding(size)}, classes=2)


def portal_raw_fusion(*, trunk: Trunk = ResNet152) -> FusionClassifier:
    """Image features beside the three markers: 58,147,912 parameters, 4,104 of them behind the trunk.

    Example:
      >>> portal_raw_fusion().sources
      ('image', 'markers')

    References:
      Wang Y. et al. 2023, Table 1; specs/fusion_quality.md, section 6.
    """
    return FusionClassifier({"image": trunk(projection=None), "markers": _encoding(None)}, classes=2)


def portal_positional_fusion(*, size: int = 2046, trunk: Trunk = ResNet152) -> FusionClassifier:
    """Image features beside the positional encoding of the markers, 58,143,808 + 2 (2,048 + size) + 2 parameters.

    Args:
      size: coordinates of the encoding, a multiple of the number of markers; 192, 384, 768, 2,046, 3,072 and 6,144 in
        the paper, whose sizes relative to the image are .09, .19, .38, .999, 1.5 and 3.
      trunk: see the module.

    Example:
      >>> portal_positional_fusion(size=192).encoders["markers"].size
      192

    References:
      Wang Y. et al. 2023, Table 1; specs/fusion_quality.md, section 6, A11 and A12.
    """
    return FusionClassifier({"image": trunk(projection=None), "markers": _encoding(size)}, classes=2)


# Peng et al. 2020, the networks it compares with.


def multi_modal_cnn(
    *,
    sources: Sequence[str] = ("pet", "ct"),
    axes: Literal[2, 3] = 3,
    widths: Sequence[int] = (8, 16, 32),
    dense: Sequence[int] = (128, 64, 32),
    trunk: Trunk | None = None,
) -> StackedClassifier:
    """CNN of one image or of several as channels: 85,505 parameters of one and 85,577 of two, 180 × 180 in 2-D.

    In 3-D, 48³, there are 51,089 and 51,305: more in the convolutions, fewer behind them, where a side of 23 to 94
    positions leaves a single one.

    Args:
      sources: images, stacked as channels in this order.
      axes: of the images, 2 or 3.
      widths: channels of the three convolutions.
      dense: widths of the three layers behind them, with dropouts of .3, .2 and .1.
      trunk: an encoder in place of the convolutions.

    Raises:
      ValueError: another number of axes, or other than three widths.

    Example:
      >>> multi_modal_cnn(sources=("pet",), axes=2).sources
      ('pet',)

    References:
      Peng et al. 2020, Table 2; specs/mm_nas.md, sections 7 and 8: the rows are the DLHN network with one or two
      channels, in 2-D and 3-D.
    """
    if axes not in (2, 3):
        raise ValueError(f"axes is {axes}; expected 2 for images in the plane, or 3 for volumes.")
    for name, given in (("widths", widths), ("dense", dense)):
        if len(given) != 3:
            raise ValueError(f"{name} is {tuple(given)}; expected three numbers.")
    encoder = ShallowCNN(tuple(widths)) if trunk is None else trunk(projection=None)
    return StackedClassifier(tuple(sources), encoder, DenseHead(tuple(dense)), axes=axes)


def dlhn(
    *,
    sources: Sequence[str] = ("pet", "ct"),
    widths: Sequence[int] = (8, 16, 32),
    dense: Sequence[int] = (128, 64, 32),
    trunk: Trunk | None = None,
) -> StackedClassifier:
    """DLHN, a shallow CNN of the tumour's central slice: 85,577 parameters on two channels of 180 × 180.

    Args:
      sources, widths, dense, trunk: as for `multi_modal_cnn`. Diamant et al. give it the CT alone; its row in Peng et
        al. equals that of the 2-D CNN of PET and CT.

    Example:
      >>> dlhn(sources=("ct",)).axes
      2

    References:
      Diamant et al. 2019, in Peng et al. 2020, Table 1; specs/mm_nas.md, sections 7 (a) and 8. See `STAND_INS`.
    """
    return multi_modal_cnn(sources=sources, axes=2, widths=widths, dense=dense, trunk=trunk)


def three_d_multi_modal(
    *,
    images: Sequence[str] = ("pet", "ct"),
    features: str = "radiomics",
    widths: Sequence[int] = (8, 16, 32),
    dense: int = 128,
    dropout: float = 0.5,
    trunk: Trunk | None = None,
) -> FusionClassifier:
    """3DMCL, a 3-D CNN for each image and radiomic features beside them: 119,074 parameters on 48³ and 293 features.

    Args:
      images: each with a CNN of its own.
      features: source of radiomic features, standardised.
      widths: channels of the three convolutions.
      dense: width of the layer that sees everything.
      dropout: behind this layer; our choice.
      trunk: an encoder in place of the convolutions.

    Example:
      >>> three_d_multi_modal().sources
      ('pet', 'ct', 'radiomics')

    References:
      Peng et al. 2019 ("collaborative" learning of deep and hand-crafted features), in Peng et al. 2020, Table 1;
      specs/mm_nas.md, section 8. See `STAND_INS`.
    """
    encoders = {name: ShallowCNN(tuple(widths)) if trunk is None else trunk(projection=None) for name in images}
    encoders[features] = PassThrough()
    return FusionClassifier(encoders, head=MLP((dense,), dropout=dropout), classes=2)


def _encoding(size: int | None) -> nn.Module:
    return PassThrough() if size is None else ValueEncoding("positional", size=size)


def _with(function: Callable[..., nn.Module], **settings: object) -> Callable[..., nn.Module]:
    """The function with settings, and its other arguments still open."""
    return lambda **others: function(**settings, **others)


PUBLISHED: Mapping[str, Callable[..., nn.Module]] = {
    "Image-Only": breast_image_only,
    "Non-Image-Only": breast_non_image_only,
    "Probability Fusion [P,P]": probability_fusion,
    "Feature Fusion [L,S]": feature_fusion,
    "Learned Feature Fusion [L,L]": learned_feature_fusion,
    "L+L": _with(learned_feature_fusion, operator=add),
    "L×L": _with(learned_feature_fusion, operator=multiply),
    "[L,L] multiloss": _with(learned_feature_fusion, training="multiloss"),
    "[L,L] multiopt": _with(learned_feature_fusion, training="multiopt"),
    "Deep (image only)": recurrence_image_only,
    "Fusion A": fusion_a,
    "Fusion B": fusion_b,
    "Fusion C": fusion_c,
    "Fusion D": fusion_d,
    "Fusion D, joint loss": _with(fusion_d, joint="features"),
    "Fusion D, joint probabilities": _with(fusion_d, joint="probabilities"),
    "image only": portal_image_only,
    "markers only": portal_markers_only,
    "PE markers only": _with(portal_markers_only, size=2046),
    "image + raw markers": portal_raw_fusion,
    "DLHN": dlhn,
    "3DMCL": three_d_multi_modal,
    "2-D CT CNN": _with(multi_modal_cnn, sources=("ct",), axes=2),
    "2-D PET CNN": _with(multi_modal_cnn, sources=("pet",), axes=2),
    "2-D PET-CT CNN": _with(multi_modal_cnn, sources=("pet", "ct"), axes=2),
    "3-D CT CNN": _with(multi_modal_cnn, sources=("ct",), axes=3),
    "3-D PET CNN": _with(multi_modal_cnn, sources=("pet",), axes=3),
    "3-D PET-CT CNN": _with(multi_modal_cnn, sources=("pet", "ct"), axes=3),
} | {f"image + PE, {size}": _with(portal_positional_fusion, size=size) for size in (192, 384, 768, 2046, 3072, 6144)}
"""Every model by the name of its paper's tables, to a function that takes `trunk` where the model has an image."""


STAND_INS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            "DLHN",
            "3DMCL",
            "2-D CT CNN",
            "2-D PET CNN",
            "2-D PET-CT CNN",
            "3-D CT CNN",
            "3-D PET CNN",
            "3-D PET-CT CNN",
        ),
        "stand-in, widths not published",
    )
)
"""Models of `PUBLISHED` whose layers are ours, and what tables say of them."""
