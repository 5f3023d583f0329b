"""Cases per second from memory, a folder of PNG files and array_record shards, beside a plain PyTorch DataLoader.

    python -m benchmarks.data_loading                    # 20,000 cases of 128 x 128, about 8 minutes
    python -m benchmarks.data_loading --cases 2000

Writes a synthetic cohort folder, converts it, and then reads one epoch after the other in turn: batches of 32,
shuffled, with two workers each. PyTorch decodes the same PNG files with Pillow in a `torch.utils.data.DataLoader`, in
an environment of its own (`make peers`, benchmarks/torch_loader.py). Last, a fresh process opens the folder, checks it
and reads an epoch, and says how much memory it took at most, workers included.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Picture

from benchmarks.timing import Agreement, Aim, Bystanders, Cell, Results, Row, Table, describe_run, finish, parser, tune
from benchmarks.torch_peer import PYTHON, ROOT
from fusion_jax.data.batches import Batches
from fusion_jax.data.case_images import in_memory
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.folder import open_cohort
from fusion_jax.data.integrity import check_cohort
from fusion_jax.data.shards import open_shards, write_shards

BATCH, WORKERS, SIZE = 32, 2, 128
MEMORY_AIM_GIB = 2.0

CONFIG = """\
name = "loading"
table = "cases.csv"
[ids]
case = "case_id"
patient = "case_id"
[roles]
input = ["age"]
label = "label"
[sources.image]
files = "images/{case_id}.png"
"""


def write_folder(folder: Path, cases: int) -> None:
    """A cohort folder of smooth 8-bit images, which compress as radiographs do."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    coarse = rng.integers(0, 256, (cases, 9, 9)).astype(np.uint8)
    ids = [f"case{number:06d}" for number in range(cases)]
    for case, values in zip(ids, coarse, strict=True):
        Picture.fromarray(values).resize((SIZE, SIZE), Picture.Resampling.BICUBIC).save(
            folder / "images" / f"{case}.png"
        )
    table = pd.DataFrame({"case_id": ids, "age": rng.integers(20, 90, cases), "label": rng.integers(0, 2, cases)})
    table.to_csv(folder / "cases.csv", index=False)
    (folder / "cohort.toml").write_text(CONFIG, encoding="utf-8")


def batches_of(cohort: Cohort) -> Batches:
    """The batches that every contender makes."""
    return Batches(cohort, np.arange(len(cohort)), BATCH, seed=(0,))


def difference(some: Batches, others: Batches) -> float:
    """Largest difference between the first batches, of images and of cases."""
    first, second = some.at(0), others.at(0)
    images = np.abs(first.inputs["image"].astype(float) - second.inputs["image"]).max()
    return float(max(images, np.abs(first.index - second.index).max()))


class Epochs:
    """Epoch after epoch of one cohort, by workers that stay as PyTorch's do."""

    def __init__(self, cohort: Cohort, workers: int) -> None:
        self.batches = batches_of(cohort)
        self.stream = self.batches.iterate(workers=workers)

    def __call__(self) -> tuple[int, float]:
        """Cases of one epoch, and the seconds it took."""
        start, seen = time.perf_counter(), 0
        for _ in range(self.batches.steps_per_epoch):
            seen += int(next(self.stream).valid.sum())
        return seen, time.perf_counter() - start


