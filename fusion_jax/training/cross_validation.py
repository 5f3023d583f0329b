"""Many trainings, folds x repeats x seeds x models, run anywhere, each exactly once.

A task is a function at the top of a module with the configuration as JSON, four values and a folder: nothing else is
sent to a worker. It is done when its `predictions.csv` exists; whatever stops the rest, what is done is never repeated.
"""

import hashlib
import json
import logging
import pickle
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import unquote

from fusion_jax.records import run_record, write_json, write_text
from fusion_jax.training.executors import ExecutorFactory, in_process
from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "CrossValidation",
    "Failure",
    "Task",
    "TaskProgress",
    "cross_validate",
    "merge_predictions",
    "read_failures",
]

PREDICTIONS, FAILURES, CONFIG = "predictions.csv", "failures.json", "config.json"
TRACEBACK, STARTED = "traceback.txt", ".started"

DEATHS = 2
"""Times that a task may have been running when a worker died before it is run alone."""

BARREN = 3
"""Pools in a row that may break before any task has begun."""

MERGE_EVERY = 30.0
"""Seconds between tables of what is done so far."""

WORDS = ("case_id", "patient_id", "instance", "model", "split", "site", "label", "class")
"""Columns that are text whatever they look like: ids may have leading zeros."""

# Brackets are a pattern to Orbax, which then finds nothing of what it wrote.
UNSAFE = re.compile(r'[/\\:*?"<>|%\[\]\x00-\x1f]|^\.|[. ]$')

LOG = logging.getLogger("fusion_jax.training.cross_validation")

RunTask: TypeAlias = Callable[[str, str, int, int, int, str], Any]
"""`run(config_json, model, repeat, fold, seed, folder)`: writes `predictions.csv` into the folder, last of all."""


class Task(NamedTuple):
    """One training: a model on one fold of one repeat, with one seed."""

    model: str
    repeat: int
    fold: int
    seed: int

    def folder(self, root: str | Path) -> Path:
        """Where its files are; what no file system takes in the model's name is percent-encoded.

        Example:
          >>> Task("concatenate", 0, 3, 1).folder("results").as_posix()
          'results/concatenate/r0_f3_s1'
        """
        name = UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", self.model)
        return Path(root) / name / f"r{self.repeat}_f{self.fold}_s{self.seed}"


class Failure(NamedTuple):
    """A task that did not end well.

    Attributes:
      task: which one.
      message: what went wrong, in one line.
      traceback: file with the whole story; None where its process died.
    """

    task: Task
    message: str
    traceback: Path | None


class TaskProgress(NamedTuple):
    """What `report` is told, once at the start and after every task.

    Attributes:
      task: that has ended; None at the start.
      message: why it failed; "" where it did not.
      seconds: that it took.
      done, failed, total: tasks so far, with those that an earlier run had finished, and all of them.
    """

    task: Task | None
    message: str
    seconds: float
    done: int
    failed: int
    total: int


class CrossValidation(NamedTuple):
    """What has become of the tasks.

    Attributes:
      done: tasks with predictions, in the order they were given.
      failed: the others.
    """

    done: tuple[Task, ...]
    failed: tuple[Failure, ...]

    def summary(self) -> str:
        """One line on the whole, and one for every kind of failure.

        Example:
          >>> print(CrossValidation((), (Failure(Task("add", 0, 1, 0), "no label", None),)).summary())
          0 of 1 task done; 1 failed:
            no label: add, repeat 0, fold 1, seed 0
        """
        total = len(self.done) + len(self.failed)
        if not self.failed:
            return f"All {counted(total, 'task')} done."
        kinds: dict[str, list[str]] = {}
        for failure in self.failed:
            kinds.setdefault(failure.message, []).append(_name(failure.task))
        lines = [f"  {message}: {listed(names)}" for message, names in kinds.items()]
        return "\n".join([f"{len(self.done)} of {counted(total, 'task')} done; {len(self.failed)} failed:", *lines])


