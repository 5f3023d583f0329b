import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.encoders.positional import ValueEncoding, fit_value_encoding
from fusion_jax.quality.encoding import ENCODINGS, positional_encoding
from tests.helpers import assert_close

RNG = np.random.default_rng(0)
TRAINING = RNG.normal((180.0, 12.0, 40.0), (60.0, 2.0, 5.0), (30, 3)).astype(np.float32)
X = TRAINING[:4] + 1


def encode(module, x=X):
    return module.init_with_output(jax.random.key(0), x, train=False)


@pytest.mark.parametrize("kind", ["positional", "linear", "fourier", "repetition", "learned"])
def test_coordinates_are_float32_whatever_the_default_is(kind):
    expected = encode(ValueEncoding(kind, 12))[0]
    with jax.enable_x64(True):
        found, _ = encode(ValueEncoding(kind, 12))
    assert found.dtype == jnp.float32
    if kind in ("positional", "repetition"):  # the others draw numbers, and others in double precision
        assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("size", [192, 384, 768, 2046, 3072, 6144])
def test_the_published_sizes_divide_among_three_markers_and_have_no_weight(size):
    variables = jax.eval_shape(lambda: ValueEncoding("positional", size).init(jax.random.key(0), X, train=False))
    assert variables == {}


def test_positional_encodes_each_marker_in_its_own_block_and_native_units():
    y, _ = encode(ValueEncoding("positional", 12))
    for marker in range(3):
        assert_close(y[:, 4 * marker : 4 * marker + 4], positional_encoding(X[:, marker], 4), 0)
    assert_close(jnp.sum(jnp.square(y), axis=1), np.full(4, 6.0))


SETTINGS = [
    ("positional", {"scaling": "robust", "base": 10.0}),
    ("linear", {"scaling": "robust"}),
    ("linear", {"scaling": "native"}),
    ("fourier", {"scaling": "robust", "length_scale": 2.0}),
    ("repetition", {"scaling": "robust"}),
    ("pca", {}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_a_fitted_encoder_is_the_encoding_of_the_training_patients(kind, settings):
    y, _ = encode(fit_value_encoding(ValueEncoding(kind, 12, seed=3, scale=0.5, **settings), TRAINING))
    encoding = ENCODINGS[kind](**settings)
    assert y.dtype == jnp.float32
    assert_close(y, 0.5 * encoding.encode(encoding.fit(TRAINING, jax.random.key(3)), X, 12), 1e-6)


@pytest.mark.parametrize("kind", ["pca", "learned", "positional"])
def test_settings_as_json_and_saved_variables_rebuild_the_encoder(kind):
    settings = {"kind": kind, "size": 12, "scaling": "robust", "seed": 5, "base": 10.0}
    y, variables = encode(fit_value_encoding(ValueEncoding(**settings), TRAINING))
    again = ValueEncoding(**json.loads(json.dumps(settings)))
    assert_close(jax.jit(lambda v, x: again.apply(v, x, train=False))(variables, X), y, 1e-6)
    assert set(variables) == ({"encoding", "params"} if kind == "learned" else {"encoding"})
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_folds_share_one_program():
    module = ValueEncoding("linear", 6, scaling="robust")
    traced = []

    @jax.jit
    def apply(variables, x):
        traced.append(1)
        return module.apply(variables, x, train=False)

    folds = [encode(fit_value_encoding(module, TRAINING[part]))[1] for part in (slice(0, 15), slice(15, 30))]
    results = [apply(variables, X) for variables in folds]
    assert len(traced) == 1
    assert float(jnp.abs(results[0] - results[1]).max()) > 0.1


def test_statistics_are_plain_numbers_that_survive_json():
    fitted = fit_value_encoding(ValueEncoding("pca", 12), TRAINING)
    again = ValueEncoding("pca", 12, statistics=json.loads(json.dumps(dict(fitted.statistics))))
    assert_close(encode(again)[0], encode(fitted)[0], 0)


def test_repetition_of_as_many_coordinates_as_columns_is_the_values():
    y, variables = encode(ValueEncoding("repetition", 3, scale=2.0))
    assert_close(y, 2 * X, 0)
    assert variables == {}


def test_seeds_draw_other_coordinates_and_keys_of_a_run_do_not():
    first, _ = ValueEncoding("fourier", 6).init_with_output(jax.random.key(0), X, train=False)
    same, _ = ValueEncoding("fourier", 6).init_with_output(jax.random.key(1), X, train=False)
    other, _ = encode(ValueEncoding("fourier", 6, seed=1))
    assert_close(first, same, 0)
    assert float(jnp.abs(first - other).max()) > 0.1


def test_learned_coordinates_are_rectified_lines_of_their_own_column():
    standardised = ((X - TRAINING.mean(0)) / TRAINING.std(0)).astype(np.float32)
    y, variables = encode(ValueEncoding("learned", 12), standardised)
    weights = jax.tree.map(np.float64, variables["params"])
    assert jax.tree.map(np.shape, weights) == {"kernel": (3, 4), "bias": (3, 4)}
    expected = np.maximum(standardised[:, :, None] * weights["kernel"] + weights["bias"], 0)
    assert_close(y, expected.reshape(4, 12))


def test_learned_coordinates_scale_like_the_others():
    module = ValueEncoding("learned", 12, scaling="robust")
    y, variables = encode(fit_value_encoding(module, TRAINING))
    low, centre, high = np.quantile(TRAINING.astype(np.float64), (0.25, 0.5, 0.75), axis=0)
    plain = ValueEncoding("learned", 12).apply(
        {"params": variables["params"]}, ((X - centre) / (high - low)).astype(np.float32), train=False
    )
    assert_close(y, plain, 1e-5)


def test_gradients_reach_values_and_learned_weights_but_no_statistic():
    module = fit_value_encoding(ValueEncoding("learned", 6, scaling="robust"), TRAINING)
    _, variables = encode(module)

    def loss(params, x):
        return jnp.sum(jnp.square(module.apply({**variables, "params": params}, x, train=True)))

    of_params, of_x = jax.grad(loss, argnums=(0, 1))(variables["params"], X)
    for leaf in (*jax.tree.leaves(of_params), of_x):
        assert np.isfinite(leaf).all()
        assert float(jnp.abs(leaf).max()) > 0


def test_the_mask_and_other_rows_change_nothing():
    module = fit_value_encoding(ValueEncoding("pca", 6), TRAINING)
    y, variables = encode(module)
    other = X.copy()
    other[2:] = 0
    assert_close(module.apply(variables, other, train=True, mask=np.array([1, 1, 0, 0], bool))[:2], y[:2], 1e-6)


def refused(module, x=X):
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(x), train=False))


