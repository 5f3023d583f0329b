"""How fast are non-maximum suppression and RoIAlign next to plain NumPy, JAX and PyTorch?

    make peers                                            # once: PyTorch, in an environment of its own
    python -m benchmarks.detection_kernels                # every case, about a minute on 2 cores
    python -m benchmarks.detection_kernels --quick        # tiny shapes, two rounds

The peers are what one writes by hand. Suppression: in NumPy a loop over the boxes kept; in PyTorch sort, matrix of
overlaps and a choice among the rows, by a loop or all at once until nothing changes. RoIAlign: `map_coordinates` of
JAX, or `grid_sample` of PyTorch, and a mean. PyTorch is timed inside a process of its own. "forward + backward" returns
the output and the gradient of the features, with the cotangent an argument.
"""

import sys
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from benchmarks.timing import (
    Agreement,
    Aim,
    Bystanders,
    Contender,
    Program,
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
from benchmarks.torch_peer import LAYOUTS, PAUSE, TorchPeer, find_torch, quickest
from fusion_jax.ops.nms import nms
from fusion_jax.ops.roi_align import roi_align

Array = np.ndarray

THRESHOLD = 0.7
SAMPLES = 2  # along each axis of a cell
FORWARD, BACKWARD = "forward", "forward + backward"
NMS_AIM, ROI_AIM = 0.3, 0.72
VALUES, GRADIENTS = 2e-5, 1e-4
ONCE = 2.0
"""Seconds; a slower call is timed once."""


class Suppression(NamedTuple):
    """`images` times `boxes` -> `size`."""

    images: int
    boxes: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.images} x ({self.boxes:,} -> {self.size:,})"


class Alignment(NamedTuple):
    """`boxes` on a square map of `extent` cells and `channels`, 7 x 7 each."""

    boxes: int
    extent: int
    channels: int
    scale: float = 1 / 8
    size: tuple[int, int] = (7, 7)

    @property
    def name(self) -> str:
        return f"{self.boxes} boxes on {self.extent} x {self.extent} x {self.channels}"


SUPPRESSIONS = (Suppression(1, 2000, 1000), Suppression(8, 1000, 300))
ALIGNMENTS = (Alignment(512, 16, 64), Alignment(512, 64, 256))
QUICK_SUPPRESSIONS = (Suppression(2, 40, 12),)
QUICK_ALIGNMENTS = (Alignment(6, 8, 3),)


