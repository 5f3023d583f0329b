"""Published models have the published numbers of parameters, and run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Batch
from fusion_jax.encoders import SmallCNN, as_model, count_parameters
from fusion_jax.models.published import (
    PUBLISHED,
    STAND_INS,
    dlhn,
    fusion_a,
    fusion_c,
    fusion_d,
    learned_feature_fusion,
    multi_modal_cnn,
    recurrence_image_only,
    three_d_multi_modal,
)
from tests.helpers import assert_close

SHALLOW_2D = (9 * 8 + 8) + (9 * 8 * 16 + 16) + (16 * 16 * 32 + 32)
SHALLOW_3D = (27 * 8 + 8) + (27 * 8 * 16 + 16) + (64 * 16 * 32 + 32)
# 180 x 180 leaves 4 x 4 positions, 48 x 48 x 48 a single one.
DENSE_2D, DENSE_3D = (
    (positions * 32 * 128 + 128) + (128 * 64 + 64) + (64 * 32 + 32) + (32 + 1) for positions in (16, 1)
)

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
    # Stand-ins of Peng et al. 2020; by arithmetic.
    "DLHN": SHALLOW_2D + 9 * 8 + DENSE_2D,
    "3DMCL": 2 * SHALLOW_3D + ((2 * 32 + 293) * 128 + 128) + (128 * 2 + 2),
    "2-D CT CNN": SHALLOW_2D + DENSE_2D,
    "2-D PET CNN": SHALLOW_2D + DENSE_2D,
    "2-D PET-CT CNN": SHALLOW_2D + 9 * 8 + DENSE_2D,
    "3-D CT CNN": SHALLOW_3D + DENSE_3D,
    "3-D PET CNN": SHALLOW_3D + DENSE_3D,
    "3-D PET-CT CNN": SHALLOW_3D + 27 * 8 + DENSE_3D,
} | {f"image + PE, {size}": 58_143_808 + 2 * (2048 + size) + 2 for size in (192, 384, 768, 2046, 3072, 6144)}

CLINICAL = {"breast": ("clinical", 33), "recurrence": ("clinical", 9), "portal": ("markers", 3)}


def study_of(name):
    if name in STAND_INS:
        return "sarcoma"
    position = list(PUBLISHED).index(name)
    return "breast" if position < 9 else "recurrence" if position < 16 else "portal"


def batch_of(study, size, rows=2):
    channels = 1 if study == "breast" else 3
    name, columns = CLINICAL[study]
    there = jnp.ones(rows, bool)
    inputs = {"image": jnp.ones((rows, size, size, channels)), name: jnp.ones((rows, columns))}
    return Batch(inputs, {}, there, {"image": there, name: there}, jnp.arange(rows))


def sarcoma_batch(axes, size, rows=2, radiomics=293):
    there, image = jnp.ones(rows, bool), jnp.ones((rows, *(size,) * axes, 1))
    inputs = {"pet": image, "ct": image, "radiomics": jnp.ones((rows, radiomics))}
    return Batch(inputs, {}, there, dict.fromkeys(inputs, there), jnp.arange(rows))


def batch_for(name, size):
    if study_of(name) != "sarcoma":
        return batch_of(study_of(name), size)
    flat = name == "DLHN" or name.startswith("2-D")
    return sarcoma_batch(2, 180 if size > 100 else 28) if flat else sarcoma_batch(3, 48 if size > 100 else 28)


QUICK = [name for name in PUBLISHED if not name.startswith("image + PE") or name.endswith("2046")]
"""All but the other sizes of the encoding, which differ from one another in their last layer alone."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PUBLISHED]
)
def test_number_of_parameters_is_the_published_one(name, key):
    module = PUBLISHED[name]()
    variables = jax.eval_shape(as_model(module).init, key, batch_for(name, 224))
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
    model, batch = as_model(PUBLISHED[name](**trunk)), batch_for(name, 8)

    def forward(key, batch):
        variables = model.init(key, batch)
        return model.apply(variables, batch, train=False)[0], variables["params"]

    outputs, params = jax.eval_shape(forward, key, batch)
    single = study == "breast" or (study == "sarcoma" and name != "3DMCL")
    assert outputs.logits.shape == (2, 1 if single else 2)
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