def cross_validate(
    tasks: Sequence[Task],
    run: RunTask,
    executor_factory: ExecutorFactory | None = None,
    *,
    root: str | Path,
    config: Mapping[str, Any],
    report: Callable[[TaskProgress], None] | None = None,
) -> CrossValidation:
    """Run every task that is not done yet.

    A task that raises is noted, and the others go on. When a worker dies, and its pool with it, the pool is built anew
    and what was not finished starts again; a task that was running at two deaths runs alone after all others, and
    fails if its process dies there, too. An interrupted call goes on where it stopped when it is called again. Tasks
    that failed are tried again then.

    Args:
      tasks: all of the study, each once.
      run: function at the top of a module, see `RunTask`; for tasks in this process any function.
      executor_factory: from `executors`; by default tasks run here, one after the other.
      root: folder of the study; a task writes into `root/<model>/r<repeat>_f<fold>_s<seed>`.
      config: all that decides what a task computes, with the fingerprint of the cohort and the hash of the splits. It
        is written to `root/config.json`, and another one is refused there later, except that `config["models"]`, a
        mapping from model to settings, may gain models, and may change those of which no task has left anything.
      report: is told of every task that ends.

    Returns:
      What is done and what failed; failures are in `root/failures.json`, too, and tracebacks in the tasks' folders.

    Raises:
      ValueError: a task twice, another configuration than the folder's, finished tasks of an unknown one.
      TypeError: a function that cannot be sent to a worker, or a configuration that JSON cannot hold.
      RuntimeError: workers die before they begin.
    """
    root = Path(root)
    tasks = list(tasks)
    twice = [task for task, count in Counter(tasks).items() if count > 1]
    if twice:
        raise ValueError(f"task {_name(twice[0])} stands there {tasks.count(twice[0])} times; expected every one once.")
    if executor_factory is not None:
        _check_function(run)
    config_json = _settle_config(root, config)
    study = _Study(root, tasks, run, config_json, report)
    study.run(executor_factory or in_process)
    return CrossValidation(
        tuple(task for task in tasks if task in study.done),
        tuple(study.failed[task] for task in tasks if task in study.failed),
    )


def read_failures(root: str | Path) -> tuple[Failure, ...]:
    """What `cross_validate` wrote of the tasks that did not end well; nothing where there are none.

    Args:
      root: folder of the tasks.
    """
    path = Path(root) / FAILURES
    if not path.exists():
        return ()
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Failure(_task_of(row), row["message"], Path(root) / row["traceback"] if row["traceback"] else None)
        for row in rows
    )


def _task_of(row: Mapping[str, Any]) -> Task:
    return Task(*(row[field] for field in Task._fields))


def merge_predictions(root: str | Path, models: Sequence[str] | None = None) -> "pandas.DataFrame":
    """One table of all finished tasks, also written to `root/predictions.csv`.

    Args:
      root: folder of the study.
      models: which, in their order; by default all, by name.

    Returns:
      Rows by model, repeat, fold and seed. Ids, model, split, site, label and class are text; scores are read to the
      last bit.

    Raises:
      ValueError: no finished task, or none of a model that was named.
    """
    import pandas as pd

    root = Path(root)
    found: dict[str, list[tuple[tuple[int, ...], Path]]] = {}
    for path in root.glob(f"*/r*_f*_s*/{PREDICTIONS}"):
        numbers = re.fullmatch(r"r(\d+)_f(\d+)_s(\d+)", path.parent.name)
        if numbers:
            key = tuple(map(int, numbers.groups()))
            found.setdefault(unquote(path.parent.parent.name), []).append((key, path))
    if not found:
        raise ValueError(f"{root}: no finished task; expected <model>/r<repeat>_f<fold>_s<seed>/{PREDICTIONS}.")
    for model in models or ():
        if model not in found:
            raise ValueError(f"{root}: no finished task of {model!r}; there are some of {listed(sorted(found), 8)}.")
    order = sorted(found) if models is None else list(models)
    paths = [path for model in order for _, path in sorted(found[model])]
    # As text, so that numbers keep the digits that the task has written.
    parts = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]
    merged = pd.concat(parts, ignore_index=True).fillna("")
    write_text(root / PREDICTIONS, merged.to_csv(index=False, lineterminator="\n"))
    for column in merged.columns:
        if column not in WORDS:
            merged[column] = pd.to_numeric(merged[column])
    return merged


class _Finished(NamedTuple):
    """What a worker sends back."""

    message: str
    seconds: float


def _work(run: RunTask, config_json: str, task: Task, folder: str) -> _Finished:
    """One task, in the worker: the exception stays here as text, since not every exception survives the way back."""
    start, place = time.perf_counter(), Path(folder)
    message = ""
    # Tells after the death of a pool who was running.
    write_text(place / STARTED, "")
    try:
        run(config_json, *task, folder)
        if not (place / PREDICTIONS).exists():
            message = f"it ended without writing {PREDICTIONS}"
    except Exception as error:  # one task must not stop the others
        # At most one line: it stands in tables.
        message = " ".join(f"{type(error).__name__}: {error}".split())
        write_text(place / TRACEBACK, traceback.format_exc())
    finally:
        (place / STARTED).unlink(missing_ok=True)
    if not message:
        (place / TRACEBACK).unlink(missing_ok=True)
    return _Finished(message, time.perf_counter() - start)


