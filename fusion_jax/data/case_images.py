"""Preprocessing of the images of a case when they are read: pipelines that may need other images of the same case."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from fusion_jax.data.cohort import Arrays, Cohort, Lazy, Source
from fusion_jax.data.image import Image
from fusion_jax.data.images.pipeline import Pipeline, Step, build_pipeline
from fusion_jax.data.moved_boxes import check_moves, moved_boxes, moves_pixels

__all__ = ["FILE_SUFFIX", "CaseImages", "check_needs", "in_memory", "preprocessed"]

FILE_SUFFIX = ".file"
"""After the name of a source in a step of another's pipeline: the image as it was read, before its own steps."""


class CaseImages:
    """Images of a case by name, after their pipelines; `NAME.file` before them.

    What another pipeline of the case asks for is kept until another case is read: a PET that is put onto the
    preprocessed CT does not read the CT again. Loader workers get this by pickle; each thread keeps a case of its own.
    """

    def __init__(
        self,
        read: Callable[["CaseImages", str, int], Image],
        pipelines: Mapping[str, Pipeline],
        kept: Collection[str] = (),
    ) -> None:
        """Make the door to the images of a cohort.

        Args:
          read: from this object, name and row to the image as it is stored; it may ask this object for others.
          pipelines: by name; a source without one is left as it was read.
          kept: further names that `read` asks for.
        """
        self.read = read
        self.pipelines = pipelines
        self.kept = frozenset(kept) | {name for pipeline in pipelines.values() for name in pipeline.needs}
        self._case = threading.local()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.read, self.pipelines, self.kept

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.read, self.pipelines, self.kept = state
        self._case = threading.local()

    def __call__(self, name: str, row: int) -> Image:
        """The image of a source.

        Raises:
          ValueError: a file or a step that fails; the message names it.
        """
        case = self._case
        if getattr(case, "row", None) != row:
            case.row, case.images = row, {}
        if name not in self.kept:
            return self._made(name, row)
        if name not in case.images:
            image = self._made(name, row)
            # Several readers get the same array: whoever writes into it would change the others' image.
            values = image.values.view()
            values.setflags(write=False)
            case.images[name] = image._replace(values=values)
        return case.images[name]

    def _made(self, name: str, row: int) -> Image:
        if name.endswith(FILE_SUFFIX):
            return self.read(self, name.removesuffix(FILE_SUFFIX), row)
        image = self(name + FILE_SUFFIX, row)
        if name not in self.pipelines:
            return image
        pipeline = self.pipelines[name]
        try:
            return pipeline(image, {other: functools.partial(self, other, row) for other in pipeline.needs})
        except (TypeError, ValueError) as error:
            step = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            raise ValueError(f"{step}{error}") from error


