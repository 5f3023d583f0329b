"""How fast do Mask R-CNN and MDF-Net train and find boxes next to PyTorch, and what do they cost to compile?

    make peers                                # once: PyTorch, in an environment of its own
    python -m benchmarks.detection            # both at 512 x 512, batch 4
    python -m benchmarks.detection --quick    # at 64 x 64: checks the numbers only

Both networks are the published ones (Hsieh et al.): MobileNetV3-small trunks, 3,840 anchors, 512 sampled regions an
image, masks of a few. A training step is forward, backward, running statistics and SGD with momentum, on five losses
under trained weights. Ours has fixed shapes and computes all regions that there is room for. PyTorch is timed with as
many ("same regions") and with those alone that there are ("regions found"), in both memory layouts, on as many threads
in a process of its own. It is plain PyTorch: suppression walks over the boxes kept, in NumPy, and RoIAlign is
`grid_sample` and a mean.

Both draw their samples at random and not alike. That the networks are the same is checked where nothing is left to
chance: at 64 x 64, where every anchor and every proposal is sampled.

A second part compiles each training step in a fresh process, with and without rematerialisation.

On a GPU ours is measured in float32 and bfloat16, without a peer.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.costs import NOTES, step_cost
from benchmarks.resnet import aim
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
    ratio_cells,
    relative_difference,
    tune,
)
from benchmarks.torch_detection import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
from benchmarks.torch_peer import LAYOUTS, PAUSE, ROOT, TorchCase, TorchPeer, find_torch, quickest
from fusion_jax.arrays import Batch
from fusion_jax.detection.anchors import make_anchors
from fusion_jax.detection.detector import DetectorConfig, make_detector, named_config
from fusion_jax.detection.losses import homoscedastic
from fusion_jax.encoders.linen import count_parameters
from fusion_jax.encoders.pretrained import flatten
from fusion_jax.training.state import FitState, initial_state, make_step

MODELS = {"Mask R-CNN": "mask-rcnn", "MDF-Net": "mdf-net"}
CLASSES = ("a", "b", "c", "d", "e")
NUMBERS = 9
BOXES = 8
"""Places for boxes of an image; one to five are taken."""
AIM = 1.0
"""Most that ours may take, over PyTorch's time."""
TOLERANCES = {"maps": 2e-4, "scores": 5e-4, "boxes": 1e-3, "classes": 0.0, "losses": 1e-4, "gradient norm": 2e-3}


def config_of(model: str, size: int, **changes: Any) -> DetectorConfig:
    """A published detector; the baseline reads no clinical data."""
    clinical = {"numeric": NUMBERS, "levels": (2,)} if model == "mdf-net" else {}
    return named_config(model, classes=CLASSES, image_size=(size, size), **clinical, **changes)


def without_chance(model: str, size: int) -> DetectorConfig:
    """A detector that samples every anchor and every proposal."""
    anchors = 15 * (size // 32) ** 2
    return config_of(
        model,
        size,
        rpn_batch=anchors,
        rpn_positive=1.0,
        rpn_after_train=anchors,
        rpn_after=anchors,
        roi_batch=anchors + BOXES,
        roi_positive=1.0,
        mask_rois=anchors,
    )


def random_batch(config: DetectorConfig, cases: int) -> Batch:
    """Noise with boxes from a sixth of the image to the whole of it."""
    rng, (height, width) = np.random.default_rng(0), config.image_size
    numbers = rng.normal(80.0, 20.0, (cases, NUMBERS))
    low = rng.uniform(0.0, 0.5, (cases, BOXES, 2))
    high = np.minimum(low + rng.uniform(0.17, 0.6, low.shape), 1.0)
    valid = np.arange(BOXES) < rng.integers(1, 6, cases)[:, None]
    boxes = np.concatenate([low, high], axis=-1) * [width, height, width, height]
    inputs = {
        "image": rng.normal(size=(cases, height, width, 3)).astype(np.float32),
        "clinical": np.column_stack([numbers, rng.integers(0, 2, cases)]).astype(np.float32),
    }
    target = {
        "boxes": np.where(valid[..., None], boxes, 0).astype(np.float32),
        "classes": np.where(valid, rng.integers(0, len(CLASSES), valid.shape), 0).astype(np.int32),
        "box_valid": valid,
    }
    rows = np.ones(cases, bool)
    return Batch(inputs, target, rows, dict.fromkeys(inputs, rows), np.arange(cases, dtype=np.int32))


class Training:
    """A compiled training step that hands its state on, as a loop does."""

    def __init__(self, config: DetectorConfig, batch: Batch) -> None:
        model, objective = make_detector(config).model, homoscedastic(config.loss_names)
        optimiser = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))
        self.batch, self.key = jax.device_put(batch), jax.random.key(1)
        self._step = jax.jit(make_step(model, optimiser, objective), donate_argnums=0)
        state = initial_state(model, optimiser, objective)(jax.random.key(0), self.batch)
        self._state: FitState = state._replace(variables=spread(state.variables))
        self.initial = jax.device_get(self._state.variables)
        self.seconds: dict[str, float] = {}
        self._compiled: Any = None
        self.first: dict[str, Any] = {}
        self.moved: dict[str, Any] = {}

    def settled(self) -> dict[str, Any]:
        """The first weights with the moments of the batch as running ones, as after long training.

        With those that a network begins with, 0 and 1, its maps fade out and all answers are alike.
        """
        if not self.first:
            self()

        def of_batch(path: tuple[Any, ...], moved: np.ndarray, old: np.ndarray) -> np.ndarray:
            momentum = 0.99 if any("trunk" in str(part) for part in path) else 0.9
            moments = (moved - momentum * old) / (1 - momentum)
            return np.maximum(moments, 1e-6) if "var" in str(path[-1]) else moments

        statistics = jax.tree_util.tree_map_with_path(of_batch, self.moved, self.initial["batch_stats"])
        return {**self.initial, "batch_stats": statistics}

    def compile(self) -> Any:
        """The compiled step."""
        if self._compiled is None:
            start = time.perf_counter()
            lowered = self._step.lower(self._state, self.batch, self.key)
            self.seconds["trace and lower"] = time.perf_counter() - start
            self._compiled = lowered.compile()
            self.seconds["compile"] = time.perf_counter() - start - self.seconds["trace and lower"]
        return self._compiled

    def __call__(self) -> dict[str, Any]:
        self._state, info = self.compile()(self._state, self.batch, self.key)
        if not self.first:
            self.first, self.moved = jax.device_get((info, self._state.variables["batch_stats"]))
        return info


