"""How fast does a fusion model with a ResNet train and infer next to PyTorch, and what does a deep one cost to compile?

    make peers                                # once: PyTorch, in an environment of its own
    python -m benchmarks.resnet               # ResNet-50 fusion at 224 x 224, batch 8; ResNet-152, batch 4
    python -m benchmarks.resnet --quick       # ResNet-18 at 32 x 32: checks the numbers only

The model is [L,L]-Fusion (Holste et al. 2021) of an image and 33 clinical values, without dropout, so that both sides
compute the same numbers. A training step is forward, backward, running statistics and Adam on 25.6 million parameters.
PyTorch runs on as many threads in a process of its own, in both memory layouts; in inference eagerly and as a traced,
frozen program with batch norm folded. Ours is timed with batch norm as trained and folded.

The second part compiles a training step of the same model with ResNet-152 in fresh processes, with and without
rematerialisation, and again from the persistent cache that the first process filled.

On a GPU the same is measured, in float32 and bfloat16.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.costs import NOTES, step_cost
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
from benchmarks.torch_peer import LAYOUTS, PAUSE, ROOT, TorchCase, TorchPeer, find_torch, quickest
from benchmarks.torch_resnet import LEARNING_RATE
from fusion_jax.arrays import Batch
from fusion_jax.encoders.folding import fold_batch_norm
from fusion_jax.encoders.linen import as_model, count_parameters
from fusion_jax.encoders.pretrained import flatten
from fusion_jax.encoders.resnet import ResNet
from fusion_jax.encoders.tabular import MLP
from fusion_jax.fusion.classifier import FusionClassifier
from fusion_jax.fusion.objectives import binary_cross_entropy
from fusion_jax.training.state import FitState, initial_state, make_step

CLINICAL = 33
TRAINING_AIM, INFERENCE_AIM = 1.1, 1.2
"""Most that ours may take, over PyTorch's time."""
TOLERANCES = {"logits": 1e-4, "folded logits": 1e-5, "loss": 1e-4, "gradient norm": 5e-3, "running variance": 1e-4}
GPU_TOLERANCE = 2e-2
"""Products on a GPU are of TensorFloat-32, which has 10 bits, and there are 50 of them in a row."""


def fusion(depth: int, *, remat: bool = False, dtype: Any = jnp.float32) -> FusionClassifier:
    """[L,L]-Fusion, without dropout."""
    encoders = {
        "image": ResNet(depth, projection=512, remat=remat, dtype=dtype),
        "clinical": MLP((1024, 512)),
    }
    return FusionClassifier(encoders, head=MLP((512,)))


def random_batch(cases: int, size: int) -> Batch:
    rng = np.random.default_rng(0)
    inputs = {
        "image": rng.normal(size=(cases, size, size, 1)).astype(np.float32),
        "clinical": rng.normal(size=(cases, CLINICAL)).astype(np.float32),
    }
    label = rng.integers(0, 2, cases).astype(np.int32)
    rows = np.ones(cases, bool)
    return Batch(inputs, {"label": label}, rows, dict.fromkeys(inputs, rows), np.arange(cases, dtype=np.int32))


