"""What a run says of its epochs: one line of JSON each, from which everything else is drawn."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax.records import write_text

__all__ = ["append_line", "keep_epochs", "read_lines", "write_tensorboard"]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line; numbers that JSON cannot hold (NaN and infinity) become null.

    A kill in between leaves part of a line, which `read_lines` passes over.

    Raises:
      TypeError: a value that JSON cannot hold.
    """
    plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, up to one that was cut short; none where there is no file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> append_line(path, {"epoch": 0, "loss": 0.5, "validation_auc": float("nan")})
      >>> read_lines(path)
      [{'epoch': 0, 'loss': 0.5, 'validation_auc': None}]
    """
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def keep_epochs(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Cut the file after the first `epochs` epochs, as a run that resumes there needs it.

    Returns:
      The lines that are left.
    """
    lines = [line for line in read_lines(path) if line["epoch"] < epochs]
    if path.exists():
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return lines


def write_tensorboard(metrics: str | Path, folder: str | Path) -> int:
    """Write the numbers of a `metrics.jsonl` as TensorBoard scalars over the epochs.

    Args:
      metrics: the file that `fit` writes.
      folder: for the event file; one that is there is replaced, so that no point appears twice.

    Returns:
      Number of epochs.

    Raises:
      ImportError: tensorboardX is not installed.
      FileNotFoundError: there is no such file.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard files need tensorboardX, which is not installed: pip install "fusion-jax[tensorboard]"'
        ) from error
    metrics, folder = Path(metrics), Path(folder)
    if not metrics.exists():
        raise FileNotFoundError(f"{metrics}: no such file; expected the metrics.jsonl in the folder of a run.")
    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    lines = read_lines(metrics)
    with SummaryWriter(str(folder)) as writer:
        for line in lines:
            for name, value in line.items():
                if name != "epoch" and isinstance(value, int | float):
                    writer.add_scalar(name, value, line["epoch"])
    return len(lines)
