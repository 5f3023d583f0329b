"""The one training loop: it serves every state that has a step, and survives being killed.

    init = initial_state(model, optimiser, objective)
    step = make_step(model, optimiser, objective)
    result = fit(init, step, batches, folder=folder, key=run_key(seed, repeat, fold), epochs=60, evaluate=evaluate)

Called again with the same settings on the same folder, `fit` goes on from its newest checkpoint and arrives at the same
bits as a run that nobody killed (on one machine and device); a run that has ended returns at once.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.arrays import Array, Key
from fusion_jax.training.checkpoint import CHECKPOINTS, FINAL, Checkpoint, Checkpoints, as_host
from fusion_jax.training.devices import (
    from_first_process,
    replicate,
    shard_batch,
    spans_processes,
    state_from_first_process,
)
from fusion_jax.training.keys import named_key
from fusion_jax.training.logs import append_line, keep_epochs
from fusion_jax.training.optimiser import Plateau, require_learning_rate, scale_learning_rate
from fusion_jax.training.progress import Pace, Progress
from fusion_jax.training.scalars import DivergedError, Sums, Window
from fusion_jax.training.settings import check_settings, flat
from fusion_jax.training.state import Step
from fusion_jax.training.stopping import Rules, Standing
from fusion_jax.wording import listed

__all__ = ["BatchSource", "FitResult", "fit"]

LOG = logging.getLogger("fusion_jax.training.fit")

AHEAD = 2
"""Steps under way on the device: enough to hide the reading of the next batch, too few to fill the memory."""

FETCHED = 32
"""Steps whose scalars are fetched at once; a fetch a step would leave the device idle each time."""

SHOWN = 8
"""Case ids that a message names."""


@runtime_checkable
class BatchSource(Protocol):
    """What `fit` asks of batches; `fusion_jax.data.Batches` has it, and so may pairs of batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        ...

    def at(self, step: int, /) -> Any:
        """The batch of a step, the same whenever it is asked for; it has `valid`."""
        ...

    def iterate(self, start: int = 0, *, stop: int | None = None, workers: int = 0) -> Iterator[Any]:
        """The batches from `start` to before `stop`, read ahead."""
        ...


class FitResult(NamedTuple):
    """What training ended with.

    Attributes:
      state: of the best epoch; of the last one without `evaluate`.
      history: lines of `metrics.jsonl`, one an epoch.
      best_epoch: from 0.
      stopped: whether patience or a callback ended the run before the last epoch.
    """

    state: Any
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    stopped: bool