def spread(variables: dict[str, Any]) -> dict[str, Any]:
    """Weights whose answers differ: of objectness and classes that are all but equal, rounding would choose."""
    params = dict(variables["params"])
    for head, layer in (("rpn", "objectness"), ("box_predictor", "classes")):
        own = params[head][layer]
        params[head] = {**params[head], layer: {**own, "kernel": 30 * own["kernel"]}}
    return {**variables, "params": params}


def finding(config: DetectorConfig, variables: dict[str, Any], batch: Batch) -> Callable[[], Any]:
    """Detections of the batch by one compiled program."""
    apply = make_detector(config).model.apply
    compiled = jax.jit(lambda variables, batch: apply(variables, batch, train=False)[0])
    arguments = jax.device_put((variables, batch))
    return lambda: compiled(*arguments)


def arrays_of(config: DetectorConfig, variables: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """Weights and inputs for the peer."""
    weights = {name: variables[name] for name in ("params", "batch_stats")}
    anchors = make_anchors(config.anchors, *config.image_size)
    return {**flatten(weights), **batch.inputs, **batch.target, "anchors": np.asarray(anchors, np.float32)}


def checked(name: str, training: Training, config: DetectorConfig, torch: TorchPeer) -> list[Agreement]:
    """One training step and inference where nothing is left to chance, ours beside PyTorch's."""
    batch, settled = jax.device_get(training.batch), training.settled()
    stages = jax.device_get(jax.jit(make_detector(config).stages)(settled, batch))
    valid = stages.detections.valid
    ours = {
        "maps": stages.maps["fused"],
        "scores": np.where(valid, stages.detections.score, -1),
        "boxes": np.where(valid[..., None], stages.detections.boxes, -1),
        "classes": np.where(valid, stages.detections.label, -1),
        "losses": [training.first[loss] for loss in config.loss_names],
        "gradient norm": training.first["gradient_norm"],
    }
    found: list[Agreement] = []
    for fill, text in ((True, "same regions"), (False, "regions found")):
        options = {"config": config.to_json(), "layout": LAYOUTS[0], "fill": fill}
        with torch.case("detection", arrays_of(config, settled, batch), mode="inference", **options) as case:
            maps, boxes, kinds, scores = case.result()
        with torch.case("detection", arrays_of(config, training.initial, batch), mode="training", **options) as case:
            losses, norm = case.result()
        theirs = [maps, scores, boxes, kinds, losses, norm]
        for (what, own), other in zip(ours.items(), theirs, strict=True):
            difference = relative_difference(own, other)
            found.append(Agreement(f"{name}, {what}, {text}", difference, TOLERANCES[what]))
    count = int(valid.sum())
    # Without detections their agreement would say nothing.
    found.append(Agreement(f"{name}, {count} detections compared, at least 4", float(count < 4), 0.0))
    return found


def measured(
    name: str, first: Training, config: DetectorConfig, torch: TorchPeer | None, rounds: int, *, gpu: bool
) -> tuple[Table, list[Aim]]:
    """Training and inference of one model, ours beside PyTorch's; `first` is its training."""
    batch = jax.device_get(first.batch)
    training = {"fusion_jax": first}
    half = dataclasses.replace(config, dtype="bfloat16")
    if gpu:
        training["fusion_jax bfloat16"] = Training(half, batch)
    rows: list[Row] = []
    aims: list[Aim] = []
    for mode in ("training", "inference"):
        ours: dict[str, Callable[[], Any]] = dict(training)
        weights = first.initial
        if mode == "inference":
            weights = first.settled()
            ours = {"fusion_jax": finding(config, weights, batch)}
            if gpu:
                ours["fusion_jax bfloat16"] = finding(half, weights, batch)
        arrays = arrays_of(config, weights, batch)
        with ExitStack() as stack:
            peers: dict[str, TorchCase] = {}
            if torch is not None:
                for fill in (True, False):
                    for layout in LAYOUTS:
                        options = {"config": config.to_json(), "layout": layout, "fill": fill, "mode": mode}
                        case = stack.enter_context(torch.case("detection", arrays, **options))
                        peers[f"{'same' if fill else 'found'} {layout}"] = case
            entered = [Contender(what, "float32", call) for what, call in ours.items()]
            entered += [case.contender(what) for what, case in peers.items()]
            timings = race(entered, rounds, pause=PAUSE)
            same, found = ([what for what in peers if what.startswith(kind)] for kind in ("same", "found"))
            best = {"PyTorch": quickest(timings, same), "PyTorch, regions found": quickest(timings, found)}
            taken = best["PyTorch"]
            memory = None if taken is None else peers[taken].peak_bytes()
        for what in ours:
            row: Row = {"work": "training step" if mode == "training" else "inference", "what": what}
            # One column for every version of ours.
            cells = ratio_cells(timings, what, best)
            row |= {key.replace(f"{what}, ", "").replace(f"{what} ", ""): value for key, value in cells.items()}
            rows.append(row | {"PyTorch MiB": None if memory is None else memory / 2**20})
        aims.append(aim(f"{name}, {mode}: time / PyTorch at most {AIM:g}", timings, "fusion_jax", same, AIM))
    shape = " x ".join(map(str, batch.inputs["image"].shape))
    clinical = f" and {NUMBERS + 1} clinical values" if config.reads_clinical else ""
    notes = (
        f"Images {shape}{clinical}; {count_parameters(first.initial):,} parameters.",
        "PyTorch in the quicker of two layouts: with regions padded to as many as ours, or those alone that are found.",
        "PyTorch MiB: peak resident memory of its process during a call over that before; ours is in the table below.",
        "No claim is made against torchvision's compiled operators, which were not measured.",
    )
    return Table(name, rows, notes), aims


# Compile time and memory.


def costs(size: int, cases: int) -> Table:
    """Each in a fresh process, that nothing is compiled yet in."""
    rows: list[Row] = []
    for name, model in MODELS.items():
        for remat in (False, True):
            wanted = {"model": model, "size": size, "cases": cases, "remat": remat}
            command = [sys.executable, "-m", "benchmarks.detection", "--cost", json.dumps(wanted)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"model": name, "blocks": "computed again" if remat else "kept", **found})
    notes = (
        f"Training step at {cases} x {size} x {size} x 3, a fresh process for each row, nothing in a cache.",
        *NOTES,
    )
    return Table("Compile time and memory", rows, notes)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options.add_argument("--no-costs", action="store_true", help="leave compile time and memory out")
    options.add_argument("--only", choices=MODELS.values(), help="one of the models")
    options.add_argument("--cost", type=json.loads, help="measure one such training step, print JSON and end")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    if chosen.cost is not None:
        wanted = chosen.cost
        config = config_of(wanted["model"], wanted["size"], remat=wanted["remat"])
        print(json.dumps(step_cost(Training(config, random_batch(config, wanted["cases"])))))
        return 0
    size, cases = (64, 2) if chosen.quick else (512, 4)
    names = [name for name, model in MODELS.items() if chosen.only in (None, model)]
    backend, rounds = jax.default_backend(), 2 if chosen.quick else chosen.rounds
    gpu = backend != "cpu"
    torch, missing = (None, ["PyTorch (left out by --no-torch)"]) if chosen.no_torch else find_torch("cpu")
    if gpu and torch is not None:
        torch.close()
        torch, missing = None, ["PyTorch (this peer is for CPUs)"]
    header = describe_run(missing, rounds) | {"settings": settings}
    if torch is not None:
        header["PyTorch"] = f"{torch.version}, {torch.threads} threads, in a process of its own"
    if not gpu:
        header["GPU"] = "not measured: JAX runs on cpu"
    bystanders = Bystanders()
    tables, aims, agreements = [], [], []
    try:
        for name in names:
            config = without_chance(MODELS[name], 64) if chosen.quick else config_of(MODELS[name], 512)
            training = Training(config, random_batch(config, cases))
            table, own = measured(name, training, config, torch, rounds, gpu=gpu)
            tables.append(table)
            aims += own
            if torch is not None:
                if not chosen.quick:
                    config = without_chance(MODELS[name], 64)
                    training = Training(config, random_batch(config, 2))
                agreements += checked(name, training, config, torch)
    finally:
        if torch is not None:
            torch.close()
    header["other work"] = bystanders.note()
    if not chosen.no_costs:
        tables.append(costs(size, cases))
    judged = [] if chosen.quick or gpu else bystanders.judge(aims)
    return finish(Results(header, tables, judged, agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
