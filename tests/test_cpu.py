"""What `tune_cpu` does to a process, each time in a fresh one."""

import json
import os
import subprocess
import sys

import pytest

MEMORY = """
import json, resource, sys
import numpy as np
from fusion_jax import tune_cpu

if sys.argv[1] == "tuned":
    assert tune_cpu()["memory"]
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(16 * 2**20, np.float32)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults))
"""

CONVOLUTION = """
import json, os, sys
import jax
import jax.numpy as jnp
from fusion_jax import tune_cpu

if sys.argv[1] == "late":
    jnp.ones(3)
made = tune_cpu()["convolutions"] if sys.argv[1] != "untuned" else None
compiled = jax.jit(lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
).lower(jnp.ones((2, 16, 16, 32)), jnp.ones((3, 3, 32, 32))).compile()
print(json.dumps([made, "__ynn_fusion" in compiled.as_text(), os.environ.get("XLA_FLAGS", "")]))
"""


def run(script, *arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | variables
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is that of the GNU C library")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    # The kernel may hand out larger pages: only that a tuned process asks once, and an untuned one every time.
    first, *later = run(MEMORY, "tuned")
    assert max(later) < first / 4
    assert first <= 2 * pages
    untuned = run(MEMORY, "untuned")
    assert min(untuned) > 4 * max(later)


def test_convolutions_leave_the_library_that_computes_them_on_one_core():
    made, single, flags = run(CONVOLUTION, "tuned")
    assert made
    assert not single
    assert "ynn_fusion_type" in flags
    # Where this fails, XLA has changed its mind and the setting can go.
    assert run(CONVOLUTION, "untuned")[1]


def test_coming_too_late_is_said():
    made, single, flags = run(CONVOLUTION, "late")
    assert not made
    assert single
    assert flags == ""


def test_flags_of_the_user_stay():
    wanted = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    made, _, flags = run(CONVOLUTION, "tuned", XLA_FLAGS=wanted)
    assert not made
    assert flags == wanted
    other = "--xla_cpu_enable_fast_math=false"
    made, single, flags = run(CONVOLUTION, "tuned", XLA_FLAGS=other)
    assert made
    assert not single
    assert flags.startswith(other + " --xla_cpu")


def test_an_untried_jaxlib_gets_no_flag_that_it_may_not_know(monkeypatch):
    from fusion_jax import cpu

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", None)
    for version in ("0.9.2", "0.13.0", "1.0"):
        monkeypatch.setattr("importlib.metadata.version", lambda _name, found=version: found)
        assert not cpu._convolutions_on_all_cores()
        assert os.environ["XLA_FLAGS"] == ""