def check_needs(pipelines: Mapping[str, Pipeline], images: Collection[str], where: str) -> None:
    """Refuse pipelines that need an image there is not, or each other.

    Raises:
      ValueError: naming the sources.
    """
    for name, pipeline in pipelines.items():
        for other in pipeline.needs:
            if other.removesuffix(FILE_SUFFIX) not in images:
                raise ValueError(
                    f"{where}: preprocessing of {name} needs {other!r}; expected one of the images {', '.join(images)}."
                )

    def follow(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(
                f"{where}: preprocessing of {' needs '.join([*path, name])}: a circle. Write `{name}{FILE_SUFFIX}` for "
                "the image as it was read."
            )
        for other in pipelines[name].needs if name in pipelines else ():
            if not other.endswith(FILE_SUFFIX):
                follow(other, (*path, name))

    for name in pipelines:
        follow(name, ())


def preprocessed(cohort: Cohort, steps: Mapping[str, Iterable[Step]]) -> Cohort:
    """The cohort with its images preprocessed whenever they are read; boxes follow their image.

    Nothing is read now, unless an image with boxes is resized, flipped or cut: then its sizes are.

    Args:
      cohort: with image or mask sources.
      steps: by source, as in the `preprocess` list of a cohort file. `ct` in a step is the preprocessed image of
        another source, `ct.file` the image as this cohort has it.

    Returns:
      The cohort, its sources read case by case. `in_memory` keeps what comes out.

    Raises:
      ValueError: a source that is no image, an unknown operation or argument, or sources that need each other.

    Example:
      >>> cohort = Cohort.from_arrays({"xray": np.full((2, 8, 8, 1), 255.0)}, label=[0, 1])
      >>> steps = [{"op": "window", "low": 0, "high": 255}, {"op": "resize", "size": [4, 4]}]
      >>> small = preprocessed(cohort, {"xray": steps})
      >>> small.sources["xray"][0].shape, float(small.sources["xray"][0].max())
      ((4, 4, 1), 1.0)
    """
    images = [name for name, source in cohort.sources.items() if source.kind in ("image", "mask")]
    for name in steps:
        if name not in images:
            raise ValueError(f"{cohort.name}: {name!r} is no image; expected one of {', '.join(images) or 'none'}.")
    pipelines = {name: build_pipeline(list(own), where=f"{cohort.name}: {name}") for name, own in steps.items()}
    check_needs(pipelines, images, cohort.name)
    if cohort.boxes is not None:
        cohort = _with_moved_boxes(cohort, pipelines)
    made = CaseImages(functools.partial(_stored, cohort), pipelines)
    for name, pipeline in pipelines.items():
        source = cohort.sources[name]
        identity = _Identity(source, str(pipeline.steps))
        lazy = Lazy(functools.partial(made, name), np.arange(len(cohort)), source.kind, identity)
        cohort = cohort.with_source(name, lazy)
    return cohort


@dataclasses.dataclass(frozen=True, eq=False)
class _Identity:
    """What a source holds and what is done to it: hashes its data when first asked, once for all folds."""

    source: Source
    steps: str

    def __call__(self) -> str:
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        return f"{self.source.fingerprint()} {self.steps}"


def _with_moved_boxes(cohort: Cohort, pipelines: Mapping[str, Pipeline]) -> Cohort:
    """Boxes after the steps of their image, whose sizes are read for it where pixels move."""
    images = [name for name, source in cohort.sources.items() if source.kind == "image"]
    of = cohort.boxes_of or (images[0] if len(images) == 1 else "")
    moving = [name for name, pipeline in pipelines.items() if name in images and moves_pixels(pipeline.steps)]
    if not moving or (of and of not in moving):
        return cohort
    if not of:
        raise ValueError(
            f"{cohort.name}: boxes lie on one of {', '.join(images)}, and {moving[0]} is moved; expected `boxes_of` to "
            "name the image. Set it: `dataclasses.replace(cohort, boxes_of=...)`."
        )
    steps = pipelines[of].steps
    check_moves(steps, pipelines[of].where)
    plane = functools.partial(_plane, cohort, of)
    return dataclasses.replace(cohort, boxes=moved_boxes(cohort.boxes or (), steps, cohort.present[of], plane))


def _plane(cohort: Cohort, name: str, row: int) -> tuple[int, ...]:
    """Rows and columns of an image."""
    return cohort.image(name, row).values.shape[:2]


def in_memory(
    cohort: Cohort, names: Iterable[str] | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Cohort:
    """The cohort with its images read once and kept.

    Args:
      cohort: any cohort.
      names: sources to read; by default all images, masks and vectors.
      progress: called with the number of cases that were read and the number of all cases.

    Raises:
      ValueError: an image that cannot be read; the message names the case.
    """
    wanted = [name for name, source in cohort.sources.items() if source.kind != "table"] if names is None else [*names]
    read: dict[str, list[Image | None]] = {name: [] for name in wanted}
    for row in range(len(cohort)):
        for name in wanted:
            read[name].append(cohort.image(name, row) if cohort.present[name][row] else None)
        if progress is not None:
            progress(row + 1, len(cohort))
    for name, images in read.items():
        first = next((image for image in images if image is not None), None)
        if first is None:
            continue  # no case has it: nothing to keep
        empty = first._replace(values=first.values[:0])
        filled = [empty if image is None else image for image in images]
        source = Arrays(
            [image.values for image in filled],
            cohort.sources[name].kind,
            [image.spacing for image in filled],
            [image.affine for image in filled],
            first.unit,
        )
        cohort = cohort.with_source(name, source)
    return cohort


def _stored(cohort: Cohort, _: CaseImages, name: str, row: int) -> Image:
    return cohort.image(name, row)
