"""A network whose cells are searched among the training patients, and then trained from scratch on all of them."""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Key
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, k_fold
from fusion_jax.models.architecture import network_sources
from fusion_jax.models.deep import Ready, ready_to_train
from fusion_jax.models.recipe import Recipe, Report, open_recipe, show_chosen, write_recipe
from fusion_jax.models.strategies import strategy_sources
from fusion_jax.models.target import Target, Task, target_of, with_target
from fusion_jax.nas.genotype import (
    DARTS_OPERATIONS,
    OPERATIONS,
    Genotype,
    genotype_to_json,
    random_genotype,
    read_genotype,
    write_genotype,
)
from fusion_jax.training.keys import named_key
from fusion_jax.wording import counted

__all__ = ["GENOTYPE_FILE", "SEARCH", "Found", "SearchedRecipe"]

SEARCH, CHOSEN, GENOTYPE_FILE = "search", "chosen", "genotype.json"

BATCH, SURVIVAL_BATCH = 4, 64

LEAST_SUGGESTED = 8
"""Cases of the smallest batch that is suggested for survival, where risks are ranked within a batch."""

SPACES: Mapping[str, tuple[str, ...]] = {"standard": OPERATIONS, "darts": DARTS_OPERATIONS}

logger = logging.getLogger("fusion_jax.models.searched")


