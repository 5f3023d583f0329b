"""What several tests share: `from tests.helpers import assert_close`."""

import configparser
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `tests`: the checkout, or the empty folder in which the wheel is tested."""

IN_CHECKOUT = (ROOT / "fusion_jax").is_dir()

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Checks annotations at run time; an int is welcome where a float is, as type checkers have it."""


def relative_error(actual: Any, reference: Any) -> float:
    """Largest error over the largest reference value, in float64; the one tolerance this project uses."""
    actual, reference = np.asarray(actual), np.asarray(reference)
    dtype = np.complex128 if np.iscomplexobj(actual) or np.iscomplexobj(reference) else np.float64
    actual, reference = actual.astype(dtype), reference.astype(dtype)
    assert actual.shape == reference.shape, f"shape {actual.shape}, expected {reference.shape}"
    if reference.size == 0:
        return 0.0
    if not np.isfinite(reference).all():
        finite = np.isfinite(reference)
        np.testing.assert_array_equal(actual[~finite], reference[~finite])
        return relative_error(actual[finite], reference[finite])
    error, scale = np.abs(actual - reference).max(), np.abs(reference).max()
    if error == 0:
        return 0.0
    return float(error / scale) if scale > 0 else float("inf")


def assert_close(actual: Any, reference: Any, rtol: float = 1e-5) -> None:
    """Every array of `actual` lies within `rtol` of `reference`, relative to that reference's largest value.

    Both are arrays or pytrees of one structure. NaN and infinities must stand in the same places. A reference that is
    zero everywhere asks for exact zeros: a relative tolerance has no meaning there.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(actual)
    expected, expected_structure = jax.tree_util.tree_flatten(reference)
    assert structure == expected_structure, f"structure {structure}, expected {expected_structure}"
    for (path, value), wanted in zip(found, expected, strict=True):
        error = relative_error(value, wanted)
        where = jax.tree_util.keystr(path) or "array"
        assert error <= rtol, f"{where}: relative error {error:.3g} exceeds {rtol:.3g}"


def declared_requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """Runtime requirements and extras of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")

    def parse(lines: str) -> list[Requirement]:
        return [Requirement(line) for line in lines.split("\n") if line.strip()]

    extras = config["options.extras_require"]
    return parse(config["options"]["install_requires"]), {name: parse(extras[name]) for name in extras}


def real_data(name: str) -> Path:
    """Folder of a real data set in `FUSION_JAX_DATA`; the test is skipped where it is not at hand."""
    folder = Path(os.environ.get("FUSION_JAX_DATA") or ROOT.parent / "shared" / "data") / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FUSION_JAX_DATA to the folder that holds {name}")
    return folder
