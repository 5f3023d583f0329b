"""From the `preprocess` list of a cohort file to a function of an image: checked when it is read, run case by case.

A step names an operation and gives its arguments; an argument that is another image is given by the name of a source of
the same case:

    preprocess = [
      {op = "crop_to_mask", mask = "tumour", margin_mm = 20},
      {op = "onto", reference = "ct", spacing = 4},
      {op = "window", low = -160, high = 240},
    ]

What there is (`fusion_jax.data.images` has the functions):

==================================================  =================================================================
values
==================================================  =================================================================
window(low, high)                                   `low` to 0, `high` to 1, clipped beyond
scale_suv(maximum=20)                               SUV 0 to `maximum` becomes [0, 1]
clip_percentiles(mask, low=0, high=100)             values beyond two percentiles of this image
min_max()                                           smallest value to 0, largest to 1
standardise(mask)                                   mean 0 and standard deviation 1 within this image
normalise_channels(mean, std)                       a fixed mean and standard deviation a channel
repeat_channels(count=3)                            a grey image as colour
**place**
resample(spacing, method, antialias=True)           mm, the same field of view
resize(size, antialias=True)                        voxels, the same field of view
onto(reference, spacing, method, antialias, fill)   the grid of another image
crop_or_pad(size, mask, centre, fill)               a window of fixed size, about a mask if one is given
crop_to_mask(mask, margin_mm=0)                     the part around a mask
flip(axis)                                          the opposite order along `d`, `h` or `w`
**slices and series**
largest_slice(mask)                                 the axial slice with most of the mask
adjacent_slices(mask, count=3)                      neighbouring slices as channels
mip(axis="d")                                       maximum-intensity projection
peak_minus_background(background=0, peak)           enhancement of a dynamic series
breast(side, split="valley")                        one breast of a projection of both
align_phases(others, masks, size, margin=0)         phases aligned by their lesions, as channels
stack_channels(others)                              images on one grid as channels
==================================================  =================================================================

To add one, write a function as `fusion_jax.data.images.operation` describes and add a row to `OPERATIONS` and here.
"""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from fusion_jax.data.image import Image
from fusion_jax.data.images.geometry import crop_or_pad, crop_to_mask, flip, onto, resample, resize
from fusion_jax.data.images.intensity import (
    clip_percentiles,
    min_max,
    normalise_channels,
    repeat_channels,
    scale_suv,
    standardise,
    window,
)
from fusion_jax.data.images.operation import arguments, check_arguments, expected
from fusion_jax.data.images.phases import align_phases, stack_channels
from fusion_jax.data.images.slices import (
    adjacent_slices,
    breast,
    largest_slice,
    maximum_intensity_projection,
    peak_minus_background,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OPERATIONS",
    "Pipeline",
    "build_pipeline",
    "chest_radiograph",
    "ct_body",
    "ct_liver_slice",
    "ct_three_phases",
    "pet_suv",
    "subtraction_mip",
]

Step = Mapping[str, Any]

