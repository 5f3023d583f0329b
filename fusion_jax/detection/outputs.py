"""What a detector says of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fusion_jax.arrays import Array, Batch, Key, Model, Variables
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.detection.postprocessing import Detections
from fusion_jax.detection.proposals import Proposals

__all__ = ["Detector", "DetectorOutputs", "Stages"]


class DetectorOutputs(NamedTuple):
    """Losses while training, detections otherwise; float32.

    Attributes:
      losses: by the names of `DetectorConfig.loss_names`, each a number; empty where the model is not training.
      detections: of every image, each field `(b, n, ...)`; None while training.
      masks: probabilities of each detection's own class in its box, `(b, n, 28, 28)`; None while training and where
        the detector has no masks.
      features: of every source, `(b, f)`: the pooled feature map of the `image`, and of `clinical` the pooled map or
        else the vector; zeros where the source is absent.
    """

    losses: dict[str, Array]
    detections: Detections | None
    masks: Array | None
    features: dict[str, Array]


class Stages(NamedTuple):
    """What happens inside a detector, to be looked at.

    Attributes:
      proposals: of every image, each field `(b, p, ...)`. With one stage, the best candidates before suppression.
      detections, masks: as in `DetectorOutputs`.
      maps: the feature maps "image", "clinical" (where there is one) and "fused" of the finest level, `(b, h, w, c)`.
      spatialised: the clinical vector as an image, `(b, h, w, 3)`; None where none is made.
    """

    proposals: Proposals
    detections: Detections
    masks: Array | None
    maps: dict[str, Array]
    spatialised: Array | None


class Detector(NamedTuple):
    """A detector as pure functions; nothing is jitted but `model.init`.

    Attributes:
      config: what it is made of.
      model: `init(key, batch)`, and `apply(variables, batch, *, train, key=None) -> (DetectorOutputs, variables)`. Only
        `train=True` reads the target, and needs a key.
      losses: `losses(variables, batch, key)`, those of training without moving statistics, for validation curves. Batch
        norm takes its running moments.
      stages: `stages(variables, batch) -> Stages`; reads no target.
    """

    config: DetectorConfig
    model: Model
    losses: Callable[[Variables, Batch, Key], dict[str, Array]]
    stages: Callable[[Variables, Batch], Any]
