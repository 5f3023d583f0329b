"""How fast are convolution and pooling, forward and backward, next to plain `jax.lax` and PyTorch?

    make peers                                            # once: PyTorch, in an environment of its own
    python -m benchmarks.conv                             # every case
    python -m benchmarks.conv --only "3x3x3 16"           # cases whose name holds this
    python -m benchmarks.conv --quick                     # tiny shapes, two rounds

"forward + backward" is one program that returns the output and the gradients of the image and the kernels, with the
cotangent an argument: a program that returns gradients alone would let XLA drop the forward pass of a linear function.
Everybody computes in float32 on all cores, with padding written out in numbers that are the same on both sides.
PyTorch is timed inside a process of its own, with its memory in both layouts.

On a GPU the same cases compare the library's formulations with each other and with `jax.lax`; PyTorch takes part if it
sees the GPU. `--batch 8` makes every batch eight times larger.
"""

import math
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import (
    Agreement,
    Aim,
    Bystanders,
    Contender,
    Patience,
    Program,
    Results,
    Row,
    Table,
    Timing,
    describe_run,
    finish,
    parser,
    ratio_cells,
    relative_difference,
    tune,
)
from benchmarks.torch_peer import LAYOUTS, PAUSE, TorchCase, TorchPeer, find_torch, quickest
from fusion_jax.ops.conv import conv, conv_transpose
from fusion_jax.ops.pool import average_pool, max_pool

Array = np.ndarray
Function = Callable[..., jax.Array]
Method = Literal["auto", "direct"]
Operation = Literal["conv", "conv_transpose", "max_pool", "average_pool"]

FORWARD, BACKWARD = "forward", "forward + backward"
PASSES = {FORWARD: 1.0, BACKWARD: 3.0}  # and their work, in forward passes
ONCE = 2.0
"""Seconds; a slower call is timed once."""
TOLERANCES = {"values": 2e-5, "gradients": 1e-4}
GPU_TOLERANCES = {"values": 5e-3, "gradients": 5e-3}
"""Products on a GPU are of TensorFloat-32, which has 10 bits, unless they are told otherwise."""

RESNET = "ResNet-50"
MOBILE = "MobileNetV3-Large at 512 x 512, depthwise"
NARROW = "2-D convolution to few outputs"
DENSE = "3-D and transposed convolution"
DEPTHWISE = "3-D convolution, depthwise and separable"
POOLS = "Pooling"


# Cases.