def fit(
    init: Callable[[Key, Any], Any],
    step: Step,
    batches: BatchSource,
    *,
    folder: str | Path,
    key: Key,
    epochs: int,
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
    monitor: str = "auc",
    mode: Literal["max", "min"] = "max",
    patience: int | None = None,
    min_epochs: int = 0,
    plateau: Plateau | None = None,
    floor: float | None = None,
    settings: Mapping[str, Any] | None = None,
    case_ids: Sequence[str] | None = None,
    report: Callable[[Progress], None] | None = None,
    callbacks: Sequence[Callable[[Any, int, Mapping[str, Any]], bool | None]] = (),
    mesh: Mesh | None = None,
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
    checkpoint_steps: int | None = None,
    compile_step: bool = True,
) -> FitResult:
    """Train until the last epoch or until patience ends, and return the best epoch's state.

    Args:
      init: `init(key, batch) -> state`, any NamedTuple of arrays; see `initial_state`. It is called as it is, not
        jitted, and only shapes of the batch may matter.
      step: `step(state, batch, key) -> (state, info)`, pure, not jitted; `info` holds scalars and among them `loss`.
        The key is that of the epoch: a step that draws folds in its own count of steps. Several runs that are handed
        the same step, not one made anew, share its compilation.
      batches: training batches; the same step always gives the same batch.
      folder: of the run: `metrics.jsonl` with one line an epoch, and `checkpoints/`.
      key: of the run, see `run_key`.
      epochs: most epochs to run.
      evaluate: `evaluate(state, epoch) -> metrics by name`, called after every epoch; with several processes by all,
        and what the first says counts. None where there is nothing to validate on: the last epoch is then the result.
        The state's arrays are reused by the next step, so that `evaluate` and callbacks keep copies only.
      monitor: which of the metrics decides; NaN is never best.
      mode: whether a larger ("max") or a smaller metric ("min") is better.
      patience: stop once more than so many epochs pass without a better metric; None for never.
      min_epochs: epochs to run in any case.
      plateau: when to lower the learning rate, see `Optimiser.plateau`.
      floor: metric of a model that has learnt nothing, see `Rules`; where no epoch is better the last one is kept.
      settings: everything else the result depends on (model, data, optimiser), as JSON. A folder that was started with
        others is refused.
      case_ids: of the cohort, by row, for the message of a run that diverges.
      report: gets the `Progress` of the run, a few times a second at most.
      callbacks: each is called as `callback(state, epoch, line)` after an epoch, by every process, and again where an
        epoch runs again after a kill. One that returns True ends the run after this epoch.
      mesh: devices to divide batches over, see `data_mesh`.
      workers: processes that read batches; 0 reads in a thread.
      checkpoint_seconds: once so much time has passed since the last checkpoint, the next one is written, within an
        epoch too; a kill costs no more than that.
      checkpoint_steps: write one after every so many steps as well.
      compile_step: whether the step is jitted as one program; False for one that is a sequence of programs, each jitted
        by itself.

    Returns:
      State, history, best epoch and whether the run stopped early.

    Raises:
      ValueError: settings that do not fit each other, a folder of another run, or a metric that is not there.
      DivergedError: loss or gradient is not finite; the message names epoch, step and cases. Earlier checkpoints stay.

    Example:
      >>> import tempfile
      >>> from fusion_jax.data import Batches, Cohort
      >>> from fusion_jax.training.state import FitState
      >>> cohort = Cohort.from_arrays({"clinical": np.array([[1.0], [2.0]])}, label=[0, 1])
      >>> batches = Batches(cohort, np.arange(2), batch_size=2, seed=(0,))
      >>> def step(state, batch, key):
      ...     loss = jnp.mean(batch.inputs["clinical"]) * state.variables["w"]
      ...     return FitState({"w": state.variables["w"] + 0.5}, (), state.step + 1), {"loss": loss}
      >>> def init(key, batch):
      ...     return FitState({"w": jnp.zeros(())}, (), jnp.zeros((), jnp.int32))
      >>> result = fit(init, step, batches, folder=tempfile.mkdtemp(), key=jax.random.key(0), epochs=3)
      >>> float(result.state.variables["w"]), [line["loss"] for line in result.history]
      (1.5, [0.0, 0.75, 1.5])

    References:
      Patience: Holste et al. 2021, specs/breast_mri_fusion.md, B8.
    """
    limits = {
        "epochs": (epochs >= 1, epochs, "1 or more"),
        "mode": (mode in ("max", "min"), mode, "max or min"),
        "patience": (patience is None or patience >= 0, patience, "0 or more, or None"),
        "checkpoint_seconds": (checkpoint_seconds >= 0, checkpoint_seconds, "0 or more"),
        "checkpoint_steps": (checkpoint_steps is None or checkpoint_steps >= 1, checkpoint_steps, "1 or more, or None"),
    }
    for name, (fits, found, expected) in limits.items():
        if not fits:
            raise ValueError(f"{name} is {found!r}; expected {expected}.")
    if evaluate is None and (patience is not None or plateau is not None):
        rule = "patience" if patience is not None else "plateau"
        raise ValueError(f"{rule} is given without `evaluate`; expected a metric to watch. Give one, or leave it out.")
    loop = _Loop(
        init=init,
        step=step,
        batches=batches,
        folder=Path(folder),
        key=key,
        epochs=epochs,
        evaluate=evaluate,
        monitor=monitor,
        rules=Rules(mode, patience, min_epochs, plateau, floor),
        settings=settings or {},
        case_ids=case_ids,
        callbacks=callbacks,
        mesh=mesh,
        compile_step=compile_step,
    )
    return loop.run(report, workers, checkpoint_seconds, checkpoint_steps)


