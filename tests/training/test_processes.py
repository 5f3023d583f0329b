"""The same `fit` in two processes, which divide every batch between them."""

import socket
import subprocess
import sys

import jax
import numpy as np

from fusion_jax.training import restore_best
from fusion_jax.training.logs import read_lines
from tests.helpers import ROOT, assert_close
from tests.training import problem


def test_two_processes_train_what_one_trains(tmp_path):
    """One step agrees within 1e-5 (DESIGN 7); here 36 steps of Adam, whose rounding adds up."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.problem", str(tmp_path / f"own{index}"), address, "2", str(index)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(errors)

    # Only the first process writes, though each was given a folder of its own.
    assert not (tmp_path / "own1").exists()
    first, second = (np.load(tmp_path / f"state{index}.npz") for index in range(2))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])

    alone = problem.train(tmp_path / "alone")
    assert_close(
        [first[name] for name in first.files], [np.asarray(leaf) for leaf in jax.tree.leaves(alone.state)], 1e-4
    )
    init, _ = problem.parts()
    like = jax.eval_shape(init, jax.random.key(0), problem.batches().at(0))
    assert_close(restore_best(tmp_path / "own0", like).variables, alone.state.variables, 1e-4)
    losses = [
        [line["loss"] for line in lines] for lines in (read_lines(tmp_path / "own0/metrics.jsonl"), alone.history)
    ]
    assert_close(losses[0], losses[1], 1e-4)
