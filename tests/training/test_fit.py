"""The loop: which epoch is best, when it ends, what it says, and what it refuses."""

import json
import math
import pickle
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data import Batches, Cohort
from fusion_jax.training import DivergedError, Optimiser, Plateau, fit, make_optimiser, restore_best
from fusion_jax.training.logs import read_lines
from fusion_jax.training.progress import SECONDS_BETWEEN
from fusion_jax.training.stopping import Rules, Standing

STEPS = 2


class Count(NamedTuple):
    """A state that is nobody's but this file's: `fit` knows init, step and `valid`."""

    steps: Any
    seen: Any


def init(key, batch):
    return Count(jnp.zeros((), jnp.int32), jnp.zeros(()))


def step(state, batch, key):
    """Counts, and says the sum of the inputs of the valid rows over their number."""
    valid = jnp.asarray(batch.valid, jnp.float32)
    mean = jnp.sum(batch.inputs["x"][:, 0] * valid) / jnp.sum(valid)
    return Count(state.steps + 1, state.seen + mean), {"loss": mean, "learning_rate": state.seen}


def batches(values=(1.0, 2.0, 6.0), batch_size=2):
    cohort = Cohort.from_arrays({"x": np.array(values, np.float32)[:, None]}, label=[0] * len(values))
    return Batches(cohort, np.arange(len(values)), batch_size=batch_size, seed=(0,), sampler="sequential")


def scripted(metrics, calls=None):
    def evaluate(state, epoch):
        assert int(state.steps) == STEPS * (epoch + 1)
        if calls is not None:
            calls.append(epoch)
        return {"auc": metrics[epoch]}

    return evaluate


def run(folder, metrics=None, **settings):
    settings = {"epochs": len(metrics) if metrics else 3, "evaluate": scripted(metrics) if metrics else None} | settings
    return fit(init, step, batches(), folder=folder, key=jax.random.key(0), **settings)


def test_the_best_epoch_comes_back(tmp_path):
    result = run(tmp_path, [0.5, 0.8, 0.7, 0.8])
    assert (result.best_epoch, result.stopped) == (1, False)
    assert int(result.state.steps) == 4
    assert [line["validation_auc"] for line in result.history] == [0.5, 0.8, 0.7, 0.8]
    like = jax.eval_shape(init, jax.random.key(0), batches().at(0))
    assert int(restore_best(tmp_path, like).steps) == 4


def test_a_smaller_metric_may_be_better(tmp_path):
    assert run(tmp_path, [0.5, 0.8, 0.3, 0.4], mode="min").best_epoch == 2


@pytest.mark.parametrize(("patience", "epochs"), [(0, 4), (1, 5), (3, 7)])
def test_a_run_ends_once_more_than_patience_epochs_pass(tmp_path, patience, epochs):
    """Best epoch 2; the (patience + 1)-th epoch without improvement is the last (B8)."""
    result = run(tmp_path, [0.1, 0.2, 0.9, *[0.9] * 20], patience=patience)
    assert (len(result.history), result.best_epoch, result.stopped) == (epochs, 2, True)


def test_patience_that_ends_at_the_last_epoch_stops_nothing(tmp_path):
    assert not run(tmp_path, [0.9, 0.1, 0.1], patience=1).stopped


def test_patience_of_twenty_gives_the_published_epochs():
    """Runs of Holste et al. 2021 with best epoch 45, 16 and 36 ended after 66, 37 and 57 epochs, counted from 1."""
    for best, last in ((45, 66), (16, 37), (36, 57)):
        rules, standing, ends = Rules(patience=20), Standing(), []
        for epoch in range(100):
            standing = rules.after(standing, epoch, min(epoch + 1, best) / 100)
            ends.append(rules.ends(standing, epoch))
        assert ends.index(True) + 1 == last


def test_a_run_has_its_least_epochs(tmp_path):
    assert len(run(tmp_path, [0.9, *[0.1] * 9], patience=1, min_epochs=6).history) == 6


def test_a_metric_that_is_no_number_is_never_best(tmp_path):
    result = run(tmp_path, [math.nan, 0.2, math.nan, 0.1], patience=10)
    assert result.best_epoch == 1
    assert [line["validation_auc"] for line in result.history] == [None, 0.2, None, 0.1]


