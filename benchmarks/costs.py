"""What a compiled step costs: seconds to make it, memory planned and taken, seconds to run it."""

import time
from typing import Any, Protocol

import jax

from benchmarks.torch_peer import peak_growth

__all__ = ["NOTES", "CompiledStep", "step_cost"]

NOTES = (
    "Planned: temporary arrays, by the compiler. Measured: resident memory at the peak of a step over that before.",
    "Parameters, the moments of the optimiser and the inputs are there before.",
)
"""What stands under a table of such cells."""


class CompiledStep(Protocol):
    """A step that hands its state on; `seconds` are those of making it."""

    seconds: dict[str, float]

    def compile(self) -> Any: ...

    def __call__(self) -> Any: ...


def step_cost(step: CompiledStep) -> dict[str, Any]:
    """Cells of a table; the first call, which may load code, is not timed."""
    analysis = step.compile().memory_analysis()
    step()
    start = time.perf_counter()
    jax.block_until_ready(step())
    seconds = time.perf_counter() - start
    peak = peak_growth(lambda: jax.block_until_ready(step())) if jax.default_backend() == "cpu" else None
    planned = None if analysis is None else analysis.temp_size_in_bytes
    return {
        **{f"{name}, s": value for name, value in step.seconds.items()},
        "step, s": seconds,
        "planned GiB": None if planned is None else planned / 2**30,
        "measured GiB": None if peak is None else peak / 2**30,
    }
