"""PyTorch as a peer: the server that runs it in an environment of its own, and the client that times it there.

    .venv-peers/bin/python -m benchmarks.torch_peer      # the server; scripts start it through `find_torch`

The server reads one JSON object a line from its standard input and answers each with one line. Arrays travel in `.npz`
files, channels last, as the JAX side has them; they are brought into PyTorch's layout before anything is timed. Calls
are timed inside the server, so that neither pipes nor files are part of a time. The server never imports JAX, and the
client never imports PyTorch.
"""

import contextlib
import ctypes
import ctypes.util
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.torch_detection import detection
from benchmarks.torch_resnet import resnet_fusion
from benchmarks.torch_supernet import supernet_step
from benchmarks.torch_tabular import tabular_folds

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
LAYOUTS = ("contiguous", "channels_last")
PAUSE = 0.02
"""Seconds between contenders, after which OpenMP's threads have stopped spinning for more work."""

Array = np.ndarray
Options = dict[str, Any]


# Client.


class TorchCase:
    """One piece of work that the server has been given."""

    def __init__(self, peer: "TorchPeer", number: int) -> None:
        self.peer, self.number = peer, number

    def seconds(self, repeats: int) -> float:
        """Does the work so many times, and returns the seconds that all of it took."""
        return self.peer.ask(do="time", case=self.number, repeats=repeats)["seconds"]

    def result(self) -> tuple[Array, ...]:
        """Results of one call in the layout of the JAX side: outputs, then gradients of the inputs."""
        file = self.peer.folder / f"result_{self.number}.npz"
        self.peer.ask(do="result", case=self.number, file=str(file))
        found = _read_arrays(file)
        file.unlink()
        return tuple(found[name] for name in sorted(found))

    def peak_bytes(self) -> int | None:
        """How much one call adds to the memory of the server at its peak; None where the system does not tell."""
        return self.peer.ask(do="memory", case=self.number)["bytes"]

    def contender(self, name: str) -> Any:
        """A `timing.Contender` that the server times."""
        # Imports JAX, which the environment of the server does not have.
        from benchmarks.timing import Contender

        return Contender(name, "float32", self.result, clock=self.seconds)


