"""A run that was killed goes on where it stopped, to the bits of one that nobody killed."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fusion_jax.training.checkpoint import Checkpoints
from fusion_jax.training.logs import read_lines
from tests.helpers import ROOT
from tests.training import problem


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupts: its folder and result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, problem.train(folder)


def assert_same_bits(folder, result, whole):
    reference_folder, reference = whole
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(result.state), jax.tree.leaves(reference.state), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other), err_msg=jax.tree_util.keystr(path))
    assert (result.best_epoch, result.stopped) == (reference.best_epoch, reference.stopped)
    lines = [
        [
            {name: value for name, value in line.items() if name != "seconds"}
            for line in read_lines(own / "metrics.jsonl")
        ]
        for own in (folder, reference_folder)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == problem.EPOCHS


class Interrupted(Exception):
    """What a test raises in the middle of a run."""


def interrupt(folder, *, step, **settings):
    """Run until the batch of `step` is due; what was saved by then stays."""

    class Broken:
        steps_per_epoch = 3

        def __init__(self):
            self.whole = problem.batches()
            self.at = self.whole.at

        def iterate(self, start=0, *, stop=None, workers=0):
            for number in range(start, stop):
                if number == step:
                    raise Interrupted
                yield self.whole.at(number)

    with pytest.raises(Interrupted):
        problem.train(folder, batches=Broken(), **settings)


def test_the_problem_exercises_what_a_checkpoint_has_to_carry(whole):
    _, result = whole
    rates = [line["learning_rate"] for line in result.history]
    assert min(rates) < max(rates)  # the plateau rule has acted
    assert 0 < result.best_epoch < problem.EPOCHS - 1  # the best epoch is not the last
    assert float(result.state.variables["objective"]["s"]) != 0.0


# Step 7 lies within an epoch, 12 at the end of one, 20 and 31 after the best epoch and the first lower rates.
@pytest.mark.parametrize(("step", "every"), [(7, 1), (20, 4), (31, 9), (2, 5)])
def test_a_run_resumes_to_identical_bits(tmp_path, whole, step, every):
    interrupt(tmp_path, step=step, checkpoint_steps=every)
    assert_same_bits(tmp_path, problem.train(tmp_path), whole)


def test_a_run_may_be_interrupted_again_and_again(tmp_path, whole):
    for step in (5, 11, 12, 17, 30):
        interrupt(tmp_path, step=step, checkpoint_steps=2)
    assert_same_bits(tmp_path, problem.train(tmp_path), whole)


def test_a_run_without_a_checkpoint_starts_again_with_an_empty_log(tmp_path, whole):
    interrupt(tmp_path, step=10)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
    assert_same_bits(tmp_path, problem.train(tmp_path), whole)


@pytest.mark.parametrize("damaged", ["state", "host", "everything"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, whole, caplog, damaged):
    interrupt(tmp_path, step=20, checkpoint_steps=6)
    newest = tmp_path / "checkpoints" / "step_000000018"
    files = [path for path in (newest / damaged if damaged != "everything" else newest).rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = problem.train(tmp_path)
    assert "step_000000018: cannot be read" in caplog.text
    assert "Going back to an older one" in caplog.text
    assert_same_bits(tmp_path, result, whole)


def test_a_checkpoint_whose_best_state_is_damaged_is_passed_over(tmp_path, whole, caplog):
    # Epoch 6, the best, ends at step 21: the checkpoints of steps 20 and 22 name different ones.
    interrupt(tmp_path, step=23, checkpoint_steps=2)
    assert {path.name for path in (tmp_path / "checkpoints").glob("best_*")} == {"best_000000005", "best_000000006"}
    for path in (tmp_path / "checkpoints" / "best_000000006").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    result = problem.train(tmp_path)
    assert "best_000000006: cannot be read" in caplog.text
    assert_same_bits(tmp_path, result, whole)


def test_a_run_that_has_ended_returns_at_once(tmp_path, whole):
    folder, _ = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    class Untouched:
        steps_per_epoch = 3
        at = staticmethod(problem.batches().at)

        def iterate(self, start=0, *, stop=None, workers=0):
            raise AssertionError("a run that has ended read a batch")

    def never(state, epoch):
        raise AssertionError("a run that has ended evaluated")

    result = problem.train(tmp_path, batches=Untouched(), evaluate=never)
    assert_same_bits(tmp_path, result, whole)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["final"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"learning_rate": 0.5}}, r"settings.learning_rate 0.4 then, 0.5 now.*another folder"),
        ({"epochs": 13}, "fit.epochs 12 then, 13 now"),
        ({"settings": {}}, "settings.learning_rate 0.4 then, absent now"),
        ({"key": jax.random.key(1)}, "fit.key"),
    ],
)
def test_a_folder_of_other_settings_is_refused(whole, changes, message):
    folder, _ = whole
    with pytest.raises(ValueError, match=message):
        problem.train(folder, **changes)


def test_a_folder_of_another_model_is_refused(tmp_path, monkeypatch):
    interrupt(tmp_path, step=4, checkpoint_steps=3)
    init, step = problem.parts()

    def wider(key, batch):
        state = init(key, batch)
        return state._replace(variables={**state.variables, "batch_stats": {"mean": np.zeros(5, np.float32)}})

    monkeypatch.setattr(problem, "parts", lambda: (wider, step))
    with pytest.raises(ValueError, match=r"holds float32\[3\] for .*batch_stats.mean, the model now has float32\[5\]"):
        problem.train(tmp_path)


def killed(folder: Path, delay: float) -> bool:
    """Start a run in a process, kill it some time after its first checkpoint; False if it was too fast for that."""
    run = subprocess.Popen([sys.executable, "-m", "tests.training.problem", str(folder)], cwd=ROOT)
    try:
        before = set((folder / "checkpoints").glob("step_*"))
        for _ in range(1200):
            if run.poll() is not None:
                assert run.returncode == 0
                return False
            if set((folder / "checkpoints").glob("step_*")) - before:
                break
            time.sleep(0.05)
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
    finally:
        run.kill()
        run.wait()
    return True


def test_a_killed_process_resumes_to_identical_bits(tmp_path, whole):
    folder = tmp_path / "run"
    assert killed(folder, np.random.default_rng().uniform(0.0, 1.0))
    checkpoints = Checkpoints(folder / "checkpoints")
    assert 0 < checkpoints.host(checkpoints.names()[0])["step"] < 36
    assert_same_bits(folder, problem.train(folder), whole)


@pytest.mark.slow
def test_a_process_that_is_killed_many_times_resumes_to_identical_bits(tmp_path, whole):
    folder, rng = tmp_path / "run", np.random.default_rng()
    for _ in range(12):
        if not killed(folder, rng.uniform(0.0, 0.4)):
            break
    assert_same_bits(folder, problem.train(folder), whole)
