"""What the experiments have in common on the command line."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fusion_jax.commands.main import enable_compilation_cache
from fusion_jax.cpu import tune_cpu
from fusion_jax.training.cross_validation import TaskProgress

__all__ = ["Told", "Weights", "of_trainings", "pretrained", "progress_bars", "run_from_command_line"]

C = TypeVar("C")

Told = Callable[[str, int, int], None]
"""`told(what, done, total)` moves the bar of one kind of work, which appears on the first call."""


@runtime_checkable
class Weights(Protocol):
    """The settings of an experiment that say where its trunk comes from."""

    @property
    def preset(self) -> str: ...
    @property
    def init(self) -> str | None: ...
    @property
    def weights(self) -> Path | None: ...
    @property
    def weights_sha256(self) -> str | None: ...
    @property
    def weights_origin(self) -> str: ...


def run_from_command_line(
    config: type[C], run: Callable[[C], Any], description: str | None, *, logged: int = logging.ERROR
) -> None:
    """Read the settings from the command line, prepare the processor, and run."""
    logging.basicConfig(level=logged)
    chosen = tyro.cli(config, description=description)
    tune_cpu()
    enable_compilation_cache()
    run(chosen)


@contextmanager
def progress_bars(console: Console) -> Generator[Told]:
    """Bars for several kinds of work, one below the other, that stay on the screen."""
    columns = (SpinnerColumn(), TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bars: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield told


def of_trainings(told: Told, what: str) -> Callable[[TaskProgress], None]:
    """The bar of a cross-validation."""
    return lambda progress: told(what, progress.done + progress.failed, progress.total)


def pretrained(config: Weights, published: str) -> dict[str, Any] | None:
    """Weights of the trunk, as recipes take them; None where there are none.

    Args:
      config: of the experiment.
      published: the file that the published recipe starts from, in words.

    Raises:
      ValueError: the published recipe without weights and without saying so.
    """
    if config.weights is None:
        if config.preset == "paper" and config.init != "random":
            raise ValueError(
                "the published trunk starts from ImageNet weights. Give them: --weights FILE --weights-sha256 HEX, "
                f"such as {published}; or say --init random."
            )
        return None
    if config.weights_sha256 is None:
        raise ValueError(f"--weights {config.weights} without --weights-sha256; give the SHA-256 that it should have.")
    return {"file": str(config.weights), "sha256": config.weights_sha256, "origin": config.weights_origin}