def proposals(case: Suppression) -> tuple[Array, Array]:
    """Boxes and scores as a region proposal network gives them: half around forty objects, half anywhere."""
    draw = np.random.default_rng(zlib.crc32(case.name.encode()))
    shape = (case.images, case.boxes)
    objects = draw.uniform((0, 0, 24, 24), (512, 512, 160, 160), (case.images, 40, 4))
    chosen = np.take_along_axis(objects, draw.integers(40, size=shape)[..., None], axis=1)
    spread = np.where(draw.random(shape) < 0.5, 0.08, 4.0)[..., None]
    centres = chosen[..., :2] + spread * chosen[..., 2:] * draw.uniform(-1, 1, (*shape, 2))
    sides = chosen[..., 2:] * np.exp(np.minimum(spread, 0.5) * draw.uniform(-1, 1, (*shape, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1)
    return boxes.astype(np.float32), draw.random(shape).astype(np.float32)


def regions(case: Alignment) -> tuple[Array, Array, Array]:
    """Features, boxes within the image, and a cotangent."""
    draw = np.random.default_rng(zlib.crc32(case.name.encode()))
    image = case.extent / case.scale
    low = draw.uniform(0, 0.8 * image, (case.boxes, 2))
    boxes = np.concatenate([low, low + (image - low) * draw.uniform(0.05, 1, low.shape)], axis=1)
    features = draw.standard_normal((case.extent, case.extent, case.channels))
    cotangent = draw.standard_normal((case.boxes, *case.size, case.channels))
    return features.astype(np.float32), boxes.astype(np.float32), cotangent.astype(np.float32)


# Plain peers.


def numpy_nms(boxes: Array, scores: Array, size: int) -> Array:
    """Rows kept, by falling score, -1 where there are no more; images one by one."""
    kept = np.full((len(boxes), size), -1)
    for image, (corners, of_image) in enumerate(zip(boxes, scores, strict=True)):
        x0, y0, x1, y1 = corners.T
        areas = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
        order = np.argsort(-of_image, kind="stable")
        for place in range(size):
            if not order.size:
                break
            best, order = order[0], order[1:]
            kept[image, place] = best
            width = np.minimum(x1[best], x1[order]) - np.maximum(x0[best], x0[order])
            height = np.minimum(y1[best], y1[order]) - np.maximum(y0[best], y0[order])
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            order = order[shared <= np.float32(THRESHOLD) * (areas[best] + areas[order] - shared)]
    return kept


def plain_roi_align(features: jax.Array, boxes: jax.Array, *, size: tuple[int, int], scale: float) -> jax.Array:
    """`map_coordinates` at every sample, then the mean of each cell; boxes lie within the map."""

    def samples(low: jax.Array, high: jax.Array, cells: int) -> jax.Array:
        steps = (jnp.arange(cells * SAMPLES) + 0.5) / (cells * SAMPLES)
        return low[:, None] + jnp.maximum(high - low, 1)[:, None] * steps

    x0, y0, x1, y1 = (boxes * scale).T
    ys, xs = samples(y0, y1, size[0])[:, :, None], samples(x0, x1, size[1])[:, None, :]
    read = partial(map_coordinates, coordinates=jnp.broadcast_arrays(ys, xs), order=1, mode="nearest")
    sampled = jax.vmap(read, in_axes=-1, out_axes=-1)(features)
    cells = sampled.reshape(len(boxes), size[0], SAMPLES, size[1], SAMPLES, features.shape[-1])
    return jnp.mean(cells, axis=(2, 4))


# Tables.


class Bench:
    """Races the contenders of every case, and collects their rows."""

    def __init__(self, torch: TorchPeer | None, rounds: int) -> None:
        self.torch, self.rounds = torch, rounds
        self.rows: dict[str, list[Row]] = {"nms": [], "roi_align": []}
        self.agreements: list[Agreement] = []

    def suppress(self, case: Suppression) -> None:
        boxes, scores = proposals(case)

        def kept(boxes: jax.Array, scores: jax.Array) -> jax.Array:
            found = jax.vmap(partial(nms, threshold=THRESHOLD, size=case.size))(boxes, scores)
            return jnp.where(found.valid, found.rows, -1)

        program = Program(kept, (jnp.asarray(boxes), jnp.asarray(scores)))
        by_hand = Contender("NumPy", "float32", lambda: (numpy_nms(boxes, scores, case.size),))
        options = {
            name: {"formulation": name, "threshold": THRESHOLD, "size": case.size} for name in ("loop", "at once")
        }
        arrays = {"boxes": boxes, "scores": scores}
        row, results = self._race("nms", program, by_hand, arrays, options)
        rows = np.asarray(results["fusion_jax"][0])
        of_image = float(np.count_nonzero(rows >= 0, axis=1).mean())
        self.rows["nms"].append({"case": case.name, "boxes kept": of_image} | row)
        for peer, found in results.items():
            if peer != "fusion_jax":
                difference = relative_difference(rows, found[0])
                self.agreements.append(Agreement(f"rows kept, {case.name}, vs {peer}", difference, 0.0))

    def align(self, case: Alignment) -> None:
        features, boxes, cotangent = regions(case)
        library = partial(roi_align, size=case.size, scale=case.scale, sampling_ratio=SAMPLES)
        plain = partial(plain_roi_align, size=case.size, scale=case.scale)
        geometry = {"size": case.size, "scale": case.scale, "sampling_ratio": SAMPLES}
        options = {layout: geometry | {"layout": layout} for layout in LAYOUTS}
        for direction in (FORWARD, BACKWARD):
            arrays, pulled = {"features": features, "boxes": boxes}, None
            if direction == BACKWARD:
                arrays["cotangent"], pulled = cotangent, jnp.asarray(cotangent)
            inputs, constants = (jnp.asarray(features),), (jnp.asarray(boxes),)
            program = Program(library, inputs, pulled, constants)
            by_hand = Contender("map_coordinates", "float32", Program(plain, inputs, pulled, constants))
            row, results = self._race("roi_align", program, by_hand, arrays, options)
            self.rows["roi_align"].append({"case": case.name, "pass": direction} | row)
            for peer, reference in results.items():
                if peer == "fusion_jax":
                    continue
                for i, (found, wanted) in enumerate(zip(results["fusion_jax"], reference, strict=True)):
                    what, allowed = ("gradient", GRADIENTS) if i else ("values", VALUES)
                    name = f"RoIAlign {what}, {case.name}, {direction}, vs {peer}"
                    self.agreements.append(Agreement(name, relative_difference(found, wanted), allowed))

    def _race(
        self,
        work: str,
        program: Program,
        by_hand: Contender,
        arrays: Mapping[str, Array],
        options: Mapping[str, dict[str, Any]],
    ) -> tuple[Row, dict[str, tuple[Any, ...]]]:
        """The cells of the library, its peer and the quickest PyTorch, and their results."""
        contenders = [Contender("fusion_jax", "float32", program), by_hand]
        with ExitStack() as stack:
            peers = {}
            if self.torch is not None:
                peers = {
                    name: stack.enter_context(self.torch.case(work, arrays, **chosen))
                    for name, chosen in options.items()
                }
            contenders += [peer.contender(name) for name, peer in peers.items()]
            timings = race(contenders, self.rounds, pause=PAUSE, once=ONCE)
            best = quickest(timings, list(peers))
            size = None if best is None else peers[best].peak_bytes()
        row = ratio_cells(timings, "fusion_jax", {by_hand.name: by_hand.name, "PyTorch": best})
        ours = program.peak_bytes()
        row |= {
            "which PyTorch": best or "-",
            "MiB": None if ours is None else ours / 2**20,
            "PyTorch MiB": None if size is None else size / 2**20,
        }
        labels = {"fusion_jax": "fusion_jax", by_hand.name: by_hand.name} | ({} if best is None else {"PyTorch": best})
        return row, {label: timings[name].result for label, name in labels.items()}

    def tables(self) -> list[Table]:
        ratio = "time / X: time of fusion_jax over that of X; below 1, fusion_jax is faster."
        weak = (
            "No claim is made against torchvision's compiled operators, which were not measured: the peer is plain "
            "PyTorch."
        )
        memory = (
            "MiB: memory of one call beyond its arguments. JAX: outputs and temporary arrays of the compiled program, "
            "by its own analysis. PyTorch: peak resident memory of its process during a call over what it was before."
        )
        choice = (
            f"Overlap {THRESHOLD:g}. NumPy, on one core: a loop over the boxes kept. PyTorch: the quicker of a loop "
            "over the rows of the matrix of overlaps and all rows at once."
        )
        sampling = (
            f"{SAMPLES} x {SAMPLES} samples a cell. map_coordinates: JAX's own. PyTorch: `grid_sample`, the quicker of "
            f"both layouts. A call of more than {ONCE:g} s is timed once."
        )
        return [
            Table("Non-maximum suppression", self.rows["nms"], (ratio, choice, memory, weak)),
            Table("RoIAlign, 7 x 7", self.rows["roi_align"], (sampling, weak)),
        ]

    def aims(self) -> list[Aim]:
        found = []
        for what, table, allowed in (("suppression", "nms", NMS_AIM), ("RoIAlign", "roi_align", ROI_AIM)):
            cells = [row["time / PyTorch"] for row in self.rows[table]]
            ratios = [float(cell) for cell in cells if cell is not None]
            measured = ", ".join(f"{ratio:.3g}" for ratio in ratios) or "-"
            holds = max(ratios) <= allowed if ratios else None
            found.append(Aim(f"{what}: time / PyTorch at most {allowed:g}", measured, holds))
        return found


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    chosen = options.parse_args(arguments)
    settings = tune(chosen)
    # A compilation that comes from a cache would make first calls look quick.
    jax.config.update("jax_enable_compilation_cache", False)
    backend, rounds = jax.default_backend(), 2 if chosen.quick else chosen.rounds
    torch, missing = (None, ["PyTorch (left out by --no-torch)"]) if chosen.no_torch else find_torch(backend)
    header = describe_run(missing, rounds) | {"settings": settings}
    if torch is not None:
        header["PyTorch"] = f"{torch.version}, {torch.threads} threads, in a process of its own"
    bench, bystanders = Bench(torch, rounds), Bystanders()
    try:
        for case in QUICK_SUPPRESSIONS if chosen.quick else SUPPRESSIONS:
            bench.suppress(case)
        for case in QUICK_ALIGNMENTS if chosen.quick else ALIGNMENTS:
            bench.align(case)
    finally:
        if torch is not None:
            torch.close()
    header["other work"] = bystanders.note()
    aims = [] if chosen.quick or backend != "cpu" else bystanders.judge(bench.aims())
    return finish(Results(header, bench.tables(), aims, bench.agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
