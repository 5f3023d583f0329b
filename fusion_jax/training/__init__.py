"""Training: a step, the loop that runs it, what it leaves behind, and many runs of it."""

from fusion_jax.training.checkpoint import restore_best
from fusion_jax.training.cross_validation import CrossValidation, Task, cross_validate, merge_predictions
from fusion_jax.training.devices import data_mesh
from fusion_jax.training.executors import dask_executor, in_process, spawned
from fusion_jax.training.fit import BatchSource, FitResult, fit
from fusion_jax.training.inner import InnerSplit, inner_split
from fusion_jax.training.keys import named_key, run_key
from fusion_jax.training.logs import write_tensorboard
from fusion_jax.training.optimiser import Optimiser, Plateau, make_optimiser, scale_learning_rate
from fusion_jax.training.progress import Progress
from fusion_jax.training.scalars import DivergedError
from fusion_jax.training.state import FitState, Objective, Step, initial_state, make_step
from fusion_jax.training.tuning import nested_choice
from fusion_jax.training.vmapped import ManyFits, fit_many, predict_many

__all__ = [
    "BatchSource",
    "CrossValidation",
    "DivergedError",
    "FitResult",
    "FitState",
    "InnerSplit",
    "ManyFits",
    "Objective",
    "Optimiser",
    "Plateau",
    "Progress",
    "Step",
    "Task",
    "cross_validate",
    "dask_executor",
    "data_mesh",
    "fit",
    "fit_many",
    "in_process",
    "initial_state",
    "inner_split",
    "make_optimiser",
    "make_step",
    "merge_predictions",
    "named_key",
    "nested_choice",
    "predict_many",
    "restore_best",
    "run_key",
    "scale_learning_rate",
    "spawned",
    "write_tensorboard",
]
