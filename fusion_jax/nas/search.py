"""The search itself: weights and architecture in turn, on two halves of the training patients.

    objective = softmax_cross_entropy()
    found = search(SuperNet(("pet", "ct")), cohort, half, other_half, objective=objective, folder=folder, key=key,
                   epochs=50)
    network = DerivedNet(found.genotype, ("pet", "ct"))

The loop is `training.fit`: a search that is killed goes on from its newest checkpoint and arrives at the same bits.
"""

import dataclasses
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Int

from fusion_jax.arrays import Batch, Key, Model, Variables
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.sampling import Sampler
from fusion_jax.encoders.linen import as_model
from fusion_jax.nas.costs import operation_costs
from fusion_jax.nas.diagnostics import LEAST_MEASURED, collapsed, describe_architecture, eligible_epochs
from fusion_jax.nas.genotype import Genotype, genotype_from_json, write_genotype
from fusion_jax.nas.judging import validation_eigenvalue, validation_loss
from fusion_jax.nas.paired import PairedBatches, SearchBatch, paired_batches
from fusion_jax.nas.step import SearchSettings, SearchState, search_state, search_step
from fusion_jax.nas.supernet import ARCHITECTURE
from fusion_jax.training.fit import fit
from fusion_jax.training.keys import named_key
from fusion_jax.training.logs import append_line, keep_epochs, read_lines
from fusion_jax.training.progress import Progress
from fusion_jax.training.state import Objective

__all__ = [
    "ARCHITECTURE_LOG",
    "GENOTYPE",
    "PairedBatches",
    "SearchBatch",
    "SearchResult",
    "SearchSettings",
    "SearchState",
    "paired_batches",
    "search",
    "search_state",
    "search_step",
]

LOG = logging.getLogger("fusion_jax.nas.search")

ARCHITECTURE_LOG = "architecture.jsonl"
GENOTYPE = "genotype.json"
LAST_GENOTYPE = "genotype_last.json"


class SearchResult(NamedTuple):
    """What a search ended with.

    Attributes:
      genotype: derived from the logits of the best epoch.
      architecture: these logits, by name.
      history: lines of `architecture.jsonl`, one an epoch.
      best_epoch: from 0; the smallest validation loss among the epochs that the rule on collapse admits.
      last_genotype: derived from the last epoch.
      stopped: whether patience or a collapse ended the search early.
    """

    genotype: Genotype
    architecture: dict[str, np.ndarray]
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    last_genotype: Genotype
    stopped: bool