def test_stand_ins_are_named_as_such():
    assert set(STAND_INS) == {name for name in PUBLISHED if study_of(name) == "sarcoma"}
    assert set(STAND_INS.values()) == {"stand-in, widths not published"}


@pytest.mark.parametrize(("axes", "size"), [(2, 23), (3, 28)])
def test_small_crops_pass_and_smaller_ones_are_refused(axes, size, key):
    model = as_model(multi_modal_cnn(axes=axes))
    variables = jax.eval_shape(model.init, key, sarcoma_batch(axes, size))
    # Whatever the crop, a single position is left of it.
    assert variables["params"]["head"]["Dense_0"]["kernel"].shape == (32, 128)
    with pytest.raises(ValueError, match=r"images of 22 x 22.* before convolution 3, whose window is 4"):
        jax.eval_shape(model.init, key, sarcoma_batch(axes, 22))


def test_widths_can_be_those_of_the_true_network(key):
    module = dlhn(sources=("ct",), widths=(2, 3, 5), dense=(7, 6, 4))
    variables = jax.eval_shape(as_model(module).init, key, sarcoma_batch(2, 180))
    first = (9 * 2 + 2) + (9 * 2 * 3 + 3) + (16 * 3 * 5 + 5)
    assert count_parameters(variables) == first + (16 * 5 * 7 + 7) + (7 * 6 + 6) + (6 * 4 + 4) + (4 + 1)


def test_images_of_another_number_of_axes_are_refused(key):
    with pytest.raises(ValueError, match=r"pet has 3 axes, \(28, 28, 28\); expected 2"):
        jax.eval_shape(as_model(dlhn()).init, key, sarcoma_batch(3, 28))


def test_stacked_images_are_the_channels_of_one_encoder(key):
    model, batch = as_model(dlhn()), sarcoma_batch(2, 24)
    pet, ct = jax.random.normal(key, (2, 2, 24, 24, 1))
    batch = batch._replace(inputs={**batch.inputs, "pet": pet, "ct": ct})
    variables = model.init(key, batch)

    @jax.jit
    def answer(batch):
        return model.apply(variables, batch, train=False)[0]

    both = answer(batch)
    swapped = answer(batch._replace(inputs={**batch.inputs, "pet": ct, "ct": pet}))
    assert not np.allclose(both.logits, swapped.logits)
    # An absent image is zeros, whatever it holds, and the other one is all that the features say then.
    gone = dict.fromkeys(batch.inputs, jnp.ones(2, bool)) | {"ct": jnp.array([True, False])}
    without = answer(batch._replace(present=gone))
    blank = answer(batch._replace(inputs={**batch.inputs, "ct": ct.at[1].set(0.0)}))
    assert_close(without.logits, blank.logits)
    assert_close(without.logits[0], both.logits[0])
    assert_close(without.features["pet"], both.features["pet"])
    assert not without.features["ct"][1].any()
    assert both.features["ct"][1].any()


def test_stacked_images_lie_on_one_grid(key):
    batch = sarcoma_batch(2, 24)
    batch = batch._replace(inputs={**batch.inputs, "ct": jnp.ones((2, 28, 28, 1))})
    with pytest.raises(ValueError, match=r"pet has \(24, 24\) positions, ct \(28, 28\)"):
        jax.eval_shape(as_model(dlhn()).init, key, batch)


def test_the_collaborative_network_reads_other_sources_and_trunks(key):
    module = three_d_multi_modal(images=("mri",), features="table", trunk=partial(SmallCNN, widths=(4,)))
    assert module.sources == ("mri", "table")
    there = jnp.ones(2, bool)
    inputs = {"mri": jnp.ones((2, 8, 8, 8, 1)), "table": jnp.ones((2, 5))}
    batch = Batch(inputs, {}, there, dict.fromkeys(inputs, there), jnp.arange(2))
    variables = jax.eval_shape(as_model(module).init, key, batch)
    assert variables["params"]["head"]["Dense_0"]["kernel"].shape == (4 + 5, 128)


def test_shapes_that_no_stand_in_has_are_refused():
    with pytest.raises(ValueError, match=r"widths is \(8, 16\); expected three numbers"):
        dlhn(widths=(8, 16))
