"""How fast are many trainings of a small clinical network in one program, next to a loop of them in PyTorch?

    make peers                                   # once: PyTorch, in an environment of its own
    python -m benchmarks.tabular_folds           # 10 folds x 5 seeds, 50 epochs
    python -m benchmarks.tabular_folds --quick   # smallest size: checks the numbers only

Folds x seeds of a network of 33 clinical values (64 and 32 hidden units) on 200 cases, Adam, batches of 32: the same
weights to begin with and the same order of cases on both sides. Ours is `fit_many` as a user calls it, orders of cases
drawn on the host included. PyTorch runs the loop that one would write, on as many threads and on one (which suits
such small matrices better), with its default Adam and its fused one.
"""

import sys
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import (
    Agreement,
    Aim,
    Bystanders,
    Contender,
    Results,
    Row,
    Table,
    describe_run,
    finish,
    parser,
    race,
    relative_difference,
    timing_cells,
    tune,
)
from benchmarks.torch_peer import PAUSE, TorchPeer, find_torch, quickest
from benchmarks.torch_tabular import LEARNING_RATE
from fusion_jax.arrays import Batch
from fusion_jax.data.sampling import epoch_order
from fusion_jax.encoders.linen import as_model
from fusion_jax.encoders.tabular import MLP
from fusion_jax.fusion.classifier import FusionClassifier
from fusion_jax.fusion.objectives import binary_cross_entropy
from fusion_jax.training import Optimiser, initial_state, make_optimiser, make_step, named_key, run_key
from fusion_jax.training.vmapped import ManyFits, fit_many

CLINICAL, WIDTHS, BATCH = 33, (64, 32), 32
AIM = 20.0
TOLERANCE, DRIFT = 2e-3, 0.1
"""Of the few steps of `--quick`, and of 50 epochs, over which rounding drifts apart: Adam divides by the root of small
numbers."""


class Study(NamedTuple):
    """How much there is to train."""

    cases: int
    folds: int
    seeds: int
    epochs: int


FULL, QUICK = Study(200, 10, 5, 50), Study(40, 2, 2, 3)


def table(study: Study) -> Batch:
    """Clinical values with some signal."""
    rng = np.random.default_rng(0)
    label = (np.arange(study.cases) % 2).astype(np.int32)
    values = rng.normal(size=(study.cases, CLINICAL)).astype(np.float32)
    values[:, 0] += label
    there = np.ones(study.cases, bool)
    return Batch({"clinical": values}, {"label": label}, there, {"clinical": there}, np.arange(study.cases))


def trainings(study: Study) -> tuple[list[np.ndarray], list[tuple[int, int, int]]]:
    """Training rows and seeds of every fold and seed."""
    fold = np.random.default_rng(1).permutation(study.cases) % study.folds
    named = [(seed, 0, number) for seed in range(study.seeds) for number in range(study.folds)]
    return [np.flatnonzero(fold != number) for _, _, number in named], named