class TorchEpochs:
    """The same by PyTorch, in a process of its own that times itself."""

    def __init__(self, folder: Path) -> None:
        command = [str(PYTHON), "-m", "benchmarks.torch_loader", str(folder), str(BATCH), str(WORKERS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.version = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit("PyTorch's process ended; `make peers` sets its environment up.")
        return json.loads(line)

    def __call__(self) -> tuple[int, float]:
        """Cases of one epoch, and the seconds it took."""
        if self.process.stdin is not None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        seen, seconds = self._answer()
        return seen, seconds

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


class PeakMemory:
    """Largest memory of this process and all its children together, sampled while the block runs.

    Proportional set size: a page that several processes share counts once.
    """

    def __enter__(self) -> "PeakMemory":
        self.gib, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.gib = max(self.gib, sum(map(_proportional_kib, _tree(os.getpid()))) / 2**20)


def _tree(root: int) -> list[int]:
    """This process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text("ascii").rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _proportional_kib(process: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def use(folder: Path) -> dict[str, float]:
    """Open, check and iterate; seconds of each, and the largest memory of this process and its workers meanwhile."""
    marks, peaks = [time.perf_counter()], []

    def iterate() -> None:
        for _ in batches_of(open_cohort(folder)).epoch(0, workers=WORKERS):
            pass

    for work in (lambda: open_cohort(folder), lambda: check_cohort(folder), iterate):
        with PeakMemory() as peak:
            work()
        marks.append(time.perf_counter())
        peaks.append(peak.gib)
    opened, checked, iterated = np.diff(marks).tolist()
    seconds = {"open, s": opened, "check, s": checked, "epoch, s": iterated}
    return seconds | {"check, GiB": peaks[1], "epoch, GiB": peaks[2], "peak GiB": max(peaks)}


def main(arguments: list[str] | None = None) -> int:
    """Write, convert, race and measure memory."""
    options = parser(__doc__)
    options.add_argument("--cases", type=int, default=20_000, help="size of the cohort (default: %(default)s)")
    options.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    options.add_argument("--use", type=Path, help="open, check and iterate this folder, print JSON and end")
    options.set_defaults(rounds=3)
    chosen = options.parse_args(arguments)
    if chosen.use is not None:
        print(json.dumps(use(chosen.use)))
        return 0
    settings = tune(chosen)
    cases, rounds = (200, 2) if chosen.quick else (chosen.cases, chosen.rounds)
    missing = [] if PYTHON.exists() else ["PyTorch (run `make peers`)"]
    missing = ["PyTorch (left out by --no-torch)"] if chosen.no_torch else missing
    header: dict[str, Cell] = describe_run(missing, rounds) | {"settings": settings}
    bystanders = Bystanders()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "png"
        write_folder(folder, cases)
        start = time.perf_counter()
        cohort = open_cohort(folder)
        write_shards(cohort, Path(temporary) / "shards")
        converting = time.perf_counter() - start
        kept, shards = in_memory(cohort, ["image"]), open_shards(Path(temporary) / "shards")
        agreements = [
            Agreement(f"first batch, {name} and PNG folder", difference(batches_of(other), batches_of(cohort)), 0.0)
            for name, other in (("in memory", kept), ("array_record", shards))
        ]
        contenders: dict[str, Any] = {
            "in memory": Epochs(kept, 0),
            "PNG folder": Epochs(cohort, WORKERS),
            "array_record": Epochs(shards, WORKERS),
        }
        if not missing:
            contenders["PyTorch DataLoader, PNG"] = TorchEpochs(folder)
            header["PyTorch"] = contenders["PyTorch DataLoader, PNG"].version
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(rounds + 1):
            for name, epoch in contenders.items():
                seen, seconds = epoch()
                if seen != cases:
                    raise SystemExit(f"{name}: an epoch of {seen} cases; expected {cases}.")
                if round_:  # the first starts the workers
                    speeds[name].append(seen / seconds)
        if not missing:
            contenders["PyTorch DataLoader, PNG"].close()
        command = [sys.executable, "-m", "benchmarks.data_loading", "--use", str(folder)]
        memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    header["other work"] = bystanders.note()
    torch = np.median(speeds["PyTorch DataLoader, PNG"]) if not missing else None
    rows: list[Row] = [
        {
            "from": name,
            "workers": 0 if name == "in memory" else WORKERS,
            "cases/s": float(np.median(found)),
            "slowest": min(found),
            "fastest": max(found),
            "/ PyTorch": None if torch is None else float(np.median(found) / torch),
        }
        for name, found in speeds.items()
    ]
    shape = f"{cases:,} cases of {SIZE} x {SIZE}, 8 bit, batches of {BATCH}, shuffled"
    memory_note = "Memory: of this process and its workers, a shared page counted once."
    tables = [
        Table("Reading an epoch", rows, (f"{shape}. Converting to shards took {converting:.0f} s.",)),
        Table("One cohort in a fresh process", [{"cases": cases, **memory}], (memory_note,)),
    ]
    aim = Aim(
        f"open, check and iterate {cases:,} cases within {MEMORY_AIM_GIB:g} GiB",
        f"{memory['peak GiB']:.2f} GiB",
        memory["peak GiB"] <= MEMORY_AIM_GIB,
    )
    return finish(Results(header, tables, [] if chosen.quick else [aim], agreements), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