class _Study:
    """What is known of the tasks of one call while it runs."""

    def __init__(
        self,
        root: Path,
        tasks: list[Task],
        run: RunTask,
        config_json: str,
        report: Callable[[TaskProgress], None] | None,
    ) -> None:
        self.root, self.tasks, self.function, self.config_json = root, tasks, run, config_json
        self.report = report
        self.done = {task for task in tasks if (task.folder(root) / PREDICTIONS).exists()}
        self.failed: dict[Task, Failure] = {}
        self.deaths: Counter[Task] = Counter()
        self.barren = 0
        self.merge_at = time.monotonic() + MERGE_EVERY
        self.executor: Executor | None = None

    def run(self, factory: ExecutorFactory) -> None:
        waiting = [task for task in self.tasks if task not in self.done]
        self._tell(None, "", 0.0)
        self._write_failures()
        try:
            while waiting or self._suspects():
                alone = not waiting
                batch = waiting or self._suspects()[:1]
                lost = self._round(factory, batch)
                if lost:
                    self._bury(lost, alone=alone)
                waiting = [task for task in lost if not self._is_settled(task) and self.deaths[task] < DEATHS]
        except BaseException:
            # Also at Ctrl-C: a pool left to itself would finish all tasks first.
            self._end(wait=False)
            raise
        if self.executor is not None:
            self.executor.shutdown()
        if self.done:
            merge_predictions(self.root, self._models())

    def _round(self, factory: ExecutorFactory, batch: list[Task]) -> list[Task]:
        """Run these tasks; those that were lost with a worker come back."""
        self.executor = self.executor or factory()
        futures: dict[Future, Task] = {}
        lost: list[Task] = []
        for task in batch:
            folder = task.folder(self.root)
            (folder / STARTED).unlink(missing_ok=True)
            try:
                future = self.executor.submit(_work, self.function, self.config_json, task, str(folder))
            except BrokenExecutor:
                lost.append(task)
                continue
            if future.done():
                self._take(future, task, lost)
            else:
                futures[future] = task
        for future in as_completed(futures):
            self._take(future, futures[future], lost)
        return lost

    def _take(self, future: Future, task: Task, lost: list[Task]) -> None:
        try:
            finished = future.result()
        except (BrokenExecutor, CancelledError):
            lost.append(task)
        except Exception as error:  # of sending the task, or of the cluster
            # Dask starts a dead worker again by itself, and blames a task after several deaths.
            if type(error).__name__ == "KilledWorker":
                self.deaths[task] += DEATHS
                lost.append(task)
            else:
                self._settle(task, " ".join(f"{type(error).__name__}: {error}".split()), 0.0)
        else:
            self._settle(task, finished.message, finished.seconds)

    def _bury(self, lost: list[Task], *, alone: bool) -> None:
        """After a worker's death: who was running, who has failed, and no pool."""
        # Waits for the last process, so that no two of them ever write into one folder.
        self._end(wait=True)
        began = [task for task in lost if (task.folder(self.root) / STARTED).exists()]
        for task in began:
            if not (task.folder(self.root) / PREDICTIONS).exists():
                self.deaths[task] += 1
        for task in lost:
            if (task.folder(self.root) / PREDICTIONS).exists():
                self._settle(task, "", 0.0)
            elif alone:
                died = "the process that ran it died, alone too (out of memory, or killed)"
                self._settle(task, died, 0.0)
        again = [task for task in lost if not self._is_settled(task)]
        if again:
            running = listed([_name(task) for task in began if task in again]) or "none that is known"
            LOG.warning("A worker died; %s run again. Running at its death: %s.", counted(len(again), "task"), running)
        self.barren = 0 if began or alone else self.barren + 1
        if self.barren == BARREN:
            raise RuntimeError(
                f"workers died {BARREN} times before they had begun a task. Run one task in this process to see why, "
                "or use fewer workers where memory is short."
            )

    def _settle(self, task: Task, message: str, seconds: float) -> None:
        folder = task.folder(self.root)
        if not message and not (folder / PREDICTIONS).exists():
            message = f"its worker wrote {PREDICTIONS} where this process cannot see it; all need one shared folder"
        (folder / STARTED).unlink(missing_ok=True)
        self.barren = 0
        if message:
            written = folder / TRACEBACK
            self.failed[task] = Failure(task, message, written if written.exists() else None)
            self._write_failures()
            LOG.warning("%s failed: %s", _name(task), message)
        else:
            self.done.add(task)
        self._tell(task, message, seconds)
        self._merge_now_and_then()

    def _is_settled(self, task: Task) -> bool:
        return task in self.done or task in self.failed

    def _suspects(self) -> list[Task]:
        return [task for task, deaths in self.deaths.items() if deaths >= DEATHS and not self._is_settled(task)]

    def _models(self) -> list[str]:
        return list(dict.fromkeys(task.model for task in self.tasks if task in self.done))

    def _merge_now_and_then(self) -> None:
        now = time.monotonic()
        if now < self.merge_at or not self.done:
            return
        merge_predictions(self.root, self._models())
        # With thousands of tasks the table takes long: at most a twentieth of the time goes into it.
        self.merge_at = time.monotonic() + max(MERGE_EVERY, 20 * (time.monotonic() - now))

    def _write_failures(self) -> None:
        path = self.root / FAILURES
        rows = [
            {**failure.task._asdict(), "message": failure.message, "traceback": _relative(failure.traceback, self.root)}
            for failure in self.failed.values()
        ]
        # Failures of tasks that this call does not run are still true.
        if path.exists():
            for row in json.loads(path.read_text(encoding="utf-8")):
                task = _task_of(row)
                if task not in self.tasks and not (task.folder(self.root) / PREDICTIONS).exists():
                    rows.append(row)
        if rows:
            write_json(path, rows)
        else:
            path.unlink(missing_ok=True)

    def _tell(self, task: Task | None, message: str, seconds: float) -> None:
        if self.report is not None:
            self.report(TaskProgress(task, message, seconds, len(self.done), len(self.failed), len(self.tasks)))

    def _end(self, *, wait: bool) -> None:
        executor, self.executor = self.executor, None
        if executor is None:
            return
        at_once = getattr(executor, "end", None)
        if at_once is None:
            executor.shutdown(wait=wait, cancel_futures=True)
        else:
            at_once()