def search(
    supernet: nn.Module,
    cohort: Cohort,
    train_rows: Int[np.ndarray, "n"],
    validation_rows: Int[np.ndarray, "m"],
    *,
    objective: Objective,
    settings: SearchSettings | None = None,
    folder: str | Path,
    key: Key,
    epochs: int,
    batch_size: int = 1,
    sampler: Sampler = "shuffle",
    patience: int | None = None,
    augment: Callable[[Batch, Key], Batch] | None = None,
    record: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] | None = None,
    callbacks: Sequence[Callable[[Any, int, Mapping[str, Any]], bool | None]] = (),
    mesh: Mesh | None = None,
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
) -> SearchResult:
    """Search the cells of a network for a cohort, and write what was found.

    The folder gets `metrics.jsonl` and `checkpoints/` of `fit`, `architecture.jsonl` with one line an epoch (what
    `describe_architecture` says, `validation_loss` and `eigenvalue`), `genotype.json` (best epoch) and
    `genotype_last.json`.

    Args:
      supernet: a `SuperNet`, or a module with its attributes `operations`, `nodes`, `layout`, `channels` and `sources`.
      cohort: whose table sources have been encoded.
      train_rows: rows that the weights are fitted to.
      validation_rows: rows of other patients that the architecture is fitted to, and that choose the epoch.
      objective: loss of both. Searches that are handed the same one share their compilation.
      settings: of the search.
      folder: of the run.
      key: of the run, see `run_key`.
      epochs: most epochs to run.
      batch_size: rows of a batch for the weights, and of one for the architecture.
      sampler: order of the training rows.
      patience: stop once more than so many epochs pass without a smaller validation loss; None for never.
      augment: `augment(batch, key) -> batch`, for both batches of a step.
      record: what else the result depends on, such as the data and their preparation, as JSON; a folder that was
        started with another record is refused, and `genotype.json` keeps it.
      report: gets the `Progress` of the run.
      callbacks, mesh, workers, checkpoint_seconds: as for `fit`.

    Returns:
      Genotype, logits, history and best epoch.

    Raises:
      ValueError: a patient on both sides, settings that do not fit, or a folder of another run.
      DivergedError: loss or gradient is not finite; the message names the cases of both batches.

    References:
      Peng et al. 2020; Liu et al. 2018, Algorithm 1; specs/mm_nas.md, 5.1.
    """
    settings = settings or SearchSettings()
    folder, space = Path(folder), cast("Any", supernet)
    if settings.warmup_epochs >= epochs:
        raise ValueError(
            f"warmup_epochs is {settings.warmup_epochs} of {epochs} epochs; expected fewer, as the architecture "
            "would never move."
        )
    every = settings.eigenvalue_every
    if settings.collapse == "eigenvalue" and epochs // every < LEAST_MEASURED:
        raise ValueError(
            f"collapse is 'eigenvalue' and eigenvalue_every is {every} of {epochs} epochs, {epochs // every} in all; "
            f"expected {LEAST_MEASURED} measurements or more, before which the rule never ends a search. Measure more "
            "often, or search for longer."
        )
    model = _model(supernet)
    seed = tuple(int(part) for part in np.asarray(jax.random.key_data(key)).reshape(-1))
    batches = paired_batches(cohort, train_rows, validation_rows, batch_size, seed, sampler=sampler)
    axes = np.ndim(batches.at(0).train.inputs[space.sources[0]]) - 2
    init, step = _programs(supernet, settings, objective, batches.steps_per_epoch, epochs, augment, axes)
    loss = validation_loss(model, objective, cohort, validation_rows, batch_size)
    log = _Log(folder, space, settings)
    if settings.eigenvalue_every:
        log.measure = validation_eigenvalue(
            model, objective, cohort, validation_rows, batch_size, settings.eigenvalue_iterations
        )
        log.key = named_key(key, "eigenvalue")
    described = {
        "supernet": _attributes(supernet),
        "search": dataclasses.asdict(settings),
        "batch_size": batch_size,
        "sampler": sampler,
        "train": _rows_mark(cohort, train_rows),
        "validation": _rows_mark(cohort, validation_rows),
        "record": dict(record or {}),
    }
    result = fit(
        init,
        step,
        batches,
        folder=folder,
        key=key,
        epochs=epochs,
        evaluate=lambda state, epoch: {"loss": loss(state.variables)},
        monitor="loss",
        mode="min",
        patience=patience,
        settings=described,
        case_ids=[str(case) for case in cohort.case_id],
        report=report,
        callbacks=[log, *callbacks],
        mesh=mesh,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        compile_step=settings.order == "first",
    )
    return _finish(folder, settings, described, stopped=result.stopped)


class _Log:
    """Writes `architecture.jsonl`, and says when the search has collapsed."""

    def __init__(self, folder: Path, space: Any, settings: SearchSettings) -> None:
        self.path, self.space, self.settings = folder / ARCHITECTURE_LOG, space, settings
        self.measure: Callable[[Variables, Key], float] | None = None
        self.key: Any = None
        self.lines: list[dict[str, Any]] | None = None

    def __call__(self, state: SearchState, epoch: int, line: Mapping[str, Any]) -> bool:
        if self.lines is None:
            # What a killed run wrote beyond its last checkpoint is written again.
            self.lines = keep_epochs(self.path, epoch)
        architecture = jax.tree.map(np.asarray, dict(state.variables[ARCHITECTURE]))
        eigenvalue = None
        if self.measure is not None and (epoch + 1) % self.settings.eigenvalue_every == 0:
            eigenvalue = self.measure(state.variables, self.key)
        written = {
            "epoch": epoch,
            "validation_loss": line["validation_loss"],
            "eigenvalue": eigenvalue if eigenvalue is None or math.isfinite(eigenvalue) else None,
            **describe_architecture(architecture, self.space.operations, nodes=self.space.nodes),
        }
        self.lines.append(written)
        if jax.process_index() == 0:
            append_line(self.path, written)
        ends = collapsed(self.lines, self.settings.collapse)
        if ends:
            LOG.warning(
                "%s: the search collapsed (%s) and ends after epoch %d.",
                self.path.parent,
                self.settings.collapse,
                epoch,
            )
        return ends


