"""A plain PyTorch DataLoader over a folder of PNG files, as the peer of `benchmarks.data_loading`.

    .venv-peers/bin/python -m benchmarks.torch_loader FOLDER BATCH WORKERS

Prints the version of PyTorch, then for every line of its standard input the cases and seconds of one epoch, as JSON.
Never imports JAX.
"""

import csv
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture


class Folder:
    """Images and labels of `cases.csv` by index: what a DataLoader asks of a data set."""

    def __init__(self, folder: Path) -> None:
        with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.cases = [(folder / "images" / f"{row['case_id']}.png", int(row["label"])) for row in rows]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.cases[index]
        with Picture.open(path) as picture:
            return np.array(picture)[..., None], label


def main(folder: str, batch: str, workers: str) -> None:
    """Serve epochs until the input ends."""
    torch: Any = importlib.import_module("torch")
    loader = torch.utils.data.DataLoader(
        Folder(Path(folder)), batch_size=int(batch), shuffle=True, num_workers=int(workers), persistent_workers=True
    )
    print(json.dumps(torch.__version__), flush=True)
    for _ in sys.stdin:
        start, seen = time.perf_counter(), 0
        for _, labels in loader:
            seen += len(labels)
        print(json.dumps([seen, time.perf_counter() - start]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
