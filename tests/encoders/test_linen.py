"""From module to model: collections, keys, dtypes, and errors before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fusion_jax.arrays import Batch, Outputs
from fusion_jax.encoders.linen import as_model, count_parameters
from fusion_jax.encoders.norm import Norm
from tests.helpers import assert_close

RNG = np.random.default_rng(0)


class Net(nn.Module):
    """Norm, dropout and a row of dropped sources, in half precision."""

    encoders = ("scan", "age")
    dropout: float = 0.5

    @nn.compact
    def __call__(self, inputs, *, present, valid, train):
        x = Norm(name="bn")(inputs["scan"], train=train, mask=valid & present["scan"])
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        drawn = jax.random.key_data(self.make_rng("sources")).astype(jnp.float32) if train else jnp.zeros(2)
        features = {"scan": x.astype(jnp.bfloat16), "age": inputs["age"]}
        logits = nn.Dense(1)(x).astype(jnp.bfloat16)
        return Outputs(logits, {"drawn": drawn[None]}, features)


def a_batch(rows=4, sources=("scan", "age")):
    inputs = {name: jnp.asarray(RNG.normal(size=(rows, 2)), jnp.float32) for name in sources}
    true = jnp.ones(rows, bool)
    return Batch(inputs, {}, true, dict.fromkeys(sources, true), jnp.arange(rows, dtype=jnp.int32))


@pytest.fixture(scope="module")
def model():
    return as_model(Net())


@pytest.fixture(scope="module")
def batch():
    return a_batch()


@pytest.fixture(scope="module")
def variables(model, batch):
    return model.init(jax.random.key(0), batch)


def test_init_gives_the_collections_of_the_module_and_draws_from_the_key(model, batch, variables):
    assert set(variables) == {"params", "batch_stats"}
    assert type(variables) is dict
    assert_close(model.init(jax.random.key(0), batch), variables, 0.0)
    other = model.init(jax.random.key(1), batch)
    assert not np.array_equal(other["params"]["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"])
    stacked = jax.vmap(lambda key: model.init(key, batch))(jax.random.split(jax.random.key(0), 3))
    assert stacked["params"]["Dense_0"]["kernel"].shape == (3, 2, 1)


def test_running_statistics_move_in_training_only_and_other_collections_pass_through(model, batch, variables):
    kept = variables | {"objective": {"weight": jnp.ones(())}, "epoch": jnp.zeros(())}
    _, same = model.apply(kept, batch, train=False)
    assert_close(same, kept, 0.0)
    _, moved = model.apply(kept, batch, train=True, key=jax.random.key(0))
    assert set(moved) == set(kept)
    assert not np.array_equal(moved["batch_stats"]["bn"]["mean"], kept["batch_stats"]["bn"]["mean"])
    assert_close({**moved, "batch_stats": 0.0}, {**kept, "batch_stats": 0.0}, 0.0)


def test_everything_comes_out_in_single_precision(model, batch, variables):
    outputs, _ = model.apply(variables, batch, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
    assert set(outputs.features) == {"scan", "age"}


def test_dropout_and_dropped_sources_have_streams_of_their_own(model, batch, variables):
    def drawn(key):
        outputs, _ = model.apply(variables, batch, train=True, key=key)
        return outputs.features["scan"], outputs.source_logits["drawn"]

    first, again, other = (drawn(jax.random.key(seed)) for seed in (3, 3, 4))
    assert_close(first, again, 0.0)
    assert not np.array_equal(first[0] == 0, other[0] == 0)
    assert not np.array_equal(first[1], other[1])
    assert 0 < np.mean(first[0] == 0) < 1


def test_jit_equals_eager(model, batch, variables):
    def training(variables, key):
        return model.apply(variables, batch, train=True, key=key)

    key = jax.random.key(5)
    assert_close(jax.jit(training)(variables, key), training(variables, key), 1e-5)


def test_dropout_without_a_key_says_how_to_give_one(model, batch, variables):
    with pytest.raises(
        ValueError, match=r"Net draws random numbers .* `apply\(variables, batch, train=True, key=key\)`"
    ):
        model.apply(variables, batch, train=True)


def test_a_batch_without_a_source_names_what_is_there(model, variables):
    message = "Net reads 'age', 'scan'; the batch holds 'scan' and lacks 'age'"
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), a_batch(sources=("scan",)))
    with pytest.raises(ValueError, match=message):
        model.apply(variables, a_batch(sources=("scan",)), train=False)


def test_more_sources_than_the_model_reads_are_welcome(model, batch, variables):
    extra = batch._replace(inputs={**batch.inputs, "pet": jnp.ones((4, 1))})
    assert_close(model.apply(variables, extra, train=False), model.apply(variables, batch, train=False), 0.0)


def test_parameters_are_counted_without_statistics_and_from_shapes(model, batch, variables):
    assert count_parameters(variables) == 2 + 2 + 3
    assert count_parameters(jax.eval_shape(lambda: model.init(jax.random.key(0), batch))) == 7
