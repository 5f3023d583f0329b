"""Many trainings in one program are the same trainings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Batch, Model, Outputs
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Cohort
from fusion_jax.evaluation.delong import delong
from fusion_jax.training import Objective, Optimiser, fit, initial_state, make_optimiser, make_step, named_key, run_key
from fusion_jax.training.vmapped import batch_auc, fit_many, predict_many
from tests.helpers import assert_close

N = 60


def init(key, batch):
    width = batch.inputs["clinical"].shape[1]
    first, second = (
        jax.random.normal(named_key(key, name), shape) for name, shape in (("a", (width, 6)), ("b", (6, 1)))
    )
    return {"params": {"hidden": first, "out": 0.3 * second}}


def apply(variables, batch, *, train, key=None):
    """A hidden layer with dropout, so that the keys of both ways must agree."""
    weights = variables["params"]
    hidden = jnp.tanh(batch.inputs["clinical"] @ weights["hidden"])
    if train:
        hidden = hidden * jax.random.bernoulli(key, 0.8, hidden.shape).astype(hidden.dtype)
    return Outputs(hidden @ weights["out"], {}, {"clinical": hidden}), variables


def loss(own, outputs, batch):
    sign = 1.0 - 2.0 * batch.target["label"].astype(jnp.float32)
    each = jax.nn.softplus(sign * outputs.logits[:, 0])
    return jnp.sum(jnp.where(batch.valid, each, 0.0)) / jnp.sum(batch.valid).astype(jnp.float32), {}


MODEL, OBJECTIVE = Model(init, apply), Objective(dict, loss)
OPTIMISER = make_optimiser(Optimiser(learning_rate=0.05, clip_norm=1.0), 4, 12)
SEEDS = [(7, 1, 2), (0, 0, 0), (0, 0, 1)]


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    label = np.arange(N) % 2
    values = (rng.normal(size=(N, 3)) + 0.7 * label[:, None]).astype(np.float32)
    return Cohort.from_arrays({"clinical": values}, label=label)


@pytest.fixture(scope="module")
def cases(cohort):
    return Batches(cohort, np.arange(N), N, seed=(0,), sampler="sequential").at(0)


@pytest.fixture(scope="module")
def rows():
    """Training and validation rows of three trainings; the first has a step less than the others."""
    order = np.random.default_rng(1).permutation(N)
    train = [order[:30], order[10:45], order[20:53]]
    return train, [order[40:], order[:10], order[:17]]


@pytest.fixture(scope="module")
def many(cases, rows):
    return fit_many(MODEL, OPTIMISER, OBJECTIVE, cases, *rows, seeds=SEEDS, epochs=12, batch_size=10, patience=3)


def test_each_equals_the_training_that_fit_runs(many, cohort, rows, tmp_path):
    number = 0  # with three steps an epoch, where the others have four
    train, held = (part[number] for part in rows)
    seed = SEEDS[number]
    watched = Batches(cohort, held, len(held), seed=(0,), sampler="sequential").at(0)

    def evaluate(state, epoch):
        return {"auc": float(batch_auc(apply(state.variables, watched, train=False)[0], watched))}

    alone = fit(
        initial_state(MODEL, OPTIMISER, OBJECTIVE),
        make_step(MODEL, OPTIMISER, OBJECTIVE),
        Batches(cohort, train, 10, seed=seed),
        folder=tmp_path,
        key=run_key(*seed),
        epochs=12,
        evaluate=evaluate,
        patience=3,
    )
    assert_close(many.training(number)["params"], alone.state.variables["params"], 1e-5)
    assert many.best_epoch[number] == alone.best_epoch
    epochs = len(alone.history)
    assert np.isfinite(many.metric[number]).sum() == epochs
    assert_close(many.loss[number, :epochs], np.array([line["loss"] for line in alone.history]), 1e-5)
    assert np.isnan(many.loss[number, epochs:]).all()


def test_some_training_stops_early_and_keeps_its_best_epoch(many):
    lasted = np.isfinite(many.metric).sum(axis=1)
    assert lasted.min() < 12
    assert many.best_epoch.tolist() == [int(np.nanargmax(line)) for line in many.metric]
    stopped = int(np.argmin(lasted))
    assert lasted[stopped] == many.best_epoch[stopped] + 1 + 4  # the fourth epoch without improvement ends it


def test_predictions_are_those_of_the_single_models(many, cases, rows):
    logits = predict_many(MODEL, many.variables, cases, rows[1])
    assert logits.shape == (3, 20, 1)
    for number, held in enumerate(rows[1]):
        one = jax.tree.map(lambda leaf, held=held: leaf[held], (cases.inputs, cases.target))
        batch = Batch(*one, np.ones(len(held), bool), {}, held)
        assert_close(logits[number, : len(held)], apply(many.training(number), batch, train=False)[0].logits)
        assert np.isnan(logits[number, len(held) :]).all()


def test_programs_in_parts_are_the_whole(many, cases, rows, monkeypatch):
    monkeypatch.setattr("fusion_jax.training.vmapped.ORDER_SIZE", 3 * 5 * 40)
    parts = fit_many(MODEL, OPTIMISER, OBJECTIVE, cases, *rows, seeds=SEEDS, epochs=12, batch_size=10, patience=3)
    assert_close(parts.variables["params"], many.variables["params"], 1e-6)
    np.testing.assert_array_equal(parts.best_epoch, many.best_epoch)
    np.testing.assert_allclose(parts.metric, many.metric, rtol=1e-6)


def test_without_a_number_to_go_by_the_last_epoch_is_kept(cases, rows):
    """Without validation cases, and with those of one class, which have no AUC."""
    last = fit_many(MODEL, OPTIMISER, OBJECTIVE, cases, rows[0], seeds=SEEDS, epochs=12, batch_size=10)
    assert last.best_epoch.tolist() == [11, 11, 11]
    assert np.isnan(last.metric).all()
    assert np.isfinite(last.loss).all()
    ones = np.flatnonzero(cases.target["label"] == 1)
    held = [ones[:5], rows[1][1], rows[1][0]]
    found = fit_many(
        MODEL,
        OPTIMISER,
        OBJECTIVE,
        cases,
        rows[0],
        held,
        seeds=SEEDS,
        epochs=12,
        batch_size=10,
        patience=3,
        min_epochs=12,
    )
    assert found.best_epoch[0] == 11
    assert_close(found.training(0)["params"], last.training(0)["params"], 1e-6)


@pytest.mark.parametrize("columns", [1, 2])
def test_area_equals_the_evaluations(columns):
    rng = np.random.default_rng(3)
    label, valid = rng.integers(0, 2, 40), rng.random(40) < 0.8
    logits = rng.integers(0, 9, (40, columns)).astype(np.float32)  # many ties
    score = logits[:, 0] if columns == 1 else logits[:, 1] - logits[:, 0]
    batch = Batch({}, {"label": jnp.asarray(label)}, jnp.asarray(valid), {}, jnp.arange(40))
    found = float(batch_auc(Outputs(jnp.asarray(logits), {}, {}), batch))
    assert found == pytest.approx(float(delong(label[valid], score[valid]).auc[0]), rel=1e-6)
    alone = batch._replace(valid=jnp.asarray(valid & (label == 1)))
    assert np.isnan(float(batch_auc(Outputs(jnp.asarray(logits), {}, {}), alone)))


def test_what_cannot_be_trained_is_refused(cases, rows):
    train, held = rows
    common = {"seeds": SEEDS, "epochs": 2}
    with pytest.raises(ValueError, match="train_rows: 3, seeds: 2"):
        fit_many(MODEL, OPTIMISER, OBJECTIVE, cases, train, seeds=SEEDS[:2], epochs=2)
    with pytest.raises(
        ValueError, match=r"validation_rows\[1\]: expected at least one row, and all of them from 0 to 59"
    ):
        fit_many(MODEL, OPTIMISER, OBJECTIVE, cases, train, [held[0], np.array([60]), held[2]], **common)
    with pytest.raises(ValueError, match="epochs 0"):
        fit_many(MODEL, OPTIMISER, OBJECTIVE, cases, train, seeds=SEEDS, epochs=0)

    def convolved(variables, batch, *, train, key=None):
        image = batch.inputs["clinical"][:, :, None]
        found = jax.lax.conv_general_dilated(
            image, variables["params"]["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return Outputs(found.mean(1), {}, {}), variables

    model = Model(lambda key, batch: {"params": {"w": jnp.ones((3, 1, 1))}}, convolved)
    with pytest.raises(ValueError, match=r"has convolutions, .* slower on a CPU .*cross_validate"):
        fit_many(model, OPTIMISER, OBJECTIVE, cases, train, **common)