OPERATIONS: Mapping[str, Callable[..., Image]] = {
    "adjacent_slices": adjacent_slices,
    "align_phases": align_phases,
    "breast": breast,
    "clip_percentiles": clip_percentiles,
    "crop_or_pad": crop_or_pad,
    "crop_to_mask": crop_to_mask,
    "flip": flip,
    "largest_slice": largest_slice,
    "min_max": min_max,
    "mip": maximum_intensity_projection,
    "normalise_channels": normalise_channels,
    "onto": onto,
    "peak_minus_background": peak_minus_background,
    "repeat_channels": repeat_channels,
    "resample": resample,
    "resize": resize,
    "scale_suv": scale_suv,
    "stack_channels": stack_channels,
    "standardise": standardise,
    "window": window,
}
"""Name in a cohort file to operation."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the red, green and blue of ImageNet in [0, 1], as every published pre-trained network expects them."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Steps that `build_pipeline` checked; can be pickled, compared and written as JSON (`pipeline.steps`).

    Attributes:
      steps: the operations with their arguments, plain data as in the cohort file.
      where: the place of the list, for messages.
      fitted: always False: no operation learns from other cases, so a pipeline cannot carry anything from one fold to
        another.
    """

    steps: tuple[dict[str, Any], ...]
    where: str = dataclasses.field(default="preprocess", compare=False)
    fitted: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the other sources that the steps read, each once, in the order of first use."""
        return tuple(dict.fromkeys(name for step in self.steps for name in _sources(step)))

    def __call__(self, image: Image, others: Mapping[str, Callable[[], Image]] | None = None) -> Image:
        """Run all steps on one image.

        Args:
          image: of this source, as read.
          others: further sources of the same case; each is read when a step first needs it, and once.

        Raises:
          ValueError: a source is not there, or an operation refuses the image; a note names the step.
        """
        read: dict[str, Image] = {}
        for number, step in enumerate(self.steps):
            try:
                for name in _sources(step):
                    if name not in read:
                        read[name] = _read(name, others or {})
                image = _run(step, image, read)
            except (TypeError, ValueError) as error:
                error.add_note(f"{self.where}[{number}]: {step['op']}")
                raise
        return image


def build_pipeline(steps: Any, *, where: str = "preprocess") -> Pipeline:
    """Check a list of steps and make the pipeline; no image is read.

    Args:
      steps: tables with `op` and the arguments of that operation, as a TOML parser returns them.
      where: the place of the list in a file, `cohort.toml: sources.ct.preprocess`; messages add `[1]` for the second
        step.

    Raises:
      ValueError: an operation or argument that does not exist, is missing, of the wrong type or out of bounds; the
        message has the place and what was expected.

    Example:
      >>> pipeline = build_pipeline([{"op": "onto", "reference": "ct"}, {"op": "scale_suv"}])
      >>> pipeline.needs, pipeline.fitted
      (('ct',), False)
      >>> build_pipeline([{"op": "windw", "low": 0, "high": 1}], where="cohort.toml: sources.ct.preprocess")
      Traceback (most recent call last):
      ...
      ValueError: cohort.toml: sources.ct.preprocess[0]: no operation 'windw'; did you mean 'window'?
    """
    if not isinstance(steps, list | tuple):
        raise ValueError(f"{where}: {steps!r} is no list; expected steps such as [{{op = 'min_max'}}].")
    return Pipeline(tuple(_checked(step, f"{where}[{number}]") for number, step in enumerate(steps)), where)


def subtraction_mip(*, size: int = 224) -> list[dict[str, Any]]:
    """Steps for the projection of one breast's enhancement: top 0.5 % clipped, resized, [0, 1].

    Split and subtraction come before, where the vendor's software did not do them: `peak_minus_background`, `mip` and
    `breast`.

    References:
      Holste et al. 2021; specs/breast_mri_fusion.md, 2.2.
    """
    return [{"op": "clip_percentiles", "high": 99.5}, {"op": "resize", "size": size}, {"op": "min_max"}]


def ct_liver_slice(mask: str, *, size: int = 224) -> list[dict[str, Any]]:
    """Steps for a liver lesion on one CT phase: its box in its largest slice, −70 to 180 HU, three equal channels.

    Args:
      mask: name of the source that holds the lesion.
      size: rows and columns.

    References:
      Window and normalisation are the specification's, the paper states none: specs/hcc_fusion.md, 2.
    """
    return [
        {"op": "align_phases", "others": [], "masks": [mask], "size": size},
        {"op": "window", "low": -70, "high": 180},
        {"op": "repeat_channels", "count": 3},
        _imagenet(),
    ]


def ct_three_phases(others: Sequence[str], masks: Sequence[str], *, size: int = 224) -> list[dict[str, Any]]:
    """Steps for a liver lesion on three CT phases as channels, aligned by the centres of the boxes.

    Args:
      others: names of the second and third source; the first is the one that these steps belong to.
      masks: names of the sources that hold the lesion in each phase, the first phase first.
      size: rows and columns.

    References:
      Wang W. et al. 2020; specs/hcc_fusion.md, 2.
    """
    return [
        {"op": "align_phases", "others": list(others), "masks": list(masks), "size": size},
        {"op": "window", "low": -70, "high": 180},
        _imagenet(),
    ]


def pet_suv() -> list[dict[str, Any]]:
    """Steps for PET: SUV 0 to 20 becomes [0, 1]; specs/mm_nas.md, 2."""
    return [{"op": "scale_suv", "maximum": 20.0}]


def ct_body() -> list[dict[str, Any]]:
    """Steps for the CT of PET-CT: −200 to 300 HU becomes [0, 1]; specs/mm_nas.md, 2."""
    return [{"op": "window", "low": -200, "high": 300}]


def chest_radiograph(*, size: int = 512, white: float = 255) -> list[dict[str, Any]]:
    """Steps for a grey chest radiograph: `size` squared without keeping the aspect, three channels, ImageNet's scale.

    Args:
      size: rows and columns.
      white: grey value that becomes 1 before normalisation; 255 of 8-bit files, 65535 of 16-bit ones.

    References:
      specs/mdf_net.md, 2.
    """
    return [
        {"op": "resize", "size": size},
        {"op": "window", "low": 0, "high": white},
        {"op": "repeat_channels", "count": 3},
        _imagenet(),
    ]


def _imagenet() -> dict[str, Any]:
    return {"op": "normalise_channels", "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def _checked(step: Any, where: str) -> dict[str, Any]:
    """A copy of one step, if its operation exists and takes these arguments."""
    if not isinstance(step, Mapping) or not isinstance(step.get("op"), str):
        raise ValueError(f"{where}: {step!r} names no operation; expected a table such as {{op = 'min_max'}}.")
    name = step["op"]
    if name not in OPERATIONS:
        raise ValueError(f"{where}: no operation {name!r}; {_hint(name, OPERATIONS)}")
    function = OPERATIONS[name]
    images, plain = _image_parameters(function), arguments(function)
    given = {key: value for key, value in step.items() if key != "op"}
    for argument in given:
        if argument not in images and argument not in plain:
            raise ValueError(f"{where}: {name} has no argument {argument!r}; {_hint(argument, [*images, *plain])}")
    for argument, parameter in (images | plain).items():
        if parameter.default is inspect.Parameter.empty and argument not in given:
            raise ValueError(f"{where}: {name} needs the argument {argument!r}; expected {_kind(function, argument)}.")
    for argument in images.keys() & given.keys():
        value, several = given[argument], _several(images[argument])
        names = value if several and isinstance(value, list | tuple) else [value]
        if isinstance(value, str) == several or not all(isinstance(word, str) and word for word in names):
            raise ValueError(f"{where}: {name}: {argument} is {value!r}; expected {_kind(function, argument)}.")
    try:
        check_arguments(function, {argument: value for argument, value in given.items() if argument in plain})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return json.loads(json.dumps(dict(step)))  # a copy that shares no list with the caller


def _image_parameters(function: Callable[..., Image]) -> dict[str, inspect.Parameter]:
    """Parameters of an operation that are further images: those before `*`, save the first."""
    parameters = inspect.signature(function).parameters
    return {key: value for key, value in list(parameters.items())[1:] if key not in arguments(function)}


def _several(parameter: inspect.Parameter) -> bool:
    return parameter.annotation == Sequence[Image]


def _kind(function: Callable[..., Image], argument: str) -> str:
    if argument in arguments(function):
        return expected(function, argument)
    several = _several(_image_parameters(function)[argument])
    return "a list of names of sources" if several else "the name of a source"


def _hint(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there is {', '.join(map(repr, known))}." if known else "it takes none."


def _sources(step: Step) -> list[str]:
    """Names of the sources that a step reads."""
    names: list[str] = []
    for argument in _image_parameters(OPERATIONS[step["op"]]):
        value = step.get(argument, [])
        names.extend([value] if isinstance(value, str) else value)
    return names


def _read(name: str, others: Mapping[str, Callable[[], Image]]) -> Image:
    if name not in others:
        raise ValueError(
            f"source {name!r} is needed and not there; the case has {', '.join(map(repr, others)) or 'no other'}."
        )
    return others[name]()


def _run(step: Step, image: Image, read: Mapping[str, Image]) -> Image:
    function = OPERATIONS[step["op"]]
    images = _image_parameters(function)
    given: dict[str, Any] = {}
    for argument, value in step.items():
        if argument in images:
            given[argument] = read[value] if isinstance(value, str) else [read[name] for name in value]
        elif argument != "op":
            given[argument] = tuple(value) if isinstance(value, list) else value
    return function(image, **given)
