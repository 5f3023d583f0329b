"""One run over two devices: the same numbers, every array where it belongs."""

import jax
import numpy as np
import pytest

from fusion_jax.training import data_mesh, initial_state, make_optimiser, make_step, run_key
from fusion_jax.training.devices import from_first_process, replicate, shard_batch, spans_processes
from tests.helpers import assert_close
from tests.training import problem


@pytest.fixture(scope="module")
def mesh():
    return data_mesh()


def test_one_step_on_two_devices_equals_one_on_one(mesh):
    settings = problem.SETTINGS
    optimiser = make_optimiser(settings, 3, problem.EPOCHS)
    init = initial_state(problem.MODEL, optimiser, problem.OBJECTIVE)
    step = make_step(problem.MODEL, optimiser, problem.OBJECTIVE)
    batch = problem.batches().at(2)  # with padding, all of it on the second device
    state = init(run_key(0), batch)
    alone, own = jax.jit(step)(state, batch, run_key(1))
    divided, info = jax.jit(step)(replicate(state, mesh), shard_batch(batch, mesh), run_key(1))
    assert_close(jax.device_get(divided), jax.device_get(alone), 1e-5)
    assert_close(jax.device_get(info), jax.device_get(own), 1e-5)


def test_fit_on_two_devices_equals_fit_on_one(mesh, tmp_path):
    divided = problem.train(tmp_path / "two", mesh=mesh, checkpoint_steps=5)
    alone = problem.train(tmp_path / "one")
    assert divided.best_epoch == alone.best_epoch
    # 36 steps of Adam: rounding adds up.
    assert_close(jax.device_get(divided.state.variables), jax.device_get(alone.state.variables), 1e-4)
    kernel = divided.state.variables["params"]["hidden"]["kernel"]
    assert kernel.sharding.is_fully_replicated
    assert len(kernel.sharding.device_set) == 2


def test_a_run_may_go_on_with_another_number_of_devices(mesh, tmp_path):
    def leave(state, epoch):
        if epoch == 5:
            raise InterruptedError
        return problem.evaluate(state, epoch)

    with pytest.raises(InterruptedError):
        problem.train(tmp_path, mesh=mesh, evaluate=leave, checkpoint_steps=3)
    resumed, alone = problem.train(tmp_path), problem.train(tmp_path / "one")
    assert_close(jax.device_get(resumed.state.variables), jax.device_get(alone.state.variables), 1e-4)


def test_rows_are_divided_over_the_mesh(mesh):
    placed = shard_batch(problem.batches().at(0), mesh)
    rows = [shard.data.shape[0] for shard in placed.inputs["clinical"].addressable_shards]
    assert rows == [4, 4]
    assert shard_batch({"x": 1}, None) == {"x": 1}


def test_rows_that_cannot_be_divided_are_refused_before_anything_is_compiled(mesh, tmp_path):
    with pytest.raises(ValueError, match=r"7 rows of a batch for 2 devices.*Change batch_size"):
        problem.train(tmp_path, batches=problem.batches(batch_size=7), mesh=mesh)


def test_what_is_replicated_may_be_donated():
    values = np.ones(64, np.float32)
    placed = replicate(values, None)
    jax.jit(lambda x: x + 1, donate_argnums=0)(placed).block_until_ready()
    np.testing.assert_array_equal(values, np.ones(64, np.float32))


def test_one_process_hears_itself(mesh):
    assert not spans_processes(mesh)
    assert from_first_process({"auc": float("inf")}, mesh) == {"auc": float("inf")}
