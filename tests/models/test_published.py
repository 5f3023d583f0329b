"""Published models have the published numbers of parameters, and run."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from fusion_jax.arrays import Batch
from fusion_jax.encoders import SmallCNN, as_model, count_parameters
from fusion_jax.models.published import (
    PUBLISHED,
    fusion_a,
    fusion_c,
    fusion_d,
    learned_feature_fusion,
    recurrence_image_only,
)
from tests.helpers import assert_close

COUNTS = {
    # Holste et al. 2021.
    "Image-Only": 26_125_249,
    "Non-Image-Only": 560_129,
    "Probability Fusion [P,P]": 26_685_443,
    "Feature Fusion [L,S]": 26_159_041,
    "Learned Feature Fusion [L,L]": 25_635_777,
    "L+L": 25_373_633,
    "L×L": 25_373_633,
    "[L,L] multiloss": 25_636_803,
    "[L,L] multiopt": 25_636_803,
    # Wang W. et al. 2020; the image model's and C's by arithmetic.
    "Deep (image only)": 23_508_032 + 2 * 2048 + 2,
    "Fusion A": 23_512_148,
    "Fusion B": 23_540_868,
    "Fusion C": 23_508_032 + 32_784 + (3 * 16 + 16) + (144 * 16 + 16) + (32 * 2 + 2),
    "Fusion D": 23_541_042,
    "Fusion D, joint loss": 23_541_110,
    "Fusion D, joint probabilities": 23_508_032 + 32_784 + 160 + 2 * 34 + (4 * 2 + 2),
    # Wang Y. et al. 2023.
    "image only": 58_143_808 + 2 * 2048 + 2,
    "markers only": 2 * 3 + 2,
    "PE markers only": 2 * 2046 + 2,
    "image + raw markers": 58_143_808 + 2 * 2051 + 2,
} | {f"image + PE, {size}": 58_143_808 + 2 * (2048 + size) + 2 for size in (192, 384, 768, 2046, 3072, 6144)}

CLINICAL = {"breast": ("clinical", 33), "recurrence": ("clinical", 9), "portal": ("markers", 3)}


def study_of(name):
    position = list(PUBLISHED).index(name)
    return "breast" if position < 9 else "recurrence" if position < 16 else "portal"


def batch_of(study, size, rows=2):
    channels = 1 if study == "breast" else 3
    name, columns = CLINICAL[study]
    there = jnp.ones(rows, bool)
    inputs = {"image": jnp.ones((rows, size, size, channels)), name: jnp.ones((rows, columns))}
    return Batch(inputs, {}, there, {"image": there, name: there}, jnp.arange(rows))


QUICK = [name for name in PUBLISHED if not name.startswith("image + PE") or name.endswith("2046")]
"""All but the other sizes of the encoding, which differ from one another in their last layer alone."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PUBLISHED]
)
def test_number_of_parameters_is_the_published_one(name, key):
    module = PUBLISHED[name]()
    variables = jax.eval_shape(as_model(module).init, key, batch_of(study_of(name), 224))
    assert count_parameters(variables) == COUNTS[name]


def test_every_count_belongs_to_a_model():
    assert set(COUNTS) == set(PUBLISHED)


def test_docstrings_state_the_counts():
    for name, function in PUBLISHED.items():
        if function.__doc__ and not name.startswith(("image + PE", "markers")):
            assert f"{COUNTS[name]:,}" in function.__doc__, name
    assert f"{COUNTS['[L,L] multiloss']:,}" in str(learned_feature_fusion.__doc__)
    assert f"{COUNTS['L+L']:,}" in str(learned_feature_fusion.__doc__)
    assert f"{COUNTS['Fusion D, joint loss']:,}" in str(fusion_d.__doc__)


def test_model_c_without_the_dense_layer_hands_on_144_outputs(key):
    variables = jax.eval_shape(as_model(fusion_c(clinical_width=None)).init, key, batch_of("recurrence", 224))
    assert count_parameters(variables) == 23_541_202


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_of_logits_features_and_heads(name, key):
    study = study_of(name)
    trunk = {"trunk": partial(SmallCNN, widths=(4,))} if "image" in PUBLISHED[name]().sources else {}
    model, batch = as_model(PUBLISHED[name](**trunk)), batch_of(study, 8)

    def forward(key, batch):
        variables = model.init(key, batch)
        return model.apply(variables, batch, train=False)[0], variables["params"]

    outputs, params = jax.eval_shape(forward, key, batch)
    assert outputs.logits.shape == (2, 1 if study == "breast" else 2)
    assert set(outputs.features) == set(PUBLISHED[name]().sources)
    if name.startswith("image + PE"):
        assert params["classifier"]["kernel"].shape == (4 + int(name.split()[-1]), 2)
    heads = name.startswith(("Probability", "[L,L] m", "Fusion D, joint"))
    assert set(outputs.source_logits) == (set(outputs.features) if heads else set())


def test_model_a_without_clinical_weights_is_the_image_model(key):
    trunk = partial(SmallCNN, widths=(4,))
    batch = batch_of("recurrence", 8)
    batch = batch._replace(inputs={**batch.inputs, "image": jax.random.normal(key, (2, 8, 8, 3))})
    image, both = as_model(recurrence_image_only(trunk=trunk)), as_model(fusion_a(trunk=trunk))
    variables = image.init(key, batch)
    classifier = variables["params"]["classifier"]
    rows = jnp.zeros((9, 2))  # of the clinical bits, behind those of the image

    @jax.jit
    def logits(rows):
        kernel = jnp.concatenate([classifier["kernel"], rows])
        params = {**variables["params"], "classifier": {**classifier, "kernel": kernel}}
        return both.apply({**variables, "params": params}, batch, train=False)[0].logits

    assert_close(logits(rows), image.apply(variables, batch, train=False)[0].logits)
    assert_close(logits(rows + 1.0), logits(rows) + 9.0)


def test_unknown_choices_are_refused(unchecked):
    with pytest.raises(ValueError, match="training is 'all'; expected 'one loss', 'multiloss' or 'multiopt'"):
        learned_feature_fusion(training="all")
    with pytest.raises(ValueError, match="joint is 'probs'; expected 'none', 'features' or 'probabilities'"):
        fusion_d(joint="probs")