def _finish(folder: Path, settings: SearchSettings, described: Mapping[str, Any], *, stopped: bool) -> SearchResult:
    """Choose the epoch and write the genotypes."""
    path = folder / ARCHITECTURE_LOG
    lines = read_lines(path)
    if not lines:
        raise ValueError(
            f"{path}: no line, and the checkpoint of this folder says that the search has ended. The file was moved or "
            "emptied: put it back, or search in an empty folder."
        )
    places = eligible_epochs(lines, settings.collapse)
    if not places:
        LOG.warning("%s: the architecture of every epoch has collapsed; the best of them is taken.", folder)
        places = list(range(len(lines)))
    measured = [place for place in places if lines[place]["validation_loss"] is not None]
    if not measured:
        LOG.warning("%s: the validation loss is never a number; the last epoch is taken.", folder)
    best = min(measured, key=lambda place: lines[place]["validation_loss"], default=places[-1])
    genotype, last = (genotype_from_json(lines[place]["genotype"], str(path)) for place in (best, -1))
    if jax.process_index() == 0:
        for name, place, found in ((GENOTYPE, best, genotype), (LAST_GENOTYPE, -1, last)):
            facts = {
                "epoch": lines[place]["epoch"],
                "epochs": len(lines),
                "validation_loss": lines[place]["validation_loss"],
                "entropy": lines[place]["entropy"],
                "skip_share": lines[place]["skip_share"],
                "stopped_early": stopped,
                **described,
            }
            write_genotype(folder / name, found, facts)
    logits = {name: np.asarray(values, np.float32) for name, values in lines[best]["logits"].items()}
    return SearchResult(genotype, logits, tuple(lines), lines[best]["epoch"], last, stopped)


@lru_cache(maxsize=4)
def _model(supernet: nn.Module) -> Model:
    return as_model(supernet)


@lru_cache(maxsize=4)
def _programs(
    supernet: nn.Module,
    settings: SearchSettings,
    objective: Objective,
    steps_per_epoch: int,
    epochs: int,
    augment: Callable[[Batch, Key], Batch] | None,
    axes: int,
) -> tuple[Callable[..., SearchState], Callable[..., Any]]:
    """Beginning and step of a search; kept, so that the folds of a cross-validation share their compilation."""
    model, space = _model(supernet), cast("Any", supernet)
    length: dict[str, int] = {"steps_per_epoch": steps_per_epoch, "epochs": epochs}
    costs = None
    if settings.penalty:
        costs = operation_costs(
            space.layout,
            space.operations,
            nodes=space.nodes,
            channels=space.channels,
            axes=axes,
            inputs=max(len(space.sources), 2),
            cost=settings.cost,
        )
    return (
        search_state(model, settings, objective, **length),
        search_step(model, settings, objective, **length, augment=augment, costs=costs),
    )


def _attributes(module: nn.Module) -> dict[str, str]:
    """Attributes of a module as text, by which runs are told apart."""
    names = [field.name for field in dataclasses.fields(cast("Any", module)) if field.name not in ("parent", "name")]
    return {"module": type(module).__name__} | {name: str(getattr(module, name)) for name in names}


def _rows_mark(cohort: Cohort, rows: Int[np.ndarray, "n"]) -> str:
    """Number of cases and a checksum of their ids: enough to notice other rows, short enough for a record."""
    ids = "\n".join(str(cohort.case_id[row]) for row in rows)
    return f"{len(rows)} cases, CRC-32 {zlib.crc32(ids.encode()):08x}"