class _Loop:
    """One call of `fit`: what it was given, and what changes from epoch to epoch."""

    def __init__(
        self,
        *,
        init: Callable[[Key, Any], Any],
        step: Step,
        batches: BatchSource,
        folder: Path,
        key: Key,
        epochs: int,
        evaluate: Callable[[Any, int], Mapping[str, float]] | None,
        monitor: str,
        rules: Rules,
        settings: Mapping[str, Any],
        case_ids: Sequence[str] | None,
        callbacks: Sequence[Callable[[Any, int, Mapping[str, Any]], bool | None]],
        mesh: Mesh | None,
        compile_step: bool,
    ) -> None:
        self.init, self.batches, self.folder, self.key, self.epochs = init, batches, folder, key, epochs
        self.evaluate, self.monitor, self.rules, self.case_ids = evaluate, monitor, rules, case_ids
        self.callbacks, self.mesh = callbacks, mesh
        self.steps = batches.steps_per_epoch
        self.last = epochs * self.steps
        self.writes = not spans_processes(mesh) or jax.process_index() == 0
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.metrics = folder / "metrics.jsonl"
        own = {
            "epochs": epochs,
            "steps_per_epoch": self.steps,
            "monitor": monitor if evaluate is not None else None,
            **rules._asdict(),
            "key": np.asarray(jax.random.key_data(key)),
        }
        self.settings = flat({"settings": settings, "fit": own})

        self.history: list[dict[str, Any]] = []
        self.standing = Standing()
        self.best: Any = None
        self.best_name: str | None = None
        """Checkpoint of the best state; None while it is in memory only."""
        self.ended = False
        """Whether a callback asked for the end."""

        self.step = _jitted(step, mesh) if compile_step else _counted(step)

    def run(
        self,
        report: Callable[[Progress], None] | None,
        workers: int,
        checkpoint_seconds: float,
        checkpoint_steps: int | None,
    ) -> FitResult:
        first = self.batches.at(0)
        shard_batch(first, self.mesh)  # refuses what cannot be divided before anything is compiled
        init_key = named_key(self.key, "init")
        like = jax.eval_shape(self.init, init_key, first)
        if self.rules.plateau is not None:
            require_learning_rate(like)
        found = self.resume(like)
        if found is not None and found.host["finished"]:
            return self.result(found.state, found.host["best_epoch"], found.host["stopped"])
        self.best = None if found is None else found.best
        state = replicate(self.init(init_key, first) if found is None else found.state, self.mesh)
        done, sums, seconds = (
            (0, Sums(), 0.0)
            if found is None
            else (found.host["step"], Sums(*found.host["sums"]), found.host["seconds"])
        )
        pace = Pace(report if self.writes else None, self.epochs, self.steps, done)
        saving = _Saving(checkpoint_seconds, checkpoint_steps)
        state, stopped = self.train(state, done, sums, seconds, pace, saving, workers)
        return self.finish(state, stopped, like)

    def train(
        self, state: Any, done: int, sums: Sums, seconds: float, pace: Pace, saving: "_Saving", workers: int
    ) -> tuple[Any, bool]:
        """Run from step `done` on; the state after the last epoch, and whether patience ended the run."""
        steps_key = named_key(self.key, "steps")
        window = Window(done, sums)
        epoch_begun = time.monotonic() - seconds
        for batch in self.batches.iterate(done, stop=self.last, workers=workers):
            epoch = done // self.steps
            state, (info, cases) = self.step(state, shard_batch(batch, self.mesh), jax.random.fold_in(steps_key, epoch))
            done += 1
            window.push(info, cases, ahead=AHEAD)
            ends, saves = done % self.steps == 0, saving.due(done)
            if ends or saves:
                self.refuse(window.fetch())
            elif len(window.entries) >= FETCHED or pace.due():
                self.refuse(window.fetch(keep=AHEAD))
            if pace.due() and not ends:
                pace.tell(done, window.sums.means().get("loss"), self.standing.best)
            if ends:
                state = self.close(state, epoch, done, window.close(), time.monotonic() - epoch_begun)
                epoch_begun = time.monotonic()
                pace.tell(done, self.history[-1]["loss"], self.standing.best)
                if self.ended or self.rules.ends(self.standing, epoch):
                    return state, done < self.last
            if saves and done < self.last:
                self.save(state, done, window.sums, time.monotonic() - epoch_begun)
                saving.done()
        return state, False

    def close(self, state: Any, epoch: int, done: int, means: dict[str, float], seconds: float) -> Any:
        """End an epoch: evaluate, write its line, keep the best state, lower the rate."""
        line: dict[str, Any] = {"epoch": epoch, "step": done, "seconds": round(seconds, 3), **means}
        before = self.standing
        if self.evaluate is not None:
            metrics = from_first_process(
                {name: float(value) for name, value in self.evaluate(state, epoch).items()}, self.mesh
            )
            if self.monitor not in metrics:
                raise ValueError(
                    f"monitor is {self.monitor!r}, and evaluate gives {listed(sorted(metrics), SHOWN)}; expected one "
                    "of these."
                )
            line |= {f"validation_{name}": value for name, value in metrics.items()}
            self.standing = self.rules.after(before, epoch, metrics[self.monitor])
            if self.standing.best_epoch == epoch:
                # A copy: the next step reuses the memory of the state.
                self.best, self.best_name = as_host(state), None
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
        self.history.append(line)
        if self.writes:
            append_line(self.metrics, line)
        # Every callback hears of the epoch, whatever one before it says.
        answers = [callback(state, epoch, line) for callback in self.callbacks]
        self.ended = any(answers)
        if self.standing.scale != before.scale:
            state = replicate(scale_learning_rate(state, self.standing.scale), self.mesh)
        return state

    def refuse(self, step: int | None) -> None:
        """Stop if a step was not finite.

        Raises:
          DivergedError: naming its cases.
        """
        if step is None:
            return
        batch = self.batches.at(step)
        rows = np.asarray(getattr(batch, "index", ())).reshape(-1).tolist()
        cases = tuple(str(row if self.case_ids is None else self.case_ids[row]) for row in rows if row >= 0)
        epoch = step // self.steps
        kept = self.checkpoints.names()
        raise DivergedError(
            f"{self.folder}: loss or gradient is not finite in epoch {epoch}, step {step}, with case "
            f"{listed(cases, SHOWN)} ({len(cases)} in all); expected finite numbers. Look for extreme values in these "
            "cases, lower the learning rate, or clip the gradient. "
            + (f"The checkpoint {kept[0]} is from before." if kept else "No checkpoint had been written."),
            epoch,
            step,
            cases,
        )

    def resume(self, like: Any) -> Checkpoint | None:
        """The newest checkpoint of this run, with the log cut to it; None to start.

        Raises:
          ValueError: the folder is of another run.
        """
        found, error = None, None
        if self.writes:
            try:
                found = self.checkpoints.newest(
                    like, check=lambda host: check_settings(self.folder, host["settings"], self.settings)
                )
            except ValueError as problem:
                if not spans_processes(self.mesh):
                    raise
                error = str(problem)  # the other processes wait to hear of it
        host = None if found is None else found.host
        if self.writes and error is None:
            self.history = keep_epochs(self.metrics, 0 if host is None else host["epochs_done"])
        host, error, self.history = from_first_process([host, error, self.history], self.mesh)
        if error is not None:
            raise ValueError(error)
        if host is None:
            return None
        self.standing, self.best_name = Standing(*host["standing"]), host["best_name"]
        state = state_from_first_process(None if found is None else found.state, like, self.mesh)
        best = found.best if found is not None else None
        if host["best_name"] is not None:
            best = state_from_first_process(best, like, self.mesh)
        return Checkpoint(state, host, best)

    def host(self, done: int, sums: Sums, seconds: float) -> dict[str, Any]:
        """What lives on the host, for a checkpoint."""
        return {
            "settings": self.settings,
            "step": done,
            "epochs_done": len(self.history),
            "standing": list(self.standing),
            "best_name": self.best_name,
            "sums": list(sums),
            "seconds": seconds,
            "finished": False,
        }

    def save(self, state: Any, done: int, sums: Sums, seconds: float) -> None:
        """Write a checkpoint to go on from, and the best state if no checkpoint holds it."""
        if not self.writes:
            return
        if self.best is not None and self.best_name is None:
            self.best_name = f"best_{self.standing.best_epoch:09d}"
            self.checkpoints.save(self.best_name, self.best, {})
        self.checkpoints.save(f"step_{done:09d}", state, self.host(done, sums, seconds))
        self.checkpoints.prune()

    def finish(self, state: Any, stopped: bool, like: Any) -> FitResult:
        """Write the best state as the final checkpoint, which replaces all others."""
        best, best_epoch = self.best, self.standing.best_epoch
        if best is None or best_epoch is None:
            if self.evaluate is not None:
                never = "a number" if self.rules.floor is None else f"better than {self.rules.floor:g}"
                LOG.warning("%s: %s is never %s; the last epoch is kept.", self.folder, self.monitor, never)
            best, best_epoch = as_host(state), len(self.history) - 1
        if self.writes:
            ended = {"finished": True, "best_epoch": best_epoch, "stopped": stopped, "best_name": None}
            self.checkpoints.save(FINAL, best, self.host(len(self.history) * self.steps, Sums(), 0.0) | ended)
            self.checkpoints.restore(FINAL, like)  # before the others go
            self.checkpoints.prune(only=FINAL)
        return self.result(best, best_epoch, stopped)

    def result(self, best: Any, best_epoch: int, stopped: bool) -> FitResult:
        return FitResult(replicate(best, self.mesh), tuple(self.history), best_epoch, stopped)


@lru_cache(maxsize=4)
def _jitted(step: Step, mesh: Mesh | None) -> Callable[[Any, Any, Key], tuple[Any, tuple[dict[str, Array], Array]]]:
    """The step compiled, with the valid rows of its batch; kept, so that one step serves many runs."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(_counted(step), donate_argnums=0, out_shardings=everywhere)


def _counted(step: Step) -> Callable[[Any, Any, Key], tuple[Any, tuple[dict[str, Array], Array]]]:
    def counted(state: Any, batch: Any, key: Key) -> tuple[Any, tuple[dict[str, Array], Array]]:
        state, info = step(state, batch, key)
        return state, (info, jnp.sum(batch.valid))

    return counted


class _Saving:
    """When a checkpoint is due."""

    def __init__(self, seconds: float, steps: int | None) -> None:
        self.seconds, self.steps, self.saved = seconds, steps, time.monotonic()

    def due(self, done: int) -> bool:
        return time.monotonic() - self.saved >= self.seconds or (self.steps is not None and done % self.steps == 0)

    def done(self) -> None:
        self.saved = time.monotonic()