class TorchPeer:
    """A running server, and the folder in which files are exchanged with it."""

    def __init__(self, python: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torch_peer_")
        self.folder = Path(self._folder.name)
        self._numbers = itertools.count()
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.torch_peer"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            greeting = self.ask(do="greet")
        except RuntimeError:
            self.close()
            raise
        self.version: str = greeting["version"]
        self.threads: int = greeting["threads"]
        self.sees_gpu: bool = greeting["gpu"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """The server's answer to one request."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the PyTorch server has no pipes.")
        # Of a server that has ended: its exit code says more than the broken pipe.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the PyTorch server ended with exit code {self._process.wait()} at {request}.")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the PyTorch server could not do {request}: {answer['error']}")
        return answer

    @contextlib.contextmanager
    def case(self, work: str, arrays: Mapping[str, Array], **options: Any) -> Generator[TorchCase]:
        """`work` of the server's `WORKS` on these arrays; forgotten at the end of the `with` block."""
        number = next(self._numbers)
        file = self.folder / f"inputs_{number}.npz"
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
        self.ask(do="set up", case=number, work=work, file=str(file), options=options)
        file.unlink()
        try:
            yield TorchCase(self, number)
        finally:
            self.ask(do="forget", case=number)

    def close(self) -> None:
        """Ends the server and removes the folder."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def find_torch(backend: str = "cpu", python: Path = PYTHON) -> tuple[TorchPeer | None, list[str]]:
    """A server, or None and the reason why there is none, as `find_peers` has it."""
    if not python.exists():
        return None, [f"PyTorch (no {python.parents[1].name}; `make peers` sets it up)"]
    try:
        peer = TorchPeer(python)
    except RuntimeError as error:
        return None, [f"PyTorch ({error})"]
    if backend != "cpu" and not peer.sees_gpu:
        peer.close()
        return None, [f"PyTorch {peer.version} (sees no GPU, and JAX runs on {backend})"]
    return peer, []


def quickest(timings: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Which of those contenders that ran took least; several layouts or formulations of one peer count as one."""
    ran = [name for name in names if name in timings]
    return min(ran, key=lambda name: timings[name].median, default=None)


def _read_arrays(file: Path | str) -> dict[str, Array]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


# Server.


class Work(NamedTuple):
    """What is timed, and how its result looks on the JAX side."""

    call: Callable[[], Any]
    export: Callable[[Any], list[Array]]


class Server:
    """Answers requests; `torch` is the module."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        torch.set_num_threads(os.cpu_count() or 1)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.works: dict[int, Work] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        what = request["do"]
        if what == "greet":
            threads, version = self.torch.get_num_threads(), self.torch.__version__
            return {"version": version, "threads": threads, "gpu": self.device == "cuda"}
        case = request["case"]
        if what == "set up":
            make = WORKS[request["work"]]
            self.works[case] = make(self.torch, self.device, _read_arrays(request["file"]), request["options"])
        elif what == "time":
            return {"seconds": self._seconds(self.works[case], request["repeats"])}
        elif what == "result":
            found = self.works[case].export(self.works[case].call())
            np.savez(request["file"], allow_pickle=False, **{f"{i:02d}": array for i, array in enumerate(found)})
        elif what == "memory":
            return {"bytes": self._peak_bytes(self.works[case])}
        elif what == "forget":
            del self.works[case]
        else:
            raise ValueError(f"unknown request {what!r}.")
        return {}

    def _seconds(self, work: Work, repeats: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work.call()
            self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _peak_bytes(self, work: Work) -> int | None:
        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
            before = self.torch.cuda.memory_allocated()
            work.call()
            return self.torch.cuda.max_memory_allocated() - before
        return peak_growth(work.call)


def peak_growth(call: Callable[[], Any]) -> int | None:
    """Peak of the resident memory during one call over the resident memory before it, in bytes.

    Memory that was freed but kept by the C library goes back to the system first: a call that reuses it would seem to
    need none.
    """
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    library = ctypes.util.find_library("c")
    if not (status.exists() and peak.exists() and library):
        return None
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        peak.write_text("5", encoding="ascii")
    except OSError:
        return None
    before = _status_bytes(status, "VmRSS")
    call()
    return max(0, _status_bytes(status, "VmHWM") - before)


def _status_bytes(status: Path, name: str) -> int:
    [line] = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])


def channels_first(torch: Any, device: str, array: Array, layout: str) -> Any:
    """A channels-last array as PyTorch has it: channels after the batch, memory in one of `LAYOUTS`."""
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1))).to(device)
    return tensor.to(memory_format=_memory_format(torch, array.ndim, layout))


def channels_last(tensor: Any) -> Array:
    return np.moveaxis(tensor.detach().cpu().numpy(), 1, -1)


def to_weight(torch: Any, device: str, kernel: Array, layout: str) -> Any:
    """(*window, c // groups, out) as (out, c // groups, *window)."""
    axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    tensor = torch.from_numpy(np.ascontiguousarray(kernel.transpose(axes))).to(device)
    return tensor.to(memory_format=_memory_format(torch, kernel.ndim, layout))


def from_weight(tensor: Any) -> Array:
    array = tensor.detach().cpu().numpy()
    return array.transpose((*range(2, array.ndim), 1, 0))


def _memory_format(torch: Any, axes: int, layout: str) -> Any:
    if layout == "contiguous":
        return torch.contiguous_format
    return {4: torch.channels_last, 5: torch.channels_last_3d}[axes]


def differentiable(
    torch: Any,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    cotangent: Any,
    exports: Sequence[Callable[[Any], Array]],
) -> Work:
    """`function` alone, or where there is a cotangent with the gradients of `inputs`; `exports` one a result."""
    if cotangent is not None:
        for tensor in inputs:
            tensor.requires_grad_(True)

    def call() -> tuple[Any, ...]:
        if cotangent is None:
            with torch.inference_mode():
                return (function(*inputs),)
        output = function(*inputs)
        return (output.detach(), *torch.autograd.grad(output, inputs, cotangent))

    return Work(call, lambda results: [export(result) for export, result in zip(exports, results, strict=False)])


def _windowed(
    torch: Any, device: str, arrays: dict[str, Array], options: Options, function: Callable[..., Any]
) -> Work:
    """A function of an image `x` and weights `kernel...`, in their order."""
    layout = options["layout"]
    kernels = [arrays[name] for name in sorted(arrays) if name.startswith("kernel")]
    inputs = [
        channels_first(torch, device, arrays["x"], layout),
        *(to_weight(torch, device, kernel, layout) for kernel in kernels),
    ]
    cotangent = channels_first(torch, device, arrays["cotangent"], layout) if "cotangent" in arrays else None
    exports = [channels_last, channels_last, *(from_weight for _ in kernels)]
    return differentiable(torch, function, inputs, cotangent, exports)


def conv(torch: Any, device: str, arrays: dict[str, Array], options: Options) -> Work:
    """Convolution; a second kernel of one position follows the first as a convolution of its own."""
    nn = torch.nn.functional
    convolve = {4: nn.conv2d, 5: nn.conv3d}[arrays["x"].ndim]
    keywords = {name: options[name] for name in ("stride", "padding", "dilation", "groups")}

    def function(x: Any, kernel: Any, *pointwise: Any) -> Any:
        y = convolve(x, kernel, **keywords)
        for kernel in pointwise:
            y = convolve(y, kernel)
        return y

    return _windowed(torch, device, arrays, options, function)


def conv_transpose(torch: Any, device: str, arrays: dict[str, Array], options: Options) -> Work:
    """Transposed convolution, whose weight PyTorch stores as (in, out, *window); mirrored if `options` say so."""
    nn, layout = torch.nn.functional, options["layout"]
    convolve = {4: nn.conv_transpose2d, 5: nn.conv_transpose3d}[arrays["x"].ndim]
    window = tuple(range(arrays["kernel"].ndim - 2))

    def mirrored(kernel: Array) -> Array:
        return np.flip(kernel, window) if options["mirrored"] else kernel

    def weight(kernel: Array) -> Any:
        return to_weight(torch, device, mirrored(kernel).swapaxes(-1, -2), layout)

    inputs = [channels_first(torch, device, arrays["x"], layout), weight(arrays["kernel"])]
    cotangent = channels_first(torch, device, arrays["cotangent"], layout) if "cotangent" in arrays else None
    exports = [channels_last, channels_last, lambda tensor: mirrored(from_weight(tensor).swapaxes(-1, -2))]
    return differentiable(torch, lambda x, w: convolve(x, w, stride=options["stride"]), inputs, cotangent, exports)


def max_pool(torch: Any, device: str, arrays: dict[str, Array], options: Options) -> Work:
    nn = torch.nn.functional
    pool = {4: nn.max_pool2d, 5: nn.max_pool3d}[arrays["x"].ndim]
    keywords = {name: options[name] for name in ("stride", "padding")}
    return _windowed(torch, device, arrays, options, lambda x: pool(x, options["window"], **keywords))


def average_pool(torch: Any, device: str, arrays: dict[str, Array], options: Options) -> Work:
    nn = torch.nn.functional
    pool = {4: nn.avg_pool2d, 5: nn.avg_pool3d}[arrays["x"].ndim]
    keywords = {name: options[name] for name in ("stride", "padding", "count_include_pad")}
    return _windowed(torch, device, arrays, options, lambda x: pool(x, options["window"], **keywords))


def _overlapping(torch: Any, boxes: Any, threshold: float) -> Any:
    """Whether the intersection over union of every box (n, p, 4) with every other exceeds `threshold`, (n, p, p)."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)

    def shared(low: Any, high: Any) -> Any:
        above, below = torch.minimum(high[:, :, None], high[:, None]), torch.maximum(low[:, :, None], low[:, None])
        return above.sub_(below).clamp_(min=0)

    both = shared(x0, x1).mul_(shared(y0, y1))
    areas = (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)
    # Without a division: it costs more than the rest.
    return both > (areas[:, :, None] + areas[:, None]).sub_(both).mul_(threshold)


def nms(torch: Any, device: str, arrays: dict[str, Array], options: Options) -> Work:
    """Sort, matrix of overlaps, then the boxes kept: box by box ("loop") or all at once until nothing changes.

    The result is the indices of the boxes kept, by falling score, and -1 where there are fewer than `size`.
    """
    boxes = torch.from_numpy(arrays["boxes"]).to(device)
    scores = torch.from_numpy(arrays["scores"]).to(device)
    threshold, size = options["threshold"], options["size"]

    def kept_by_loop(above: Any) -> Any:
        rows = []
        for matrix in above:
            keep = torch.ones(len(matrix), dtype=torch.bool, device=device)
            found = 0
            for i, row in enumerate(matrix.unbind()):
                if keep[i]:
                    keep &= ~row
                    found += 1
                    if found == size:
                        keep[i + 1 :] = False
                        break
            rows.append(keep)
        return torch.stack(rows)

    def kept_at_once(above: Any) -> Any:
        # A box is kept if no kept box above it overlaps; from "all are kept", the first k are right after k turns.
        as_numbers = above.float()
        keep = torch.ones(above.shape[:2], dtype=torch.bool, device=device)
        while True:
            suppressed = torch.bmm(keep[:, None].float(), as_numbers)[:, 0] > 0
            if torch.equal(keep, ~suppressed):
                return keep
            keep = ~suppressed

    choose = {"loop": kept_by_loop, "at once": kept_at_once}[options["formulation"]]

    def call() -> Any:
        with torch.inference_mode():
            order = scores.argsort(dim=1, descending=True, stable=True)
            by_score = torch.gather(boxes, 1, order[..., None].expand(-1, -1, 4))
            keep = choose(_overlapping(torch, by_score, threshold).triu_(diagonal=1))
            # Kept boxes first, each group in the order of its scores.
            places = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :size]
            return torch.where(torch.gather(keep, 1, places), torch.gather(order, 1, places), -1)

    return Work(call, lambda kept: [kept.cpu().numpy()])


def roi_align(torch: Any, device: str, arrays: dict[str, Array], options: Options) -> Work:
    """RoIAlign by `grid_sample`: samples at four points (for ratio 2) of every cell, then their mean.

    Boxes lie within the map, where sampling with borders repeated equals the definition.
    """
    nn, size, ratio = torch.nn.functional, options["size"], options["sampling_ratio"]
    height, width = arrays["features"].shape[:2]
    features = channels_first(torch, device, arrays["features"][None], options["layout"])
    boxes = torch.from_numpy(arrays["boxes"]).to(device)
    # On a CPU `grid_sample` shares its work by the batch: as many views of the map as there are threads.
    groups = math.gcd(len(boxes), torch.get_num_threads())

    def points(low: Any, high: Any, cells: int, extent: int) -> Any:
        steps = (torch.arange(cells * ratio, device=device, dtype=low.dtype) + 0.5) / (cells * ratio)
        places = low[:, None] + (high - low)[:, None] * steps
        return places * (2 / (extent - 1)) - 1

    def function(maps: Any) -> Any:
        x0, y0, x1, y1 = (boxes * options["scale"]).unbind(dim=1)
        # Without `aligned`, torchvision's rule: a box is at least one pixel wide.
        ys = points(y0, y0 + (y1 - y0).clamp(min=1), size[0], height)
        xs = points(x0, x0 + (x1 - x0).clamp(min=1), size[1], width)
        rows, columns = ys.shape[1], xs.shape[1]
        grid = torch.stack(
            [xs[:, None, :].expand(-1, rows, -1), ys[:, :, None].expand(-1, -1, columns)], dim=-1
        ).reshape(groups, -1, columns, 2)
        views = maps.expand(groups, -1, -1, -1)
        sampled = nn.grid_sample(views, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return nn.avg_pool2d(sampled, ratio)

    def output(tensor: Any) -> Array:
        array = channels_last(tensor)
        return array.reshape(len(boxes), *size, array.shape[-1])

    cotangent = None
    if "cotangent" in arrays:
        given = arrays["cotangent"]
        flat = given.reshape(groups, -1, size[1], given.shape[-1])
        cotangent = channels_first(torch, device, flat, options["layout"])
    return differentiable(torch, function, [features], cotangent, [output, lambda tensor: channels_last(tensor)[0]])


WORKS: dict[str, Callable[[Any, str, dict[str, Array], Options], Work]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "average_pool": average_pool,
    "nms": nms,
    "roi_align": roi_align,
    "detection": lambda *arguments: Work(*detection(*arguments)),
    "resnet_fusion": lambda *arguments: Work(*resnet_fusion(*arguments)),
    "supernet_step": lambda *arguments: Work(*supernet_step(*arguments)),
    "tabular_folds": lambda *arguments: Work(*tabular_folds(*arguments)),
}


def serve() -> None:
    """Answers requests until the input ends."""
    # By name: the environment in which types are checked has no PyTorch.
    server = Server(importlib.import_module("torch"))
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