@pytest.mark.parametrize("module", [ValueEncoding("pca", 6), ValueEncoding("linear", 6, scaling="robust")])
def test_an_encoder_that_lacks_its_fit_is_refused_before_any_training(module):
    with pytest.raises(ValueError, match=r"there is no fit[.] Initialise fit_value_encoding"):
        refused(module)


@pytest.mark.parametrize("kind", ["positional", "learned"])
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(kind):
    with pytest.raises(ValueError, match=r"32 coordinates do not divide among 3 .*; the nearest sizes .* 30 and 33"):
        refused(ValueEncoding(kind, 32))


def test_other_columns_than_were_fitted_are_refused():
    module = fit_value_encoding(ValueEncoding("repetition", 6, scaling="robust"), TRAINING)
    with pytest.raises(ValueError, match="x has 2 columns, and was fitted to 3"):
        refused(module, X[:, :2])


@pytest.mark.usefixtures("unchecked")
def test_images_and_empty_encodings_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 4, 1\)"):
        refused(ValueEncoding("positional", 6), np.zeros((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="size is 0"):
        refused(ValueEncoding("positional", 0))


def test_missing_values_are_refused_by_the_fit():
    values = TRAINING.copy()
    values[4, 1] = np.nan
    with pytest.raises(ValueError, match="column 1 holds nan in row 4"):
        fit_value_encoding(ValueEncoding("pca", 6), values)


@pytest.mark.usefixtures("unchecked")
def test_choices_are_refused_by_name():
    for name, value in (("kind", "sinus"), ("scaling", "minmax")):
        module = ValueEncoding(**{"kind": "linear", "size": 6, name: value})
        with pytest.raises(ValueError, match=f"{name} is '{value}'; expected"):
            refused(module)
