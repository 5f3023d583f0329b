"""Tasks run once, wherever they run, whoever dies."""

import json
import multiprocessing
import os
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pandas as pd
import pytest

from fusion_jax.records.predictions import check_predictions
from fusion_jax.training.cross_validation import (
    CrossValidation,
    Task,
    TaskProgress,
    cross_validate,
    merge_predictions,
)
from fusion_jax.training.executors import InProcess, dask_executor, spawned
from tests.training.tasks import describe_worker, die_once, poison, write_scores

TASKS = [Task(model, 0, fold, seed) for model in ("image-only", "concatenate") for fold in (0, 1) for seed in (0, 1)]
FOLDS = [Task("add", 0, fold, 0) for fold in range(5)]


@pytest.fixture(scope="module")
def pool_factory():
    """Standard pools of two processes that start in a hundredth of a second, forked from a process that has imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusion_jax.training.cross_validation", "tests.training.tasks"])
    return lambda: ProcessPoolExecutor(2, mp_context=context)


def runs(task, root):
    """How often a task was begun."""
    return len((task.folder(root) / "runs.txt").read_text().splitlines())


def failing(message):
    def run(config_json, model, repeat, fold, seed, folder):
        if fold == 1:
            raise ValueError(message)
        write_scores(config_json, model, repeat, fold, seed, folder)

    return run


def test_settings_with_which_every_task_failed_can_be_put_right(tmp_path):
    def misspelt(config_json, model, repeat, fold, seed, folder):
        if model == "concatenate":
            raise ValueError("no encoder 'resnt18'")
        write_scores(config_json, model, repeat, fold, seed, folder)

    wrong = {"digits": 0.25, "models": {"image-only": {}, "concatenate": {"encoder": "resnt18"}}}
    right = {"digits": 0.25, "models": {"image-only": {}, "concatenate": {"encoder": "resnet18"}}}
    assert len(cross_validate(TASKS, misspelt, root=tmp_path, config=wrong).failed) == 4
    with pytest.raises(ValueError, match=r"models.image-only.encoder was null"):
        cross_validate(TASKS, write_scores, root=tmp_path, config={**wrong, "models": {"image-only": {"encoder": "x"}}})
    found = cross_validate(TASKS, write_scores, root=tmp_path, config=right)
    assert not found.failed
    with pytest.raises(ValueError, match=r"models.concatenate.encoder was \"resnet18\""):
        cross_validate(TASKS, write_scores, root=tmp_path, config=wrong)


def test_every_task_runs_once_in_its_own_folder(tmp_path):
    told: list[TaskProgress] = []
    found = cross_validate(TASKS, write_scores, root=tmp_path, config={"digits": 0.25}, report=told.append)
    assert found == CrossValidation(tuple(TASKS), ())
    assert (tmp_path / "concatenate" / "r0_f1_s0" / "predictions.csv").exists()
    assert [runs(task, tmp_path) for task in TASKS] == [1] * 8
    assert [(one.task, one.done) for one in told] == [(None, 0), *((task, n + 1) for n, task in enumerate(TASKS))]
    assert found.summary() == "All 8 tasks done."
    assert not list(tmp_path.rglob(".started"))
    assert not (tmp_path / "failures.json").exists()


def test_finished_tasks_are_never_repeated(tmp_path):
    cross_validate(TASKS[:3], write_scores, root=tmp_path, config={})
    told: list[TaskProgress] = []
    found = cross_validate(TASKS, write_scores, root=tmp_path, config={}, report=told.append)
    assert found.done == tuple(TASKS)
    assert [runs(task, tmp_path) for task in TASKS] == [1] * 8
    assert told[0].done == 3
    assert len(told) == 6


def test_merged_predictions_are_read_to_the_last_bit_and_pass_the_check(tmp_path):
    cross_validate(TASKS, write_scores, root=tmp_path, config={"digits": 0.1})
    merged = merge_predictions(tmp_path)
    assert len(merged) == 16
    assert merged["model"].iloc[0] == "concatenate"
    assert merged["case_id"].tolist()[:2] == ["000", "001"]
    assert merged["score"].tolist()[:2] == [0.1, 0.1 + 1 / 3]
    written = (tmp_path / "predictions.csv").read_text()
    assert repr(0.1 + 1 / 3) in written
    checked = check_predictions({"predictions.csv": merged})
    assert checked.models == ("concatenate", "image-only")
    assert merge_predictions(tmp_path, ["image-only"])["model"].unique().tolist() == ["image-only"]
    with pytest.raises(ValueError, match="no finished task of 'gated'; there are some of concatenate, image-only"):
        merge_predictions(tmp_path, ["gated"])


def test_merged_table_has_the_models_in_the_order_of_the_tasks(tmp_path):
    cross_validate(TASKS, write_scores, root=tmp_path, config={})
    assert list(pd.read_csv(tmp_path / "predictions.csv")["model"].unique()) == ["image-only", "concatenate"]


def test_task_that_raises_is_noted_and_the_others_go_on(tmp_path):
    found = cross_validate(TASKS, failing("no label\nanywhere"), root=tmp_path, config={})
    assert [failure.task.fold for failure in found.failed] == [1] * 4
    assert len(found.done) == 4
    assert found.failed[0].message == "ValueError: no label anywhere"
    assert "raise ValueError(message)" in found.failed[0].traceback.read_text()
    [first, *_] = json.loads((tmp_path / "failures.json").read_text())
    assert first == {
        "model": "image-only", "repeat": 0, "fold": 1, "seed": 0, "message": "ValueError: no label anywhere",
        "traceback": "image-only/r0_f1_s0/traceback.txt",
    }  # fmt: skip
    assert found.summary().startswith("4 of 8 tasks done; 4 failed:\n  ValueError: no label anywhere: image-only")
    # Of the others, another call says nothing new; of these it says that they are done.
    cross_validate(TASKS[:4], write_scores, root=tmp_path, config={})
    left = json.loads((tmp_path / "failures.json").read_text())
    assert {row["model"] for row in left} == {"concatenate"}
    assert len(left) == 2
    assert not (tmp_path / "image-only" / "r0_f1_s0" / "traceback.txt").exists()


def test_task_that_writes_nothing_has_failed(tmp_path):
    found = cross_validate(TASKS[:1], lambda *_: None, root=tmp_path, config={})
    assert "without writing predictions.csv" in found.failed[0].message
    assert not found.done


def test_interrupted_study_goes_on_where_it_stopped(tmp_path):
    def interrupted(config_json, model, repeat, fold, seed, folder):
        if model == "concatenate":
            raise KeyboardInterrupt
        write_scores(config_json, model, repeat, fold, seed, folder)

    with pytest.raises(KeyboardInterrupt):
        cross_validate(TASKS, interrupted, root=tmp_path, config={})
    assert not list(tmp_path.rglob(".started"))
    found = cross_validate(TASKS, write_scores, root=tmp_path, config={})
    assert len(found.done) == 8
    assert [runs(task, tmp_path) for task in TASKS] == [1] * 8


def test_other_settings_are_refused_and_the_keys_are_named(tmp_path):
    config = {"folds": {"k": 5, "seed": 0}, "splits": "3f2a", "models": {"add": {"width": 8}}}
    cross_validate(FOLDS[:1], write_scores, root=tmp_path, config=config)
    other = {**config, "folds": {"k": 10, "seed": 0}, "epochs": 3}
    with pytest.raises(ValueError, match=r"config.json.*epochs was null and is 3, folds.k was 5 and is 10.*another"):
        cross_validate(FOLDS, write_scores, root=tmp_path, config=other)
    with pytest.raises(ValueError, match=r"models.add.width was 8 and is 16"):
        cross_validate(FOLDS, write_scores, root=tmp_path, config={**config, "models": {"add": {"width": 16}}})
    assert runs(FOLDS[0], tmp_path) == 1
    assert not FOLDS[1].folder(tmp_path).exists()


def test_models_may_be_added_later_and_earlier_ones_stay_bound(tmp_path):
    first = {"splits": "3f2a", "models": {"add": {"width": 8}}}
    cross_validate(FOLDS[:1], write_scores, root=tmp_path, config=first)
    before = json.loads((tmp_path / "config.json").read_text())["hash"]
    gated = [Task("gated", 0, 0, 0)]
    cross_validate(gated, write_scores, root=tmp_path, config={"splits": "3f2a", "models": {"gated": {}}})
    kept = json.loads((tmp_path / "config.json").read_text())
    assert set(kept["config"]["models"]) == {"add", "gated"}
    assert kept["hash"] != before
    with pytest.raises(ValueError, match=r"models.add.width"):
        cross_validate(FOLDS, write_scores, root=tmp_path, config={"splits": "3f2a", "models": {"add": {"width": 9}}})


def test_finished_tasks_of_unknown_settings_are_refused(tmp_path):
    cross_validate(FOLDS[:1], write_scores, root=tmp_path, config={})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"a finished task, but no .*config.json"):
        cross_validate(FOLDS, write_scores, root=tmp_path, config={})


def test_what_cannot_be_a_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"concatenate, repeat 0, fold 1, seed 0 stands there 2 times"):
        cross_validate([*TASKS, Task("concatenate", 0, 1, 0)], write_scores, root=tmp_path, config={})
    with pytest.raises(TypeError, match=r"no JSON form"):
        cross_validate(TASKS, write_scores, root=tmp_path, config={"path": object()})
    for function in (failing(""), lambda *_: None, InProcess().submit):
        with pytest.raises(TypeError, match="function at the top of a module"):
            cross_validate(TASKS, function, InProcess, root=tmp_path, config={})
    with pytest.raises(ValueError, match="no finished task"):
        merge_predictions(tmp_path)
    assert not list(tmp_path.iterdir())


def test_any_name_of_a_model_makes_one_folder(tmp_path):
    names = ["genotype:runs/best.json", "L×L", "[P,P]", "50 %", ".hidden", "genotype:runs_best.json"]
    tasks = [Task(name, 0, 0, 0) for name in names]
    assert cross_validate(tasks, write_scores, root=tmp_path, config={}).done == tuple(tasks)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 6
    assert set(merge_predictions(tmp_path)["model"]) == set(names)
    assert all(folder.resolve().is_relative_to(tmp_path.resolve()) for folder in tmp_path.iterdir())


def test_dead_worker_costs_nothing_but_its_task_again(tmp_path, pool_factory):
    found = cross_validate(FOLDS, die_once, pool_factory, root=tmp_path, config={})
    assert found.done == tuple(FOLDS)
    assert not found.failed
    assert (FOLDS[1].folder(tmp_path) / "died").exists()
    assert runs(FOLDS[1], tmp_path) == 1


def test_poison_task_dies_twice_in_company_once_alone_and_fails(tmp_path, pool_factory):
    pools: list[Executor] = []

    def counted():
        pools.append(pool_factory())
        return pools[-1]

    found = cross_validate(FOLDS, poison, counted, root=tmp_path, config={})
    assert set(found.done) == set(FOLDS) - {FOLDS[1]}
    [failure] = found.failed
    assert failure.task == FOLDS[1]
    assert "died, alone too" in failure.message
    assert failure.traceback is None
    assert runs(FOLDS[1], tmp_path) == 3
    # Two that broke, and the one that finished the others and then died of the poison alone; on a busy machine another
    # task may have died in company and was done alone as well.
    assert len(pools) >= 3
    assert json.loads((tmp_path / "failures.json").read_text())[0]["fold"] == 1


class Barren(Executor):
    """A pool whose workers die before they begin."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        future.set_exception(BrokenProcessPool("no memory"))
        return future


