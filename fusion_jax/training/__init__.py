"""Training: a step, the loop that runs it, what it leaves behind, and many runs of it."""

from fusion_jax.training.checkpoint import restore_best
from fusion_jax.training.devices import data_mesh
from fusion_jax.training.fit import BatchSource, FitResult, fit
from fusion_jax.training.keys import named_key, run_key
from fusion_jax.training.logs import write_tensorboard
from fusion_jax.training.optimiser import Optimiser, Plateau, make_optimiser, scale_learning_rate
from fusion_jax.training.progress import Progress
from fusion_jax.training.scalars import DivergedError
from fusion_jax.training.state import FitState, Objective, Step, initial_state, make_step

__all__ = [
    "BatchSource",
    "DivergedError",
    "FitResult",
    "FitState",
    "Objective",
    "Optimiser",
    "Plateau",
    "Progress",
    "Step",
    "data_mesh",
    "fit",
    "initial_state",
    "make_optimiser",
    "make_step",
    "named_key",
    "restore_best",
    "run_key",
    "scale_learning_rate",
    "write_tensorboard",
]
