"""How fast is one step of an architecture search next to PyTorch, and what does it cost in compile time and memory?

    make peers                                # once: PyTorch, in an environment of its own
    python -m benchmarks.supernet             # two modalities, 16 x 16 x 16 behind the stems, three nodes
    python -m benchmarks.supernet --quick     # two nodes, six operations, 8 x 8: checks the numbers only

The supernet is that of Peng et al. 2020: stems of PET, CT and their sum, a normal and a reduction cell, all ten
operations on every edge, four channels, batch 1. A step moves the architecture on one volume (first order; second order
with the exact product; second order with the finite difference of the published code) and then the weights on another.
PyTorch runs the same network edge by edge, as the published code has it, on as many threads in a process of its own, in
both memory layouts.

The second part compiles such steps in fresh processes, with nothing in the persistent cache and again with what the
first process left there. The third compiles steps at the size of the published volumes, 112 x 112 x 144, and reads off
how much memory the compiler plans. Nothing is run in these two.

On a GPU the first part is measured too, in float32 and bfloat16.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import (
    Agreement,
    Aim,
    Bystanders,
    Contender,
    Results,
    Row,
    Table,
    Timing,
    describe_run,
    finish,
    parser,
    race,
    ratio_cells,
    relative_difference,
    tune,
)
from benchmarks.torch_peer import LAYOUTS, PAUSE, ROOT, TorchPeer, find_torch, quickest
from fusion_jax.arrays import Batch
from fusion_jax.encoders.linen import as_model, count_parameters
from fusion_jax.encoders.pretrained import flatten
from fusion_jax.fusion.objectives import softmax_cross_entropy
from fusion_jax.nas.genotype import edges_of
from fusion_jax.nas.memory import memory_estimate
from fusion_jax.nas.search import SearchBatch, SearchSettings, SearchState, search_state, search_step
from fusion_jax.nas.supernet import SuperNet

SOURCES = ("pet", "ct")
ORDERS: dict[str, tuple[Any, Any]] = {
    "first": ("first", "exact"),
    "exact": ("second", "exact"),
    "difference": ("second", "finite-difference"),
}
WORDS = {"first": "first order", "exact": "second order, exact", "difference": "second order, finite difference"}
VOLUME = (112, 112, 144)
"""Of Peng et al. 2020."""

WEIGHTS = dataclasses.replace(SearchSettings().weights, learning_rate=0.025)
"""Liu et al. 2018. With the 1e-4 of Peng et al. the second order is the first one but for its fourth digit, and no
agreement would tell whether the product is right."""

STEP_AIM, ORDER_AIM = 1.0, 3.0
"""Most that a step may take, over PyTorch's time; and one of second order, over one of first order."""
TOLERANCES = {"losses": 1e-4, "gradient norm": 1e-3, "architecture gradient": 2e-3}
DIFFERENCE_TOLERANCE = 5e-3
"""Of what follows a finite difference: its two sides lie on other sides of kinks after the least rounding."""

GPU_TOLERANCE = 5e-2
"""Products on a GPU are of TensorFloat-32, which has 10 bits."""


def supernet(**changes: Any) -> SuperNet:
    """The network that is timed, or one that differs from it."""
    settings: dict[str, Any] = {"layout": "NR", "nodes": 3, "channels": 4, "stem_stride": 2, "remat": "none"} | changes
    settings["dtype"] = jnp.dtype(settings.get("dtype", "float32"))
    return SuperNet(SOURCES, **settings)


def random_pair(size: tuple[int, ...]) -> SearchBatch:
    """A volume of each modality for the weights, and one for the architecture."""
    rng = np.random.default_rng(0)
    row = np.ones(1, bool)

    def batch(label: int) -> Batch:
        images = {name: rng.normal(size=(1, *size, 1)).astype(np.float32) for name in SOURCES}
        target = {"label": np.full(1, label, np.int32)}
        return Batch(images, target, row, dict.fromkeys(images, row), np.zeros(1, np.int32))

    return SearchBatch(batch(0), batch(1))