class Training:
    """A compiled training step that hands its state on, as a loop does."""

    def __init__(self, module: FusionClassifier, batch: Batch) -> None:
        model, objective = as_model(module), binary_cross_entropy()
        optimiser = optax.adam(LEARNING_RATE)
        self.batch, self.key = jax.device_put(batch), jax.random.key(1)
        self._step = jax.jit(make_step(model, optimiser, objective), donate_argnums=0)
        self._init = initial_state(model, optimiser, objective)
        self.seconds: dict[str, float] = {}
        self._compiled: Any = None
        self._state: FitState | None = None
        self.first: dict[str, Any] = {}

    def begin(self) -> FitState:
        """The state that training begins with."""
        state = self._state or self._clock("init", lambda: self._init(jax.random.key(0), self.batch))
        self._state = state
        return state

    def compile(self) -> Any:
        """The compiled step."""
        if self._compiled is None:
            state = self.begin()
            traced = self._clock("trace and lower", lambda: self._step.lower(state, self.batch, self.key))
            self._compiled = self._clock("compile", traced.compile)
        return self._compiled

    def __call__(self) -> dict[str, Any]:
        state = self.begin()
        step = self.compile()
        state, info = step(state, self.batch, self.key)
        self._state = state
        if not self.first:
            variance = state.variables["batch_stats"]["encoders_image"]["bn1"]["var"]
            self.first = jax.device_get({**info, "running variance": variance})
        return info

    def _clock(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        self.seconds[name] = time.perf_counter() - start
        return result


def measured(
    depth: int, batch: Batch, torch: TorchPeer | None, rounds: int, *, gpu: bool
) -> tuple[list[Table], list[Aim], list[Agreement]]:
    """Training and inference of one model, ours beside PyTorch's."""
    module = fusion(depth)
    training = {"fusion_jax": Training(module, batch)}
    if gpu:
        training["fusion_jax bfloat16"] = Training(fusion(depth, dtype=jnp.bfloat16), batch)
    variables = jax.tree.map(jnp.copy, training["fusion_jax"].begin().variables)
    weights = {**flatten(variables), **batch.inputs, "label": batch.target["label"]}

    def torch_works(stack: ExitStack, *modes: str) -> dict[str, TorchCase]:
        if torch is None:
            return {}
        return {
            f"PyTorch {mode} {layout}": stack.enter_context(
                torch.case("resnet_fusion", weights, depth=depth, mode=mode, layout=layout)
            )
            for mode in modes
            for layout in LAYOUTS
        }

    tolerances = dict.fromkeys(TOLERANCES, GPU_TOLERANCE) if gpu else TOLERANCES
    agreements: list[Agreement] = []

    def agree(what: str, ours: Any, theirs: Any, peer: str) -> None:
        difference = relative_difference(ours, theirs)
        agreements.append(Agreement(f"{what}, vs {peer}", difference, tolerances[what]))

    with ExitStack() as stack:
        entered = [Contender(name, "float32", step) for name, step in training.items()]
        trained = torch_works(stack, "training")
        entered += [work.contender(name) for name, work in trained.items()]
        steps = race(entered, rounds, pause=PAUSE)
        for name in trained:
            loss, norm, variance = steps[name].result
            first = training["fusion_jax"].first
            for what, ours, theirs in (
                ("loss", first["loss"], loss),
                ("gradient norm", first["gradient_norm"], norm),
                ("running variance", first["running variance"], variance),
            ):
                agree(what, ours, theirs, name)
    folded, fewer = fold_batch_norm(module, variables)
    inference = {
        "fusion_jax folded": inferring(folded, fewer, batch),
        "fusion_jax": inferring(module, variables, batch),
    }
    if gpu:
        half = fold_batch_norm(fusion(depth, dtype=jnp.bfloat16), variables)
        inference["fusion_jax folded bfloat16"] = inferring(*half, batch)
    with ExitStack() as stack:
        used = torch_works(stack, "eager", "frozen")
        entered = [Contender(name, "float32", call) for name, call in inference.items()]
        entered += [work.contender(name) for name, work in used.items()]
        inferred = race(entered, rounds, pause=PAUSE)
    plain = inferred["fusion_jax"].result
    agree("folded logits", inferred["fusion_jax folded"].result, plain, "as trained")
    for name in used:
        agree("logits", plain[:, 0], inferred[name].result[0], name)
    eager, frozen = ([name for name in used if mode in name] for mode in ("eager", "frozen"))
    rows: list[Row] = []
    for work, timings, names, peers in (
        ("training step", steps, list(training), {"PyTorch": quickest(steps, list(trained))}),
        (
            "inference",
            inferred,
            list(inference),
            {"PyTorch": quickest(inferred, eager), "PyTorch frozen": quickest(inferred, frozen)},
        ),
    ):
        for name in names:
            cells = ratio_cells(timings, name, peers)
            row: Row = {"work": work, "what": name}
            # One column for every version of ours.
            row |= {key.replace(f"{name}, ", "").replace(f"{name} ", ""): value for key, value in cells.items()}
            rows.append(row)
    shape = " x ".join(map(str, batch.inputs["image"].shape))
    notes = (
        f"Image {shape} and {CLINICAL} clinical values; {count_parameters(variables):,} parameters; without dropout.",
        "PyTorch in the quicker of two layouts; frozen: traced, batch norm folded, convolutions fused with ReLU.",
    )
    aims = [
        aim(f"training step: time / PyTorch at most {TRAINING_AIM}", steps, "fusion_jax", list(trained), TRAINING_AIM),
        aim(
            f"inference, folded: time / PyTorch at most {INFERENCE_AIM}",
            inferred,
            "fusion_jax folded",
            list(used),
            INFERENCE_AIM,
        ),
    ]
    return [Table(f"ResNet-{depth} fusion", rows, notes)], aims, agreements


def aim(text: str, timings: dict[str, Timing], ours: str, peers: list[str], limit: float) -> Aim:
    """Judged beside the quickest of the peers."""
    best = quickest(timings, peers)
    if best is None:
        return Aim(text, "-", None)
    ratio = timings[ours].median / timings[best].median
    return Aim(text, f"{ratio:.3g}", ratio <= limit)


def inferring(module: FusionClassifier, variables: dict[str, Any], batch: Batch) -> Callable[[], Any]:
    """Logits of the batch by one compiled program."""
    apply = as_model(module).apply
    compiled = jax.jit(lambda variables, batch: apply(variables, batch, train=False)[0].logits)
    return functools.partial(compiled, variables, jax.device_put(batch))


# Compile time and memory.


def costs(depth: int, size: int, cases: int) -> Table:
    """Each in a fresh process, that nothing is compiled yet in; the second finds what the first left in the cache."""
    rows: list[Row] = []
    for remat in (False, True):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                wanted = {"depth": depth, "size": size, "cases": cases, "remat": remat, "cache": cache}
                command = [sys.executable, "-m", "benchmarks.resnet", "--cost", json.dumps(wanted)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"blocks": "computed again" if remat else "kept", "cache": state, **found})
    notes = (
        f"Training step at {cases} x {size} x {size} x 1, a fresh process for each row.",
        *NOTES,
    )
    return Table(f"ResNet-{depth} fusion: compile time and memory", rows, notes)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options.add_argument("--no-costs", action="store_true", help="leave compile time and memory out")
    options.add_argument("--cost", type=json.loads, help="measure one such training step, print JSON and end")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    if chosen.cost is not None:
        jax.config.update("jax_compilation_cache_dir", chosen.cost.pop("cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        wanted = chosen.cost
        model = fusion(wanted["depth"], remat=wanted["remat"])
        print(json.dumps(step_cost(Training(model, random_batch(wanted["cases"], wanted["size"])))))
        return 0
    depth, size, cases = (18, 64, 4) if chosen.quick else (50, 224, 8)
    deep = (18, 32, 2) if chosen.quick else (152, 224, 4)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    backend, rounds = jax.default_backend(), 2 if chosen.quick else chosen.rounds
    torch, missing = (None, ["PyTorch (left out by --no-torch)"]) if chosen.no_torch else find_torch(backend)
    header = describe_run(missing, rounds) | {"settings": settings}
    if torch is not None:
        header["PyTorch"] = f"{torch.version}, {torch.threads} threads, in a process of its own"
    if backend == "cpu":
        header["GPU"] = "not measured: JAX runs on cpu"
    bystanders = Bystanders()
    try:
        tables, aims, agreements = measured(depth, random_batch(cases, size), torch, rounds, gpu=backend != "cpu")
    finally:
        if torch is not None:
            torch.close()
    header["other work"] = bystanders.note()
    if not chosen.no_costs:
        tables.append(costs(*deep))
    judged = [] if chosen.quick or backend != "cpu" else bystanders.judge(aims)
    return finish(Results(header, tables, judged, agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