def test_without_any_number_the_last_epoch_is_kept_and_said(tmp_path, caplog):
    result = run(tmp_path, [math.nan] * 3)
    assert (result.best_epoch, int(result.state.steps)) == (2, 6)
    assert "auc is never a number; the last epoch is kept" in caplog.text


@pytest.mark.parametrize(
    ("metrics", "best", "epochs"), [([0.0, 0.0, 0.0, 0.0, 0.2, 0.1, 0.1, 0.1], 4, 7), ([0.0] * 5, 4, 5)]
)
def test_epochs_at_the_floor_are_neither_best_nor_waited_for(tmp_path, caplog, metrics, best, epochs):
    result = run(tmp_path, metrics, patience=1, floor=0.0)
    assert (result.best_epoch, len(result.history)) == (best, epochs)
    assert ("auc is never better than 0; the last epoch is kept" in caplog.text) == (max(metrics) == 0)


def test_without_validation_the_last_epoch_is_the_result(tmp_path):
    result = run(tmp_path, epochs=3)
    assert (result.best_epoch, int(result.state.steps), result.stopped) == (2, 6, False)


def test_an_epoch_says_the_mean_over_its_cases_and_the_last_learning_rate(tmp_path):
    first, second = run(tmp_path, epochs=2).history
    assert first["loss"] == pytest.approx((1.0 + 2.0 + 6.0) / 3)  # batches of two and one: not the mean of 1.5 and 6
    assert first["learning_rate"] == pytest.approx(1.5)
    assert second["learning_rate"] == pytest.approx(9.0)
    assert [(line["epoch"], line["step"]) for line in (first, second)] == [(0, 2), (1, 4)]


def test_the_log_is_what_comes_back(tmp_path):
    result = run(tmp_path, [0.5, 0.6])
    assert tuple(read_lines(tmp_path / "metrics.jsonl")) == result.history
    assert result.history[0].keys() == {"epoch", "step", "seconds", "loss", "learning_rate", "validation_auc"}


def test_the_plateau_rule_lowers_the_rate(tmp_path):
    optimiser = make_optimiser(Optimiser("sgd", learning_rate=1.0, momentum=0.0, schedule="plateau"), STEPS, 9)

    def start(key, batch):
        return optimiser.init({"w": jnp.zeros(())})

    def descend(state, batch, key):
        update, state = optimiser.update({"w": jnp.ones(())}, state)
        moved = jax.tree.leaves(update)[0]
        return state, {"loss": moved, "learning_rate": -moved}

    result = fit(
        start,
        descend,
        batches(),
        folder=tmp_path,
        key=jax.random.key(0),
        epochs=9,
        evaluate=lambda state, epoch: {"auc": [0.1, 0.2, 0.2, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1][epoch]},
        plateau=Plateau(patience=1, factor=0.5, least=0.3),
    )
    # Two epochs without improvement lower it after epoch 3 and after epoch 7, there no further than 0.3.
    assert [line["learning_rate"] for line in result.history] == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.3])


def test_a_plateau_rule_needs_a_rate_it_can_scale(tmp_path):
    with pytest.raises(ValueError, match=r"no learning rate that can be scaled.*make_optimiser"):
        run(tmp_path, [0.1, 0.2], plateau=Plateau(1, 0.1))


@pytest.mark.parametrize("bad", [2.5, 3.0])
def test_a_loss_that_is_not_finite_names_epoch_step_and_cases(tmp_path, bad):
    """Found whether or not the scalars of later steps have been asked for already."""

    def breaks(state, batch, key):
        state, info = step(state, batch, key)
        name = "loss" if bad == 2.5 else "gradient_norm"
        return state, {**info, "gradient_norm": info["loss"]} | {
            name: jnp.where(state.steps == 4, jnp.inf, info["loss"])
        }

    arguments = {"folder": tmp_path, "key": jax.random.key(0), "epochs": 3, "checkpoint_steps": 1}
    ids = ["patient-a", "patient-b", "patient-c"]
    with pytest.raises(
        DivergedError, match=r"epoch 1, step 3, with case patient-c \(1 in all\).*step_000000003"
    ) as found:
        fit(init, breaks, batches(), case_ids=ids, **arguments)
    assert (found.value.epoch, found.value.step, found.value.case_ids) == (1, 3, ("patient-c",))
    assert (tmp_path / "checkpoints" / "step_000000003").is_dir()
    sent = pickle.loads(pickle.dumps(found.value))  # noqa: S301 - our own
    assert (str(sent), sent.case_ids) == (str(found.value), ("patient-c",))
    with pytest.raises(DivergedError, match="with case 2"):
        fit(init, breaks, batches(), **arguments)