def test_workers_that_never_begin_stop_the_study(tmp_path):
    with pytest.raises(RuntimeError, match="died 3 times before they had begun a task"):
        cross_validate(FOLDS, write_scores, Barren, root=tmp_path, config={})


def test_spawned_workers_share_cores_and_cache(tmp_path, monkeypatch):
    config = pytest.importorskip("jax").config
    before, least = config.jax_compilation_cache_dir, config.jax_persistent_cache_min_compile_time_secs
    config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.25)
    monkeypatch.delenv("NPROC", raising=False)
    try:
        found = cross_validate(FOLDS[:1], describe_worker, spawned(1, threads=1), root=tmp_path / "out", config={})
    finally:
        config.update("jax_compilation_cache_dir", before)
        config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert found.done == tuple(FOLDS[:1])
    environment = json.loads((FOLDS[0].folder(tmp_path / "out") / "environment.json").read_text())
    assert environment == {
        "NPROC": "1", "OMP_NUM_THREADS": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.25",
    }  # fmt: skip
    assert "NPROC" not in os.environ
    with pytest.raises(ValueError, match="0 workers"):
        spawned(0)


def test_local_dask_cluster_runs_the_tasks(tmp_path):
    pytest.importorskip("distributed")
    found = cross_validate(TASKS, write_scores, dask_executor(workers=1, processes=False), root=tmp_path, config={})
    assert found.done == tuple(TASKS)
    assert [runs(task, tmp_path) for task in TASKS] == [1] * 8


def test_absent_dask_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r'pip install "fusion-jax\[cluster\]"'):
        dask_executor()


@pytest.mark.slow  # every worker imports the library anew
@pytest.mark.parametrize("where", ["spawned", "dask"])
def test_poison_task_fails_alone_on_real_workers(tmp_path, where):
    factory = spawned(2) if where == "spawned" else dask_executor(workers=2)
    found = cross_validate(FOLDS, poison, factory, root=tmp_path, config={})
    assert set(found.done) == set(FOLDS) - {FOLDS[1]}
    assert [one.task for one in found.failed] == [FOLDS[1]]


def test_brackets_in_a_name_do_not_reach_the_path_of_checkpoints(tmp_path):
    folder = Task("fusion [L,L]", 0, 0, 0).folder(tmp_path)
    assert not set("[]*?") & set(str(folder))