def _settle_config(root: Path, config: Mapping[str, Any]) -> str:
    """Check the configuration against the folder's, write it there, and return it as JSON."""
    path = root / CONFIG
    try:
        text = json.dumps(config, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the configuration has no JSON form ({error}); expected numbers, text, lists, mappings."
        ) from None
    now = json.loads(text)
    kept = dict(now)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["config"]
        models = before.get("models"), now.get("models")
        if all(isinstance(one, dict) for one in models):
            # A study may grow: what other models are is no business of a finished task.
            kept["models"] = {**models[0], **models[1]}
            # Nor does a model have settings of which every task failed at once: those are what was put right.
            kept_to = {name: own for name, own in models[0].items() if not _is_blank(root, name)}
            before = {**before, "models": {name: kept_to.get(name, own) for name, own in models[1].items()}}
        different = _differences(before, now)
        if different:
            raise ValueError(
                f"{path}: written with other settings: {listed(different, 6)}. Finished tasks are never mixed with "
                "those of another configuration: restore the settings, or choose another folder."
            )
    else:
        strange = next(root.glob(f"*/r*_f*_s*/{PREDICTIONS}"), None)
        if strange is not None:
            raise ValueError(
                f"{strange}: a finished task, but no {path} that says with which settings. Restore that file, or "
                "choose another folder."
            )
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    if not path.exists() or json.loads(path.read_text(encoding="utf-8")).get("hash") != digest:
        write_json(path, {"config": kept, "hash": digest, "run": run_record()})
    return text


def _is_blank(root: Path, model: str) -> bool:
    """Whether the tasks of a model have left nothing but tracebacks."""
    left = Task(model, 0, 0, 0).folder(root).parent.rglob("*")
    return all(path.is_dir() or path.name in (TRACEBACK, STARTED) for path in left)


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Keys in which two configurations differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            text
            for key in keys
            for text in _differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
        ]
    if before == now:
        return []
    was, is_now = (_short(value) for value in (before, now))
    return [f"{where} was {was} and is {is_now}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check_function(run: RunTask) -> None:
    name = getattr(run, "__qualname__", "")
    at_top = bool(name) and "<" not in name and "." not in name
    try:
        pickle.dumps(run)
    except (pickle.PicklingError, AttributeError, TypeError):
        at_top = False
    if not at_top:
        raise TypeError(
            f"{run!r} cannot be sent to a worker; expected a function at the top of a module, which a worker imports "
            "by name."
        )


def _relative(path: Path | None, root: Path) -> str | None:
    return None if path is None else path.relative_to(root).as_posix()


def _name(task: Task) -> str:
    return f"{task.model}, repeat {task.repeat}, fold {task.fold}, seed {task.seed}"