def test_a_metric_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="monitor is 'loss', and evaluate gives auc"):
        run(tmp_path, [0.5], monitor="loss")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"mode": "best"}, "mode is 'best'; expected max or min"),
        ({"patience": 3}, "patience is given without `evaluate`"),
        ({"plateau": Plateau(1, 0.1)}, "plateau is given without `evaluate`"),
        ({"checkpoint_steps": 0}, "checkpoint_steps is 0"),
        ({"settings": {"model": object()}}, r"settings\.model is a object; expected what JSON can hold"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_progress_counts_up_and_says_how_long_is_left(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def tick():
        clock.now += SECONDS_BETWEEN
        return clock.now

    monkeypatch.setattr("fusion_jax.training.progress.time", SimpleNamespace(monotonic=tick))
    heard = []
    run(tmp_path, [0.5, 0.7, 0.6], report=heard.append)
    assert [(told.epoch, told.step) for told in heard] == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert {(told.epochs, told.steps) for told in heard} == {(3, 2)}
    assert [told.metric for told in heard] == [None, 0.5, 0.5, 0.7, 0.7, 0.7]
    assert heard[0].seconds_left is None
    left = [told.seconds_left for told in heard[1:]]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0
    assert heard[-1].loss == pytest.approx(3.0)


def test_callbacks_hear_of_every_epoch(tmp_path):
    heard = []
    run(
        tmp_path, [0.5, 0.7], callbacks=[lambda state, epoch, line: heard.append((int(state.steps), epoch, dict(line)))]
    )
    assert [(steps, epoch) for steps, epoch, _ in heard] == [(2, 0), (4, 1)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1]) == heard[1][2]


def test_a_callback_ends_the_run_after_its_epoch_and_the_others_hear_of_it(tmp_path):
    heard = []
    result = run(
        tmp_path,
        [0.5, 0.7, 0.6, 0.9],
        callbacks=[lambda state, epoch, line: epoch == 2, lambda state, epoch, line: heard.append(epoch)],
    )
    assert (len(result.history), result.best_epoch, result.stopped) == (3, 1, True)
    assert heard == [0, 1, 2]


def test_a_step_that_compiles_itself_is_called_as_it_is(tmp_path):
    traced = []

    def own(state, batch, key):
        traced.append(isinstance(state.steps, jax.core.Tracer))
        return step(state, batch, key)

    results = [
        fit(init, own, batches(), folder=tmp_path / str(whole), key=jax.random.key(0), epochs=2, compile_step=whole)
        for whole in (True, False)
    ]
    assert traced == [True, False, False, False, False]
    assert int(results[0].state.steps) == int(results[1].state.steps) == 4
    assert [line["loss"] for line in results[0].history] == [line["loss"] for line in results[1].history]


def test_one_step_function_is_compiled_once_for_many_runs(tmp_path):
    traces = []

    def traced(state, batch, key):
        traces.append(1)
        return step(state, batch, key)

    for seed in range(3):
        fit(init, traced, batches(), folder=tmp_path / str(seed), key=jax.random.key(seed), epochs=2)
    assert len(traces) == 1


def test_every_epoch_has_a_key_of_its_own_and_its_steps_share_it(tmp_path):
    def draws(state, batch, key):
        return Count(state.steps + 1, jnp.zeros(())), {"loss": jax.random.uniform(key), "learning_rate": jnp.zeros(())}

    def losses(seed, values):
        result = fit(
            init,
            draws,
            batches(values),
            folder=tmp_path / f"{seed}-{len(values)}",
            key=jax.random.key(seed),
            epochs=3,
        )
        return [line["loss"] for line in result.history]

    few = losses(0, (1.0, 2.0))
    assert losses(0, (1.0, 2.0, 3.0)) == pytest.approx(few)
    assert len({*few, *losses(1, (1.0, 2.0))}) == 6