def measure(peer: TorchPeer | None, rounds: int, study: Study) -> tuple[Table, list[Aim], list[Agreement]]:
    cases = table(study)
    rows, seeds = trainings(study)
    model = as_model(FusionClassifier({"clinical": MLP(WIDTHS)}, classes=1))
    steps = -(-max(map(len, rows)) // BATCH)
    optimiser = make_optimiser(Optimiser("adam", learning_rate=LEARNING_RATE), steps, study.epochs)
    objective = binary_cross_entropy()

    def together() -> ManyFits:
        found = fit_many(model, optimiser, objective, cases, rows, seeds=seeds, epochs=study.epochs, batch_size=BATCH)
        return jax.block_until_ready(found)

    step = jax.jit(make_step(model, optimiser, objective), donate_argnums=0)
    start = jax.jit(initial_state(model, optimiser, objective))

    def one_by_one() -> list[Any]:
        """Our own step in a loop of Python: what the program saves without PyTorch in the comparison."""
        states = []
        for own, seed in zip(rows, seeds, strict=True):
            key = run_key(*seed)
            state = start(named_key(key, "init"), batch_of(cases, own[:BATCH]))
            for epoch in range(study.epochs):
                order = padded_order(own, seed, epoch, steps)
                for indices in order:
                    state, _ = step(state, batch_of(cases, indices), jax.random.fold_in(named_key(key, "steps"), epoch))
            states.append(state)
        return jax.block_until_ready(states)

    ours, loop = (
        Contender("fusion_jax, one program", "float32", together),
        Contender("fusion_jax, a loop", "float32", one_by_one),
    )
    entered = [ours, loop]
    agreements: list[Agreement] = []
    with ExitStack() as stack:
        names = []
        if peer is not None:
            arrays = peer_arrays(study, cases, rows, seeds, steps, model)
            for threads, fused in ((peer.threads, False), (1, False), (1, True)):
                name = f"PyTorch loop, {threads} threads{', fused Adam' if fused else ''}"
                if name not in names:
                    case = stack.enter_context(peer.case("tabular_folds", arrays, threads=threads, fused=fused))
                    entered.append(case.contender(name))
                    names.append(name)
        bystanders = Bystanders()
        timings = race(entered, rounds, pause=PAUSE)
    found = timings[ours.name].result
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[state.variables for state in timings[loop.name].result])
    for path, mine in weights(found.variables).items():
        agreements.append(
            Agreement(
                f"{path}, one program and a loop",
                relative_difference(mine, weights(alone)[path]),
                TOLERANCE if study is not FULL else DRIFT,
            )
        )
    for name in names:
        for (path, mine), theirs in zip(weights(found.variables).items(), timings[name].result, strict=True):
            value = theirs.swapaxes(1, 2) if theirs.ndim == 3 else theirs
            agreements.append(
                Agreement(
                    f"{path}, {name}", relative_difference(mine, value), TOLERANCE if study is not FULL else DRIFT
                )
            )
    best = quickest(timings, names)
    table_rows: list[Row] = [timing_cells(contender, timings, [loop.name, *names]) for contender in entered]
    count = len(rows)
    aims = []
    if study is FULL and best is not None:
        ratio = timings[best].median / timings[ours.name].median
        aims = bystanders.judge(
            [
                Aim(
                    "folds x seeds in one program at least 20 times as fast as PyTorch",
                    f"{ratio:.3g} ({best})",
                    ratio >= AIM,
                )
            ]
        )
    extent = (
        f"{study.folds} folds x {study.seeds} seeds = {count} trainings of {study.epochs} epochs, {steps} steps each, "
        f"on {study.cases} cases. vs X: how many times faster than X."
    )
    notes = (extent, f"Other work {bystanders.note()}.")
    return Table("Folds x seeds of a clinical network", table_rows, notes), aims, agreements


def batch_of(cases: Batch, indices: np.ndarray) -> Batch:
    there = indices >= 0
    rows = np.maximum(indices, 0)
    values = np.where(there[:, None], cases.inputs["clinical"][rows], 0)
    return Batch({"clinical": values}, {"label": cases.target["label"][rows]}, there, {"clinical": there}, indices)


def padded_order(rows: np.ndarray, seed: tuple[int, int, int], epoch: int, steps: int) -> np.ndarray:
    order = np.full(steps * BATCH, -1, np.int32)
    order[: len(rows)] = epoch_order(rows, "shuffle", seed=seed, epoch=epoch)
    return order.reshape(steps, BATCH)


def peer_arrays(
    study: Study, cases: Batch, rows: list[np.ndarray], seeds: list[tuple[int, int, int]], steps: int, model: Any
) -> dict[str, np.ndarray]:
    """What the server needs: the table, the orders, and the first weights of every training."""
    batch = batch_of(cases, rows[0][:BATCH])
    keys = jnp.stack([named_key(run_key(*seed), "init") for seed in seeds])
    first = weights(jax.jit(jax.vmap(model.init, in_axes=(0, None)))(keys, batch))
    orders = np.stack(
        [
            [padded_order(own, seed, epoch, steps) for epoch in range(study.epochs)]
            for own, seed in zip(rows, seeds, strict=True)
        ]
    )
    arrays = {"values": cases.inputs["clinical"], "label": cases.target["label"], "orders": orders}
    for number, (kernel, bias) in enumerate(zip(list(first.values())[::2], list(first.values())[1::2], strict=True)):
        arrays |= {f"kernel_{number}": np.asarray(kernel), f"bias_{number}": np.asarray(bias)}
    return arrays


def weights(variables: Any) -> dict[str, np.ndarray]:
    """Kernel and bias of every layer, from the first to the last."""
    params = variables["params"]
    layers = {f"layer {i}": params["encoders_clinical"][f"Dense_{i}"] for i in range(len(WIDTHS))}
    [last] = [value for name, value in params.items() if name != "encoders_clinical"]
    layers[f"layer {len(WIDTHS)}"] = last
    return {f"{name} {part}": np.asarray(own[part]) for name, own in layers.items() for part in ("kernel", "bias")}


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--no-torch", action="store_true", help="without PyTorch")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = 2 if chosen.quick else chosen.rounds
    peer, missing = (
        (None, ["PyTorch (left out by --no-torch)"]) if chosen.no_torch else find_torch(jax.default_backend())
    )
    header = describe_run(missing, rounds) | {"settings": settings}
    if peer is not None:
        header["PyTorch"] = f"{peer.version}, {peer.threads} threads"
    try:
        measured, aims, agreements = measure(peer, rounds, QUICK if chosen.quick else FULL)
    finally:
        if peer is not None:
            peer.close()
    return finish(Results(header, [measured], aims, agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
