"""The strict world every test lives in.

Two CPU devices, so that nothing depends on there being one; rank promotion and implicit dtype promotion raise;
annotations of `fusion_jax` are checked at run time. Warnings are errors (setup.cfg).
"""

import os
from collections.abc import Iterator

os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax
import jaxtyping
import pytest

from tests.helpers import IN_CHECKOUT, ROOT

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Before anything imports fusion_jax: the hook instruments modules while they load.
jaxtyping.install_import_hook("fusion_jax", "tests.helpers.check_types")

hypothesis.settings.register_profile(
    "fusion_jax",
    derandomize=True,  # the same examples everywhere: a red test is red again
    deadline=None,  # the first example compiles
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fusion_jax")

TREE_ONLY = ("experiments", "benchmarks")
"""Folders under tests/ whose subject is not in the wheel."""

PEERS_ONLY = ("detection/torch_detection.py",)
"""Scripts that .venv-peers runs, and that import its PyTorch at once."""

collect_ignore = [*PEERS_ONLY, *(() if IN_CHECKOUT else TREE_ONLY)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `checkout` what only the tree can run: doctests, and tests of experiments and benchmarks."""
    folders = [ROOT / "tests" / name for name in TREE_ONLY]
    for item in items:
        if isinstance(item, pytest.DoctestItem) or any(folder in item.path.parents for folder in folders):
            item.add_marker(pytest.mark.checkout)


@pytest.fixture(scope="session")
def key() -> jax.Array:
    """A typed PRNG key; split it or fold into it, never draw from it twice."""
    return jax.random.key(20230901)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 in JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations unchecked, as users run the library: its own errors come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