class Case(NamedTuple):
    """One layer.

    Attributes:
      name: as it appears in the table; `--only` looks into it.
      family: title of its table.
      shape: of the image, `(b, *spatial, c)`.
      window: of the kernel, or of the pooling.
      out: channels of the result; 0 for pooling.
      separable: a convolution of one position to `out` channels follows one that keeps the channels.
      aim: key of the aims it counts for.
    """

    name: str
    family: str
    shape: tuple[int, ...]
    window: tuple[int, ...]
    out: int = 0
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    operation: Operation = "conv"
    separable: bool = False
    aim: str = ""

    @property
    def padding(self) -> tuple[int, ...]:
        """Added before and after every axis: with stride 1 the size stays."""
        return tuple(self.dilation * (width // 2) for width in self.window)

    def kernels(self) -> list[tuple[int, ...]]:
        channels = self.shape[-1]
        if not self.out:
            return []
        if self.separable:
            return [(*self.window, channels // self.groups, channels), (*(1 for _ in self.window), channels, self.out)]
        return [(*self.window, channels // self.groups, self.out)]


def _dense(
    family: str, shape: tuple[int, ...], width: int, out: int, *, strides: int = 1, dilation: int = 1, aim: str = ""
) -> Case:
    window = (width,) * (len(shape) - 2)
    name = f"{_by(window)} {shape[-1]}->{out}{_steps(strides, dilation)}, {_by(shape[:-1])}"
    return Case(name, family, shape, window, out, strides, dilation, aim=aim)


def _depthwise(
    family: str, shape: tuple[int, ...], width: int, *, strides: int = 1, dilation: int = 1, aim: str = ""
) -> Case:
    window, channels = (width,) * (len(shape) - 2), shape[-1]
    name = f"depthwise {_by(window)} {channels}{_steps(strides, dilation)}, {_by(shape[:-1])}"
    return Case(name, family, shape, window, channels, strides, dilation, channels, aim=aim)


def _separable(shape: tuple[int, ...], width: int, *, dilation: int = 1, aim: str = "") -> Case:
    case = _depthwise(DEPTHWISE, shape, width, dilation=dilation, aim=aim)
    return case._replace(name=case.name.replace("depthwise", "separable"), separable=True)


def _transposed(shape: tuple[int, ...], out: int) -> Case:
    window = (2,) * (len(shape) - 2)
    name = f"transposed {_by(window)} {shape[-1]}->{out}{_steps(2, 1)}, {_by(shape[:-1])}"
    return Case(name, DENSE, shape, window, out, 2, operation="conv_transpose")


def _pool(operation: Operation, shape: tuple[int, ...], *, strides: int, aim: str = "") -> Case:
    window = (3,) * (len(shape) - 2)
    name = f"{operation} {_by(window)} {shape[-1]}{_steps(strides, 1)}, {_by(shape[:-1])}"
    return Case(name, POOLS, shape, window, strides=strides, operation=operation, aim=aim)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _steps(strides: int, dilation: int) -> str:
    return (f", stride {strides}" if strides > 1 else "") + (f", dilation {dilation}" if dilation > 1 else "")


FINE, COARSE, CUBE = (1, 56, 56, 72), (1, 28, 28, 36), (1, 32, 32, 32)

CASES = (
    _dense(RESNET, (8, 224, 224, 3), 7, 64, strides=2),
    _dense(RESNET, (8, 56, 56, 256), 1, 64),
    _dense(RESNET, (8, 56, 56, 64), 3, 64),
    _dense(RESNET, (8, 56, 56, 64), 1, 256),
    _dense(RESNET, (8, 28, 28, 128), 3, 128, strides=2),
    _dense(NARROW, (4, 256, 256, 64), 3, 3),
    _dense(NARROW, (8, 56, 56, 256), 3, 32),
    _depthwise(MOBILE, (4, 256, 256, 16), 3, strides=2, aim="mobile"),
    _depthwise(MOBILE, (4, 64, 64, 88), 3, aim="mobile"),
    _depthwise(MOBILE, (4, 64, 64, 96), 5, strides=2, aim="mobile"),
    _depthwise(MOBILE, (4, 32, 32, 240), 5, aim="mobile"),
    _depthwise(MOBILE, (4, 16, 16, 576), 5, aim="mobile"),
    _dense(DENSE, (*CUBE, 16), 3, 16, aim="dense"),
    _dense(DENSE, (*CUBE, 32), 3, 32, aim="dense"),
    _dense(DENSE, (*FINE, 16), 3, 16, aim="dense"),
    _dense(DENSE, (*FINE, 32), 3, 32, aim="dense"),
    _dense(DENSE, (*CUBE, 16), 3, 16, dilation=2, aim="dilated"),
    _dense(DENSE, (*FINE, 16), 3, 16, dilation=2, aim="dilated"),
    _dense(DENSE, (*CUBE, 32), 3, 64, strides=2),
    _dense(DENSE, (*COARSE, 16), 5, 16),
    _dense(DENSE, (1, 64, 64, 64, 1), 7, 16, strides=2),
    _dense(DENSE, (1, 64, 64, 64, 2), 7, 16, strides=2),
    _transposed((4, 64, 64, 64), 64),
    _depthwise(DEPTHWISE, (*FINE, 16), 3),
    _depthwise(DEPTHWISE, (*FINE, 16), 3, dilation=2),
    _depthwise(DEPTHWISE, (*FINE, 16), 5),
    _separable((*FINE, 16), 3, aim="separable"),
    _separable((*FINE, 16), 3, dilation=2, aim="separable"),
    _pool("max_pool", (8, 112, 112, 64), strides=2),
    _pool("max_pool", (*FINE, 16), strides=1, aim="max"),
    _pool("max_pool", (*FINE, 16), strides=2, aim="max"),
    _pool("average_pool", (*FINE, 16), strides=1, aim="average"),
    _pool("average_pool", (*FINE, 16), strides=2, aim="average"),
)

QUICK_CASES = (
    _dense(RESNET, (2, 9, 9, 3), 3, 4, strides=2),
    _dense(NARROW, (1, 5, 6, 9), 3, 2),
    _depthwise(MOBILE, (2, 8, 8, 4), 5),
    _dense(DENSE, (1, 6, 6, 6, 3), 3, 4, dilation=2),
    _transposed((2, 5, 5, 3), 4),
    _separable((1, 6, 6, 6, 3), 3),
    _pool("max_pool", (1, 6, 6, 6, 3), strides=2),
    _pool("average_pool", (1, 6, 6, 6, 3), strides=1),
)

AIMS = (
    ("3x3x3 convolution", "dense", BACKWARD, 2.0),
    ("3x3x3 convolution, dilation 2", "dilated", BACKWARD, 1.5),
    ("depthwise-separable 3-D convolution", "separable", FORWARD, 0.6),
    ("depthwise-separable 3-D convolution", "separable", BACKWARD, 1.2),
    ("3-D max-pool", "max", BACKWARD, 1.5),
    ("3-D average pool", "average", FORWARD, 0.6),
    ("3-D average pool", "average", BACKWARD, 0.6),
)
SUMMED_AIMS = (
    ("sum of the depthwise layers of MobileNetV3", "mobile", FORWARD, 2.0),
    ("sum of the depthwise layers of MobileNetV3", "mobile", BACKWARD, 2.5),
)


# What is computed.


def library(case: Case, method: Method) -> Function:
    """The case by fusion_jax, as a function of the image and the kernels."""
    padding = case.padding
    if case.operation == "conv_transpose":
        return lambda x, kernel: conv_transpose(x, kernel, strides=case.strides)
    if case.operation == "max_pool":
        return lambda x: max_pool(x, case.window, strides=case.strides, padding=padding)
    if case.operation == "average_pool":
        return lambda x: average_pool(x, case.window, strides=case.strides, padding=padding)

    def convolve(x: jax.Array, kernel: jax.Array, *pointwise: jax.Array) -> jax.Array:
        y = conv(
            x,
            kernel,
            strides=case.strides,
            padding=padding,
            dilation=case.dilation,
            groups=case.groups,
            method=method,
        )
        for kernel in pointwise:
            y = conv(y, kernel, method=method)
        return y

    return convolve


def plain(case: Case) -> Function:
    """The case as one writes it with `jax.lax`."""
    spatial = len(case.window)
    letters = "DHW"[-spatial:]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    strides, pads = (case.strides,) * spatial, [(pad, pad) for pad in case.padding]
    if case.operation == "conv_transpose":
        return lambda x, kernel: jax.lax.conv_transpose(x, kernel, strides, "SAME", dimension_numbers=numbers)
    whole_window, steps, edges = (1, *case.window, 1), (1, *strides, 1), [(0, 0), *pads, (0, 0)]
    if case.operation == "max_pool":
        return lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, whole_window, steps, edges)
    if case.operation == "average_pool":
        share = np.float32(1) / positions_inside(case)
        return lambda x: share * jax.lax.reduce_window(x, 0.0, jax.lax.add, whole_window, steps, edges)

    def convolve(x: jax.Array, kernel: jax.Array, *pointwise: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            pads,
            rhs_dilation=(case.dilation,) * spatial,
            dimension_numbers=numbers,
            feature_group_count=case.groups,
        )
        for kernel in pointwise:
            y = jax.lax.conv_general_dilated(y, kernel, (1,) * spatial, "VALID", dimension_numbers=numbers)
        return y

    return convolve


def torch_options(case: Case, layout: str) -> dict[str, Any]:
    common = {"layout": layout, "stride": case.strides}
    if case.operation == "conv":
        return common | {"padding": case.padding, "dilation": case.dilation, "groups": case.groups}
    if case.operation == "conv_transpose":
        # JAX convolves the stretched image with the kernel as it is, PyTorch spreads the kernel: a mirror image.
        return common | {"mirrored": True}
    return common | {"padding": case.padding, "window": case.window, "count_include_pad": False}


def positions_inside(case: Case) -> Array:
    """How many positions of every window lie within the image, shape `(*windows, 1)`."""
    inside = np.ones((), np.float32)
    for size, width, pad in zip(case.shape[1:-1], case.window, case.padding, strict=True):
        starts = np.arange(-pad, size + pad - width + 1, case.strides)
        along = np.minimum(starts + width, size) - np.maximum(starts, 0)
        inside = np.multiply.outer(inside, along.astype(np.float32))
    return inside[..., None]


# Tables.


class Bench:
    """Races the contenders of every case, and collects their rows."""

    def __init__(self, torch: TorchPeer | None, rounds: int, limit: float, backend: str) -> None:
        self.torch, self.rounds, self.limit, self.backend = torch, rounds, limit, backend
        self.rows: dict[str, list[Row]] = {}
        self.seconds: dict[tuple[str, str], tuple[float, float]] = {}
        self.worst: dict[tuple[str, str, str], tuple[float, str]] = {}

    def measure(self, case: Case) -> None:
        draw = np.random.default_rng(zlib.crc32(case.name.encode()))

        def normal(shape: Sequence[int]) -> Array:
            return draw.standard_normal(shape).astype(np.float32)

        inputs = [normal(case.shape), *map(normal, case.kernels())]
        on_device = [jnp.asarray(array) for array in inputs]
        functions = {"fusion_jax": library(case, "auto"), "lax": plain(case)}
        if self.backend != "cpu" and case.operation == "conv":
            functions["fusion_jax direct"] = library(case, "direct")
        cotangent = normal(jax.eval_shape(functions["lax"], *on_device).shape)
        patience = Patience(self.limit, pause=PAUSE, once=ONCE)
        for direction, work in PASSES.items():
            pulled = cotangent if direction == BACKWARD else None
            on_device_too = None if pulled is None else jnp.asarray(pulled)
            programs = {name: Program(function, on_device, on_device_too) for name, function in functions.items()}
            with ExitStack() as stack:
                peers = self._torch_cases(stack, case, inputs, pulled)
                contenders = [
                    # Only lax is left out for its time: an aim must not go unjudged because it was missed by far.
                    Contender(name, "float32", program, power=1 if name == "lax" else 0)
                    for name, program in programs.items()
                ]
                contenders += [peer.contender(name) for name, peer in peers.items()]
                timings = patience.race(contenders, work, self.rounds)
                best = quickest(timings, list(peers))
                memory = {name: program.peak_bytes() for name, program in programs.items()}
                if best is not None:
                    memory[best] = peers[best].peak_bytes()
            self._collect(case, direction, timings, best, memory)

    def _torch_cases(
        self, stack: ExitStack, case: Case, inputs: Sequence[Array], cotangent: Array | None
    ) -> dict[str, TorchCase]:
        if self.torch is None:
            return {}
        arrays: dict[str, Array] = dict(zip(("x", "kernel", "kernel_pointwise"), inputs, strict=False))
        if cotangent is not None:
            arrays["cotangent"] = cotangent
        return {
            layout: stack.enter_context(self.torch.case(case.operation, arrays, **torch_options(case, layout)))
            for layout in LAYOUTS
        }

    def _collect(
        self, case: Case, direction: str, timings: dict[str, Timing], best: str | None, memory: dict[str, int | None]
    ) -> None:
        others = {"lax": "lax", "PyTorch": best}
        if self.backend != "cpu":
            others = {"direct": "fusion_jax direct"} | others

        def mebibytes(name: str | None) -> float | None:
            size = memory.get(name) if name is not None and name in timings else None
            return None if size is None else size / 2**20

        row: Row = {"case": case.name, "pass": direction} | ratio_cells(timings, "fusion_jax", others)
        row["layout"] = best or "-"
        row |= {
            "MiB": mebibytes("fusion_jax"),
            "lax MiB": mebibytes("lax"),
            "PyTorch MiB": mebibytes(best),
        }
        self.rows.setdefault(case.family, []).append(row)
        if best is not None and "fusion_jax" in timings:
            self.seconds[case.name, direction] = timings["fusion_jax"].median, timings[best].median
        for peer, name in (("lax", "lax"), ("fusion_jax direct", "fusion_jax direct"), ("PyTorch", best)):
            if name is not None and name in timings and "fusion_jax" in timings:
                self._agree(case, peer, timings["fusion_jax"].result, timings[name].result)

    def _agree(self, case: Case, peer: str, found: Sequence[Any], reference: Sequence[Any]) -> None:
        """Keeps the largest difference of a family; a NaN stays."""
        for i, (result, wanted) in enumerate(zip(found, reference, strict=True)):
            key = case.family, "gradients" if i else "values", peer
            difference = relative_difference(result, wanted)
            kept, _ = self.worst.get(key, (-1.0, ""))
            if not (math.isnan(kept) or difference <= kept):
                self.worst[key] = difference, case.name

    def tables(self) -> list[Table]:
        ratio = "time / X: time of fusion_jax over that of X; below 1, fusion_jax is faster."
        memory = (
            "MiB: memory of one call beyond its arguments. JAX: outputs and temporary arrays of the compiled program, "
            "by its own analysis. PyTorch: peak resident memory of its process during a call over what it was before "
            "(on a GPU, of its allocator)."
        )
        layout = (
            "PyTorch: the quicker of both layouts, which is named. -: not run, because a call would take more than "
            f"{self.limit:g} s, or PyTorch is missing. A call of more than {ONCE:g} s is timed once."
        )
        notes = (ratio, memory, layout)
        return [Table(family, rows, notes if i == 0 else ()) for i, (family, rows) in enumerate(self.rows.items())]

    def agreements(self) -> list[Agreement]:
        allowed = TOLERANCES if self.backend == "cpu" else GPU_TOLERANCES
        return [
            Agreement(f"{family}, {what}, vs {peer}; worst: {case}", difference, allowed[what])
            for (family, what, peer), (difference, case) in self.worst.items()
        ]

    def aims(self, cases: Sequence[Case]) -> list[Aim]:
        """Those that `cases` count for; judged where all cases of an aim were measured."""
        found = []
        for what, key, direction, allowed in (*AIMS, *SUMMED_AIMS):
            names = [case.name for case in cases if case.aim == key]
            if not names:
                continue
            pairs = [self.seconds[name, direction] for name in names if (name, direction) in self.seconds]
            if (what, key, direction, allowed) in SUMMED_AIMS and pairs:
                ours, theirs = zip(*pairs, strict=True)
                ratios = [sum(ours) / sum(theirs)]
            else:
                ratios = [ours / theirs for ours, theirs in pairs]
            complete = self.backend == "cpu" and 0 < len(pairs) == len([case for case in CASES if case.aim == key])
            found.append(
                Aim(
                    f"{what}, {direction}: time / PyTorch at most {allowed:g}",
                    ", ".join(f"{ratio:.3g}" for ratio in ratios) or "-",
                    max(ratios) <= allowed if complete else None,
                )
            )
        return found


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--limit", type=float, default=4.0, help="longest call in seconds (default: %(default)s)")
    options.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name holds this text")
    options.add_argument("--batch", type=int, default=1, help="times the batch of every case (default: %(default)s)")
    options.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    cases = [case for case in (QUICK_CASES if chosen.quick else CASES) if chosen.only in case.name]
    if not cases:
        raise SystemExit(f"no case holds {chosen.only!r} in its name. There are:\n" + "\n".join(c.name for c in CASES))
    if chosen.batch != 1:
        cases = [
            case._replace(
                name=f"{case.name}, batch times {chosen.batch}", shape=(chosen.batch * case.shape[0], *case.shape[1:])
            )
            for case in cases
        ]
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    backend, rounds = jax.default_backend(), 2 if chosen.quick else chosen.rounds
    torch, missing = (None, ["PyTorch (left out by --no-torch)"]) if chosen.no_torch else find_torch(backend)
    header = describe_run(missing, rounds) | {"settings": settings}
    if torch is not None:
        header["PyTorch"] = f"{torch.version}, {torch.threads} threads, in a process of its own"
    if backend == "cpu":
        header["GPU"] = "not measured: JAX runs on cpu"
    bench, bystanders = Bench(torch, rounds, chosen.limit, backend), Bystanders()
    try:
        for case in cases:
            bench.measure(case)
    finally:
        if torch is not None:
            torch.close()
    header["other work"] = bystanders.note()
    aims = [] if chosen.quick or chosen.batch != 1 else bystanders.judge(bench.aims(cases))
    return finish(Results(header, bench.tables(), aims, bench.agreements()), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