class Search:
    """A compiled step of a search that hands its state on, as a loop does."""

    def __init__(self, network: SuperNet, pair: SearchBatch, order: str) -> None:
        name, product = ORDERS[order]
        settings = SearchSettings(order=name, product=product, weights=WEIGHTS)
        model, objective = as_model(network), softmax_cross_entropy()
        length: dict[str, Any] = {"steps_per_epoch": 1, "epochs": 1}
        self.pair, self.key = pair, jax.random.key(1)
        self._step = jax.jit(search_step(model, settings, objective, **length), donate_argnums=0)
        self._init = search_state(model, settings, objective, **length)
        self.seconds: dict[str, float] = {}
        self._compiled: Any = None
        self._state: SearchState | None = None
        self.first: dict[str, Any] = {}
        self.decay, self.beta = settings.architecture.weight_decay, settings.architecture.betas[0]

    def begin(self) -> SearchState:
        """The state that the search begins with."""
        state = self._state or self._clock("init", lambda: self._init(jax.random.key(0), self.pair))
        self._state = state
        return state

    def compile(self) -> Any:
        """The compiled step; shapes are enough for it."""
        if self._compiled is None:
            state = self._state or jax.eval_shape(self._init, jax.random.key(0), self.pair)
            traced = self._clock("trace and lower", lambda: self._step.lower(state, self.pair, self.key))
            self._compiled = self._clock("compile", traced.compile)
        return self._compiled

    def __call__(self) -> dict[str, Any]:
        step, state = self.compile(), self.begin()
        tables = jax.device_get(state.variables["architecture"]) if not self.first else {}
        self._state, info = step(state, jax.device_put(self.pair), self.key)
        if not self.first:
            self.first = {**jax.device_get(info), "gradient": self._gradient(tables)}
        return info

    def _gradient(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Gradient of the architecture in the first step: Adam keeps a share of it, with the decay, as its mean."""
        state = self.begin().architecture_opt_state
        leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))
        moments = cast("dict[str, Any]", next(p.mu for p in leaves if isinstance(p, optax.ScaleByAdamState)))
        return {
            name: np.asarray(moments[name]) / (1 - self.beta) - self.decay * table for name, table in tables.items()
        }

    def _clock(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        self.seconds[name] = time.perf_counter() - start
        return result


# Weights by PyTorch's names.


def torch_weights(network: SuperNet, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters edge by edge, by the names of `benchmarks.torch_supernet` and with its order of axes."""
    flat = {name.removeprefix("params/"): array for name, array in flatten({"params": variables["params"]}).items()}
    found: dict[str, np.ndarray] = {}
    inputs = len(SOURCES)
    for name, array in flat.items():
        block, _, rest = name.partition("/")
        leaf = {"kernel": "weight", "scale": "weight"}.get(rest.rpartition("/")[2], rest.rpartition("/")[2])
        if block.startswith("stem_"):
            place = (*SOURCES, "sum").index(block.removeprefix("stem_").removesuffix("_norm"))
            found[f"stems.{place}.{int(block.endswith('_norm'))}.{leaf}"] = _axes(array)
        elif block.startswith("head"):
            number = int(block.removeprefix("head").removesuffix("_norm"))
            found[f"head.{3 * number + block.endswith('_norm')}.{leaf}"] = _axes(array)
        elif block == "classifier":
            found[f"classifier.{leaf}"] = _axes(array)
        else:
            cell, (part, *layers) = f"cells.{block.removeprefix('cell')}", rest.split("/")
            if part.startswith("input"):
                where = f"{cell}.inputs.{part.removeprefix('input')}"
                kind = layers[-2] if "FactorisedReduce" in rest else "1"
                found[f"{where}.{ {'Conv_0': 'here', 'Conv_1': 'next'}.get(kind, kind) }.weight"] = _axes(array)
                continue
            source = int(part.removeprefix("map"))
            rows = [row for row, (start, _) in enumerate(edges_of(network.nodes, inputs)) if start == source]
            for row, kernel in zip(rows, np.split(array, len(rows), axis=-1), strict=True):
                found[f"{cell}.edges.{row}.operations.{_layer(layers[0])}.weight"] = _axes(kernel)
    return found


def _layer(kernel: str) -> str:
    """Layer of an operation in PyTorch's sequence, such as `sep3.5` of `sep3_depthwise_1`."""
    name, *rest = kernel.split("_")
    if name == "skip":
        return ".".join([name, *rest])
    if not rest:
        return f"{name}.1"
    kind, stage = rest
    return f"{name}.{4 * int(stage) + (1 if kind == 'depthwise' else 2)}"


def _axes(array: np.ndarray) -> np.ndarray:
    order = {5: (4, 3, 0, 1, 2), 4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
    return np.ascontiguousarray(array.transpose(order))


# Time.


def measured(
    changes: dict[str, Any],
    pair: SearchBatch,
    torch: TorchPeer | None,
    rounds: int,
    *,
    remats: tuple[str, ...],
    gpu: bool,
) -> tuple[list[Table], list[Aim], list[Agreement]]:
    """One step of each order, ours beside PyTorch's; and of first order with less kept."""
    network = supernet(**changes)
    searches = {order: Search(network, pair, order) for order in ORDERS}
    others = {f"remat {remat}": Search(supernet(**changes, remat=remat), pair, "first") for remat in remats}
    if gpu:
        others["bfloat16"] = Search(supernet(**changes, dtype="bfloat16"), pair, "first")
    variables = jax.tree.map(np.asarray, dict(searches["first"].begin().variables))
    weights = torch_weights(network, variables)
    weights |= {f"architecture/{name}": table for name, table in variables["architecture"].items()}
    for part, batch in (("train", pair.train), ("validation", pair.validation)):
        weights |= {f"{part}/{name}": image for name, image in batch.inputs.items()}
        weights[f"{part}/label"] = batch.target["label"]
    described = {
        "axes": pair.train.inputs["pet"].ndim - 2,
        "operations": list(network.operations),
        "nodes": network.nodes,
        "channels": network.channels,
        "stem_multiplier": network.stem_multiplier,
        "stem_stride": network.stem_stride,
        "layout": network.layout,
        "head": list(network.head),
    }
    agreements: list[Agreement] = []
    rows: list[Row] = []
    aims: list[Aim] = []
    peers: dict[str, list[str]] = {}
    with ExitStack() as stack:
        entered: list[Contender] = []
        for order, search in searches.items():
            entered.append(Contender(f"fusion_jax {order}", "float32", search))
            peers[order] = []
            if torch is None:
                continue
            for layout in LAYOUTS:
                name = f"PyTorch {order} {layout}"
                options = {"order": order, "layout": layout, "network": described, "sources": SOURCES}
                work = stack.enter_context(torch.case("supernet_step", weights, **options, rate=WEIGHTS.learning_rate))
                entered.append(work.contender(name))
                peers[order].append(name)
        entered += [Contender(name, "float32", search) for name, search in others.items()]
        timings = race(entered, rounds, pause=PAUSE)
    base = timings["fusion_jax first"].median
    for order, search in searches.items():
        ours, best = f"fusion_jax {order}", quickest(timings, peers[order])
        cells = ratio_cells(
            {"fusion_jax": timings[ours]} | {name: timings[name] for name in peers[order]},
            "fusion_jax",
            {"PyTorch": best},
        )
        layout = "-" if best is None else best.rpartition(" ")[2]
        shares: dict[str, float | None] = {"over first order": timings[ours].median / base}
        shares["PyTorch over its first order"] = _over(timings, best, quickest(timings, peers["first"]))
        rows.append({"step": WORDS[order], **cells, "layout": layout, **shares})
        aims.append(_aim(f"{WORDS[order]}: time / PyTorch at most {STEP_AIM:g}", timings, ours, best, STEP_AIM))
        for name in peers[order]:
            agreements += _agreements(order, search.first, timings[name].result, name, gpu=gpu)
    for name, search in others.items():
        cells = ratio_cells({"fusion_jax": timings[name]}, "fusion_jax", {"PyTorch": None})
        rows.append(
            {"step": f"first order, {name}", **cells, "layout": "-", "over first order": timings[name].median / base}
        )
        if name.startswith("remat"):
            agreements += _same(searches["first"].first, search.first, name.removeprefix("remat "))
    ratio = timings["fusion_jax exact"].median / base
    aims.append(Aim(f"exact second order at most {ORDER_AIM:g} times first order", f"{ratio:.3g}", ratio <= ORDER_AIM))
    error = relative_difference(
        _flat(searches["difference"].first["gradient"]), _flat(searches["exact"].first["gradient"])
    )
    images = " x ".join(map(str, pair.train.inputs["pet"].shape[1:-1]))
    size = f"{network.nodes} nodes, {network.channels} channels, {len(network.operations)} operations"
    notes = (
        f"Images of {images}, layout {network.layout}, {size}, batch 1, {count_parameters(variables):,} parameters.",
        "PyTorch edge by edge in the quicker of two layouts; its exact product is a second backward pass.",
        f"Gradient by finite difference: off by {error:.2g} of the largest entry of the exact one.",
    )
    return [Table("One step of a search", rows, notes)], aims, agreements


def _over(timings: Mapping[str, Timing], name: str | None, base: str | None) -> float | None:
    return None if name is None or base is None else timings[name].median / timings[base].median


def _aim(text: str, timings: Mapping[str, Timing], ours: str, best: str | None, limit: float) -> Aim:
    ratio = _over(timings, ours, best)
    return Aim(text, "-", None) if ratio is None else Aim(text, f"{ratio:.3g}", ratio <= limit)


def _agreements(
    order: str, first: Mapping[str, Any], theirs: tuple[np.ndarray, ...], name: str, *, gpu: bool
) -> list[Agreement]:
    """Our first step beside that of PyTorch."""
    seen, loss, norm, *gradients = theirs
    compared: dict[str, tuple[Any, Any]] = {
        "losses": ([first["architecture_loss"], first["loss"]], [seen, loss]),
        "gradient norm": (first["gradient_norm"], norm),
    }
    if order != "difference":
        compared["architecture gradient"] = (_flat(first["gradient"]), np.concatenate([g.ravel() for g in gradients]))
    found = []
    for what, (ours, peer) in compared.items():
        tolerance = GPU_TOLERANCE if gpu else DIFFERENCE_TOLERANCE if order == "difference" else TOLERANCES[what]
        found.append(Agreement(f"{WORDS[order]}: {what}, vs {name}", relative_difference(ours, peer), tolerance))
    return found


def _same(first: Mapping[str, Any], again: Mapping[str, Any], remat: str) -> list[Agreement]:
    """Computing again instead of keeping changes nothing."""
    compared: dict[str, tuple[Any, Any]] = {
        "losses": ([again["architecture_loss"], again["loss"]], [first["architecture_loss"], first["loss"]]),
        "gradient norm": (again["gradient_norm"], first["gradient_norm"]),
        "architecture gradient": (_flat(again["gradient"]), _flat(first["gradient"])),
    }
    return [
        Agreement(f"first order: {what}, remat {remat} vs none", relative_difference(ours, kept), TOLERANCES[what])
        for what, (ours, kept) in compared.items()
    ]


def _flat(tables: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(tables[name]).ravel() for name in sorted(tables)])


# Compile time and memory.


PLANNED = (
    "Planned: temporary arrays, by the compiler of this backend; weights, both optimisers and the images come on top. "
    "Stated: what `fusion-jax search` says beforehand."
)


def cost(order: str, size: list[int], network: dict[str, Any]) -> dict[str, Any]:
    """What a step costs before it runs: seconds to make it in this process, and the memory that is planned."""
    net = supernet(**network)
    search = Search(net, random_pair(tuple(size)), order)
    analysis = search.compile().memory_analysis()
    found = {f"{name}, s": search.seconds[name] for name in ("trace and lower", "compile")}
    stated = memory_estimate(net, (*size, 1), 1, ORDERS[order][0]).total
    planned = None if analysis is None else analysis.temp_size_in_bytes / 2**20
    return {**found, "planned MiB": planned, "stated MiB": stated / 2**20}


def _in_fresh_process(cache: str, **wanted: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.supernet", "--cost", json.dumps(wanted | {"cache": cache})]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    # Some take minutes each: what is there is shown before the last one ends.
    print(json.dumps(wanted), json.dumps(found), file=sys.stderr, flush=True)
    return found


def compile_times(size: tuple[int, ...], network: dict[str, Any]) -> Table:
    """Each in a fresh process; the second of a pair finds what the first left in the persistent cache."""
    rows: list[Row] = []
    for order in ORDERS:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                found = _in_fresh_process(cache, order=order, size=size, network=network)
                rows.append({"step": WORDS[order], "cache": state, **found})
    notes = (f"Images of {' x '.join(map(str, size))}, a fresh process for each row; the network of the first table.",)
    return Table("Compile time of a step", rows, (*notes, PLANNED))


def memory(size: tuple[int, ...], settings: Mapping[str, tuple[str, dict[str, Any]]]) -> Table:
    """What the compiler plans for steps of full size."""
    rows: list[Row] = []
    for name, (order, network) in settings.items():
        with tempfile.TemporaryDirectory() as cache:
            found = _in_fresh_process(cache, order=order, size=size, network=network)
        rows.append({"step": WORDS[order], "network": name, **found})
    notes = (f"Two images of {' x '.join(map(str, size))}, batch 1, compiled and not run.",)
    return Table("Memory of a step at full resolution", rows, (*notes, PLANNED))


QUICK: dict[str, Any] = {"nodes": 2, "operations": ("none", "skip", "max_pool", "avg_pool", "conv3", "sep3")}
"""Network of --quick, which is to be compiled in seconds."""

FULL: dict[str, Any] = {"layout": "NR", "nodes": 2}
"""Network of the table of memory, unless its rows say otherwise: four channels, stems of stride 2, nothing computed
again. Of `remat` one row is enough: the compiler of CPUs drops the barriers that it puts up, and saves nothing."""
MEMORY: dict[str, tuple[str, dict[str, Any]]] = {
    "two nodes": ("first", FULL),
    "two nodes, remat cell": ("first", FULL | {"remat": "cell"}),
    "two nodes, half of the channels mixed": ("first", FULL | {"partial": 2}),
    "two nodes, stems of stride 1": ("first", FULL | {"stem_stride": 1}),
    "three nodes": ("first", FULL | {"nodes": 3}),
    "two nodes, a second pair of cells": ("first", FULL | {"layout": "NRNR"}),
    "two nodes, exact product": ("exact", FULL),
}


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options.add_argument("--no-costs", action="store_true", help="leave compile time and memory out")
    options.add_argument("--only-costs", action="store_true", help="compile time and memory only")
    options.add_argument("--cost", type=json.loads, help="measure one such step, print JSON and end")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    if chosen.cost is not None:
        jax.config.update("jax_compilation_cache_dir", chosen.cost.pop("cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        print(json.dumps(cost(**chosen.cost)))
        return 0
    changes: dict[str, Any] = QUICK if chosen.quick else {}
    size = (16,) * 2 if chosen.quick else (32,) * 3
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    backend, rounds = jax.default_backend(), 2 if chosen.quick else chosen.rounds
    without = chosen.no_torch or chosen.only_costs
    torch, missing = (None, ["PyTorch (left out by --no-torch)"]) if without else find_torch(backend)
    header = describe_run(missing, rounds) | {"settings": settings}
    if torch is not None:
        header["PyTorch"] = f"{torch.version}, {torch.threads} threads, in a process of its own"
    if backend == "cpu":
        header["GPU"] = "not measured: JAX runs on cpu"
    bystanders = Bystanders()
    tables: list[Table] = []
    aims: list[Aim] = []
    agreements: list[Agreement] = []
    try:
        if not chosen.only_costs:
            tables, aims, agreements = measured(
                changes,
                random_pair(size),
                torch,
                rounds,
                remats=("edge",) if chosen.quick else ("edge", "cell"),
                gpu=backend != "cpu",
            )
    finally:
        if torch is not None:
            torch.close()
    header["other work"] = bystanders.note()
    if not chosen.no_costs:
        tables.append(compile_times(size, changes))
        full = ((16,) * 2, {"remat edge": ("first", QUICK | {"remat": "edge"})})
        tables.append(memory(*(full if chosen.quick else (VOLUME, MEMORY))))
    judged = [] if chosen.quick or backend != "cpu" else bystanders.judge(aims)
    return finish(Results(header, tables, judged, agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