class Found(NamedTuple):
    """What a search came to.

    Attributes:
      genotype: cells.
      facts: of the search, as JSON.
    """

    genotype: Genotype
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchedRecipe:
    """Cells by gradient descent, in which the training patients of a fold are divided in two; then a new network.

    Half of the training patients move the weights of the search, the other half the architecture; the halves are the
    same for all seeds, as the folds are, so that seeds differ in what is drawn while training. The network of the cells
    that were found starts from new weights, and is trained on all training patients as `retrain` says. Defaults suit
    some fifty cases of 32 voxels an axis on two cores.

    Attributes:
      name: of the recipe.
      inputs: the only sources to be read; all images and clinical sources by default.
      control: "search", or "random" for cells drawn at random: what the search has to beat.
      layout: of the network, normal ("N") and reduction cells ("R") in turn, beginning with "N".
      nodes: of a cell.
      channels: of a node of the first cell in the search.
      derived_channels: likewise in the network that is trained afterwards.
      stem_stride: of the stems; 2 makes every map eight times as small in 3-D.
      stem_multiplier: channels of a stem, in `channels`.
      head: widths of the two convolutions behind the cells; none for pooling at once.
      space: candidates, "standard" (with standard convolutions), "darts", or their names.
      norm: "group", or "batch" with batches of several cases.
      mixing: "softmax", or "gumbel" for samples.
      partial: one over the share of channels that the candidates see (PC-DARTS); 1 for all.
      remat: what is computed again in the backward pass: "none", "operation", "edge" or "cell", from quick to small.
      reduce_at: where a reduction cell halves the size.
      order: "first" or "second" of the bilevel gradient.
      search_epochs: of the search.
      search_batch_size: cases of a step of the search; by default 4, for survival 64 or half of the training cases,
        since risks are ranked within a batch.
      search_rate, architecture_rate: learning rates of the weights (SGD) and of the architecture (Adam).
      search_schedule: of the rate of the weights.
      warmup_epochs: in which the weights move alone.
      penalty: on the expected number of parameters, as a share of the largest.
      collapse: what ends the search early: too many skip connections, or a rising eigenvalue.
      eigenvalue_every: epochs between measurements of the dominant eigenvalue; 0 for none.
      precision: of the computation.
      retrain: arguments of the recipe `genotype`, such as `epochs` and `augment`.
      augment: name of what images go through in the search.
      columns, selection, clinical_values, standardise, task, gigabytes: as in `DeepRecipe`.

    References:
      Peng et al. 2020; Liu et al. 2018; specs/mm_nas.md, 5 and 6, reading N1.
    """

    name: str
    inputs: tuple[str, ...] = ()
    control: Literal["search", "random"] = "search"
    layout: str = "NR"
    nodes: int = 3
    channels: int = 4
    derived_channels: int = 8
    stem_stride: int = 2
    stem_multiplier: int = 3
    head: tuple[int, ...] = (64, 32)
    space: str | tuple[str, ...] = "standard"
    norm: Literal["group", "batch"] = "group"
    mixing: Literal["softmax", "gumbel"] = "softmax"
    partial: int = 1
    remat: Literal["none", "operation", "edge", "cell"] = "none"
    reduce_at: Literal["edges", "preprocess"] = "edges"
    order: Literal["first", "second"] = "first"
    search_epochs: int = 15
    search_batch_size: int | None = None
    search_rate: float = 0.025
    architecture_rate: float = 3e-3
    search_schedule: Literal["constant", "cosine"] = "cosine"
    warmup_epochs: int = 0
    penalty: float = 0.0
    collapse: Literal["none", "skips", "eigenvalue"] = "none"
    eigenvalue_every: int = 0
    retrain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment: str = "none"
    columns: tuple[Mapping[str, Any], ...] | None = None
    selection: Mapping[str, Any] | None = None
    clinical_values: Literal["encoded", "native"] = "encoded"
    standardise: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    task: Task = "auto"
    gigabytes: float = 4.0

    def __post_init__(self) -> None:
        limits = {
            "nodes": (self.nodes >= 1, "at least 1"),
            "channels": (self.channels >= 1, "at least 1"),
            "stem_stride": (self.stem_stride >= 1, "at least 1"),
            "stem_multiplier": (self.stem_multiplier >= 1, "at least 1"),
            "derived_channels": (self.derived_channels >= 1, "at least 1"),
            "layout": (
                self.layout.startswith("N") and set(self.layout) <= {"N", "R"},
                "N for normal and R for reduction cells, beginning with N, such as 'NRNR'",
            ),
            "search_epochs": (self.search_epochs >= 1, "at least 1"),
            "search_batch_size": (self.search_batch_size is None or self.search_batch_size >= 1, "at least 1"),
            "head": (len(self.head) in (0, 2), "two widths, or none"),
            "space": (
                not isinstance(self.space, str) or self.space in SPACES,
                f"{' or '.join(SPACES)}, or a list of operations",
            ),
        }
        for field, (fits, expected) in limits.items():
            if not fits:
                raise ValueError(f"recipe {self.name!r}: {field} is {getattr(self, field)!r}; expected {expected}.")
        self._check_search()
        self._check_retraining()
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown:
            raise ValueError(
                f"recipe {self.name!r}: no operation {unknown[0]!r}; expected some of {', '.join(OPERATIONS)}."
            )

    def _check_search(self) -> None:
        """Settings of the search that would only fail once it runs."""
        from fusion_jax.models.augmentation import check_augmentation
        from fusion_jax.nas.diagnostics import LEAST_MEASURED

        check_augmentation(self.augment)
        limits = {
            "partial": (
                self.partial >= 1 and self.channels % self.partial == 0,
                f"a divisor of {self.channels} channels",
            ),
            "warmup_epochs": (
                0 <= self.warmup_epochs < self.search_epochs,
                f"0 to below the {self.search_epochs} epochs of the search",
            ),
            "penalty": (self.penalty >= 0, "0 or more"),
            "search_rate": (self.search_rate > 0, "a positive number"),
            "architecture_rate": (self.architecture_rate > 0, "a positive number"),
            "eigenvalue_every": (
                self.eigenvalue_every >= (1 if self.collapse == "eigenvalue" else 0),
                "1 or more where the eigenvalue ends the search, else 0 or more",
            ),
        }
        for field, (fits, expected) in limits.items():
            if not fits:
                raise ValueError(f"recipe {self.name!r}: {field} is {getattr(self, field)!r}; expected {expected}.")
        if self.collapse == "eigenvalue" and self.search_epochs // self.eigenvalue_every < LEAST_MEASURED:
            raise ValueError(
                f"recipe {self.name!r}: collapse is 'eigenvalue' and eigenvalue_every is {self.eigenvalue_every} of "
                f"{self.search_epochs} search_epochs; expected {LEAST_MEASURED} measurements or more, before which the "
                "rule never ends a search. Measure more often, or search for longer."
            )

    def _check_retraining(self) -> None:
        """Arguments that would only be refused once the search is over."""
        from fusion_jax.models.registry import make_recipe

        try:
            make_recipe("genotype", {"genotype": {}, **self.retrain})
        except (TypeError, ValueError) as error:
            raise type(error)(f"recipe {self.name!r}, retrain: {error}") from error

    @property
    def operations(self) -> tuple[str, ...]:
        """Candidates of an edge."""
        return SPACES[self.space] if isinstance(self.space, str) else tuple(self.space)

    def arguments(self) -> dict[str, Any]:
        """What differs from the defaults."""
        from fusion_jax.models.registry import arguments_of

        return arguments_of(self)

    def sources(self, cohort: Cohort) -> tuple[str, ...]:
        """Sources that it reads."""
        return strategy_sources(cohort, "genotype", self.inputs)

    def target(self, cohort: Cohort) -> Target:
        """What it predicts of a cohort."""
        return target_of(cohort, self.task)

    def fit(self, cohort: Cohort, split: Split, key: Key, folder: Path, *, report: Report | None = None) -> None:
        """Search, and train what was found; see `Recipe.fit`. Called again it goes on where it was killed."""
        folder = Path(folder)
        found = self.find(cohort, split, key, folder / SEARCH, report=report)
        self.retrained(found.genotype, cohort).fit(cohort, split, key, folder / CHOSEN, report=report)
        show_chosen(folder / CHOSEN, folder)
        shutil.copyfile(folder / SEARCH / GENOTYPE_FILE, folder / GENOTYPE_FILE)
        facts = open_recipe(folder / CHOSEN)["facts"]
        write_recipe(folder, self, cohort, target=self.target(cohort), facts={**facts, "search": found.facts})

    def find(
        self,
        cohort: Cohort,
        split: Split,
        key: Key,
        folder: Path,
        *,
        report: Report | None = None,
        checked: Callable[[], object] | None = None,
    ) -> Found:
        """Search the cells for the training cases of a split.

        Args:
          cohort: with these cases.
          split: `train` is divided in halves; `validation` is for the training afterwards.
          key: of everything random.
          folder: of the search; gets `genotype.json` and `architecture.jsonl`.
          report: told how the search is getting on.
          checked: called once nothing of the cohort refuses the search, before anything is written.

        Raises:
          ValueError: sources that do not fit, or too little memory; said before anything is compiled.
        """
        folder.mkdir(parents=True, exist_ok=True)
        sources, target = self.sources(cohort), self.target(cohort)
        if self.control == "random":
            return self._drawn(cohort, sources, key, folder)
        from fusion_jax.nas.search import search

        self.memory(cohort, cases=len(split.train))
        ready = self.prepared(cohort, split, sources, target)
        ready = ready._replace(cohort=with_target(ready.cohort, target))
        first, second = self._halves(with_target(cohort, target), ready, split)
        supernet, objective = self.supernet(ready.cohort, sources, target), _objective(target.kind)
        size = self._batch_size(target, len(first))
        if checked is not None:
            checked()
        result = search(
            supernet,
            ready.cohort,
            first,
            second,
            objective=objective,
            settings=self.settings(),
            folder=folder,
            key=named_key(key, "search"),
            epochs=self.search_epochs,
            batch_size=size,
            augment=self._augmentation(ready, sources),
            record=self._record(
                sources,
                {
                    "halves": [[ready.cohort.case_id[int(row)] for row in part] for part in (first, second)],
                    "cohort": cohort.fingerprint,
                },
            ),
            report=report,
        )
        return Found(result.genotype, _facts(result))

    def memory(self, cohort: Cohort, cases: int | None = None) -> str:
        """What a step of the search needs of memory, in words.

        Args:
          cohort: that is searched on.
          cases: that are trained on; all unless given.

        Raises:
          ValueError: more than there is; the message names settings that would fit. Or a batch in which no risks can be
            ranked.
        """
        from fusion_jax.nas.memory import check_memory

        sources = self.sources(cohort)
        images, _ = network_sources(_shapes(cohort, sources))
        shape = _shapes(cohort, images)[images[0]]
        target = self.target(cohort)
        net = self.supernet(cohort, sources, target)
        size = self._batch_size(target, -(-(len(cohort) if cases is None else cases) // 2))
        least = LEAST_SUGGESTED if target.kind == "survival" else 1
        found = check_memory(net, shape, size, self.order, least_batch=least)
        return (
            f"A step of the search is estimated to need {found.total / 2**20:.0f} MiB ({', '.join(images)} of "
            f"{' x '.join(map(str, shape))}, {size} cases, remat {self.remat!r})."
        )

    def prepared(self, cohort: Cohort, split: Split, sources: tuple[str, ...], target: Target) -> Ready:
        """The training cases of a split as the search takes them."""
        return ready_to_train(
            cohort,
            split,
            sources,
            target,
            columns=self.columns,
            selection=self.selection,
            values=self.clinical_values,
            standardise=self.standardise,
            gigabytes=self.gigabytes,
        )

    def supernet(self, ready: Cohort, sources: tuple[str, ...], target: Target) -> Any:
        """The network of the search, with all candidates on every edge.

        Args:
          ready: prepared cohort.
          sources: that it reads.
          target: what is predicted.

        Raises:
          ValueError: images of several shapes, or more memory than there is.
        """
        from fusion_jax.nas.supernet import SuperNet

        images, clinical = network_sources(_shapes(ready, sources))
        return SuperNet(
            sources=images,
            clinical=clinical,
            outputs=target.outputs,
            layout=self.layout,
            nodes=self.nodes,
            channels=self.channels,
            stem_multiplier=self.stem_multiplier,
            stem_stride=self.stem_stride,
            head=self.head,
            operations=self.operations,
            norm=self.norm,
            remat=self.remat,
            partial=self.partial,
            mixing=self.mixing,
            reduce_at=self.reduce_at,
            dtype=self.precision,
        )

    def settings(self) -> Any:
        """How weights and architecture are moved, as `fusion_jax.nas.search` takes it."""
        from fusion_jax.nas.search import SearchSettings

        default = SearchSettings()
        schedule, rate = self.search_schedule, self.search_rate
        return dataclasses.replace(
            default,
            order=self.order,
            weights=dataclasses.replace(default.weights, learning_rate=rate, schedule=schedule),
            architecture=dataclasses.replace(default.architecture, learning_rate=self.architecture_rate),
            warmup_epochs=self.warmup_epochs,
            penalty=self.penalty,
            collapse=self.collapse,
            eigenvalue_every=self.eigenvalue_every,
        )

    def network(self) -> dict[str, Any]:
        """Settings of the network of a genotype, as the recipe `genotype` takes them."""
        return {
            "layout": self.layout,
            "channels": self.derived_channels,
            "stem_multiplier": self.stem_multiplier,
            "stem_stride": self.stem_stride,
            "head": list(self.head),
            "norm": self.norm,
            "reduce_at": self.reduce_at,
        }

    def retrained(self, genotype: Genotype, cohort: Cohort) -> Recipe:
        """The recipe that trains the network of a genotype from scratch."""
        from fusion_jax.models.registry import make_recipe

        return make_recipe(
            "genotype",
            {
                "genotype": genotype_to_json(genotype),
                "settings": self.network(),
                "inputs": list(self.sources(cohort)),
                "columns": self.columns,
                "selection": self.selection,
                "clinical_values": self.clinical_values,
                "standardise": self.standardise,
                "precision": self.precision,
                "task": self.task,
                "gigabytes": self.gigabytes,
                **self.retrain,
            },
        )

    def predict(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
        """Predictions of the network that was trained; see `Recipe.predict`."""
        from fusion_jax.models.registry import load_recipe

        return load_recipe(Path(folder) / CHOSEN).predict(Path(folder) / CHOSEN, cohort, rows)

    def measure(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> dict[str, Any] | None:
        """Fusion quality of the network that was trained."""
        from fusion_jax.models.registry import load_recipe

        chosen = Path(folder) / CHOSEN
        recipe: Any = load_recipe(chosen)
        found = recipe.measure(chosen, cohort, rows)
        show_chosen(chosen, Path(folder))
        return found

    def _drawn(self, cohort: Cohort, sources: tuple[str, ...], key: Key, folder: Path) -> Found:
        """Cells at random, from the same candidates."""
        seed = np.asarray(jax.random.key_data(named_key(key, "cells"))).reshape(-1).tolist()
        images = [name for name in sources if cohort.sources[name].kind == "image"]
        inputs = max(2, len(images))
        found = random_genotype(np.random.default_rng(seed), self.nodes, self.operations, inputs=inputs)
        path, facts = folder / GENOTYPE_FILE, {"control": "random"}
        write_genotype(path, found, {"record": self._record(sources, facts)})
        return Found(read_genotype(path), facts)

    def _batch_size(self, target: Target, half: int) -> int:
        """Cases of a step, of the `half` cases that the weights are fitted to."""
        if target.kind != "survival":
            return self.search_batch_size or BATCH
        size = self.search_batch_size or min(SURVIVAL_BATCH, half)
        if size < 2:
            raise ValueError(
                f"recipe {self.name!r}: a step of the search takes {counted(size, 'case')}, and survival is predicted; "
                "expected several, whose risks are ranked: a case alone has no gradient. Leave search_batch_size out "
                f"for {SURVIVAL_BATCH}, or half of the training cases."
            )
        return size

    def _halves(self, cohort: Cohort, ready: Ready, split: Split) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
        """Rows for the weights and for the architecture: halves of the training patients, like in their classes."""
        rows = np.sort(ready.rows.train)
        part = cohort.take(rows)
        [halves, *_] = k_fold(part, 2, seed=split.fold + 1000 * split.repeat).splits
        found = halves.rows(part)
        return rows[found.train], rows[found.test]

    def _augmentation(self, ready: Ready, sources: tuple[str, ...]) -> Any:
        from fusion_jax.data.augment import augmented, case_keys
        from fusion_jax.models.augmentation import augmentation
        from fusion_jax.models.network import native_fill

        sides = [max(shape[:-1]) for shape in _shapes(ready.cohort, sources).values() if len(shape) > 1]
        recipe = augmentation(self.augment, max(sides))
        if recipe is None:
            return None
        filled = native_fill(recipe, ready.preparation.images)
        return lambda batch, key: augmented(filled, batch, case_keys(key, 0, batch.index))

    def _record(self, sources: tuple[str, ...], more: Mapping[str, Any]) -> dict[str, Any]:
        return {"sources": list(sources), "network": self.network(), "arguments": self.arguments(), **more}


def _shapes(ready: Cohort, sources: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Source to the shape of a case; columns that are not encoded yet count as a vector."""
    for name in sources:
        if not ready.present[name].any():
            raise ValueError(f"{ready.name}: no training case has {name!r}; expected at least one. Remove the source.")
    first = {name: int(np.flatnonzero(ready.present[name])[0]) for name in sources}
    tables = [name for name in sources if ready.sources[name].kind == "table"]
    return {name: (1,) if name in tables else tuple(np.shape(ready.sources[name][row])) for name, row in first.items()}


@functools.lru_cache(maxsize=2)
def _objective(kind: str) -> Any:
    """One for all folds, which then share the compilation of a step."""
    from fusion_jax.fusion import cox, softmax_cross_entropy

    return cox() if kind == "survival" else softmax_cross_entropy()


def _facts(result: Any) -> dict[str, Any]:
    """What a table says of a search."""
    last = result.history[-1]
    best = next(line for line in result.history if line["epoch"] == result.best_epoch)
    return {
        "control": "search",
        "epochs": len(result.history),
        "best_epoch": int(result.best_epoch),
        "stopped_early": bool(result.stopped),
        "validation_loss": best["validation_loss"],
        "entropy": last["entropy"],
        "skip_share": best["skip_share"],
    }
