"""Checkpoints hold every bit of a state, and are whole or passed over."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.training import restore_best
from fusion_jax.training.checkpoint import Checkpoints, as_host


class State(NamedTuple):
    """Whatever a state may hold."""

    values: Any
    opt_state: Any
    key: Any
    nothing: Any = None


def state(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "a/b": {"w": rng.normal(size=(3, 2)).astype(np.float32)},
        "half": jnp.asarray(rng.normal(size=4), jnp.bfloat16),
    }
    return State(
        {"params": params, "flags": np.array([True, False]), "empty": {}, "nan": np.float32(np.nan)},
        optax.adam(0.1).init(params["a/b"]),
        jax.random.key(seed),
    )


def like(of):
    return jax.eval_shape(lambda: of)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("step_000000003", saved, {"epoch": 1, "best": 0.1 + 0.2, "name": "é"})
    found = checkpoints.restore("step_000000003", like(saved))
    assert_equal(found.state, saved)
    assert found.host == {"epoch": 1, "best": 0.1 + 0.2, "name": "é"}
    assert not list(tmp_path.glob("*tmp*"))


def test_saving_again_replaces(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for seed in (0, 1):
        checkpoints.save("final", state(seed), {"seed": seed})
    assert_equal(checkpoints.restore("final", like(state())).state, state(1))


def test_the_newest_comes_first_whatever_the_clock_says(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    small = {"w": np.ones(1)}
    for name in ("step_000000900", "step_000001000", "step_000000100", "best_000000009"):
        checkpoints.save(name, small, {})
    (tmp_path / "unfinished_step_000002000").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoints.names() == ["step_000001000", "step_000000900", "step_000000100"]
    checkpoints.save("final", small, {})
    assert checkpoints.names()[0] == "final"
    # What a killed writer left is cleared away; what is not ours stays.
    assert {path.name for path in tmp_path.iterdir()} == {*checkpoints.names(), "best_000000009", "notes"}


def test_pruning_keeps_the_newest_two_and_the_best_states_they_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    small = {"w": np.ones(1)}
    for number in range(1, 4):
        checkpoints.save(f"best_{number:09d}", small, {})
    for number, best in ((1, 1), (2, 2), (3, 2)):
        checkpoints.save(f"step_{number:09d}", small, {"best_name": f"best_{best:09d}"})
    (tmp_path / "notes").mkdir()
    checkpoints.prune()
    kept = {"step_000000002", "step_000000003", "best_000000002", "notes"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_damage_to_any_file_is_noticed(tmp_path):
    saved = {"w": np.arange(3.0)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("step_000000001", saved, {})
    for path in files(tmp_path):
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"step_000000001: cannot be read \(.*damaged"):
                checkpoints.restore("step_000000001", saved)
            path.write_bytes(content)
    assert_equal(checkpoints.restore("step_000000001", saved).state, saved)


def test_newest_passes_over_what_is_damaged_and_says_so(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(f"step_{number:09d}", {"w": np.full(3, number)}, {"number": number})
    for path in files(tmp_path / "step_000000002"):
        path.write_bytes(b"")
    found = checkpoints.newest({"w": np.zeros(3, int)})
    assert found.host == {"number": 1}
    assert "step_000000002: cannot be read" in caplog.text
    assert "Going back to an older one" in caplog.text
    for path in files(tmp_path / "step_000000001"):
        path.write_bytes(b"")
    assert checkpoints.newest({"w": np.zeros(3, int)}) is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": np.zeros(4)}, r"holds float64\[3\] for w, the model now has float64\[4\]"),
        ({"w": np.zeros(3, np.float32)}, r"holds float64\[3\] for w, the model now has float32\[3\]"),
        ({"w": np.zeros(3), "v": np.zeros(1)}, r"holds nothing for v"),
        ({}, r"holds w \(1 arrays\) that the model does not have"),
    ],
)
def test_the_state_of_another_model_is_refused(tmp_path, other, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("step_000000001", {"w": np.zeros(3)}, {})
    with pytest.raises(ValueError, match=message):
        checkpoints.newest(other)


def test_a_run_that_has_not_ended_has_no_best_state(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save("step_000000001", {"w": np.zeros(3)}, {})
    with pytest.raises(FileNotFoundError, match=r"final: no such checkpoint.*Call `fit` on it again"):
        restore_best(tmp_path, {"w": np.zeros(3)})


def test_a_copy_outlives_the_donation_of_its_original():
    original = {"w": jnp.ones(1000)}
    copy = as_host(original)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0.0, tree), donate_argnums=0)(original)
    np.testing.assert_array_equal(copy["w"], np.ones(1000, np.float32))


def test_a_path_that_orbax_reads_as_a_pattern_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"old\[1\].*Choose another"):
        Checkpoints(tmp_path / "old[1]")
