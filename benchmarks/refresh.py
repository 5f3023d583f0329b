"""Run every benchmark and put its tables into RESULTS.md.

    python -m benchmarks.refresh                  # runs all scripts
    python -m benchmarks.refresh --rounds 11      # options go to every script

Each script runs in a process of its own; two of them want PyTorch (`make peers`) and say so where it is missing. Run
this on a machine that does nothing else; the results say what its load was.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import read_results, render_results

SCRIPTS = ("density", "gamma_sweep", "conv", "detection_kernels")
RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- measured: written by benchmarks.refresh -->", "<!-- end of measured -->"


def measured(options: list[str]) -> str:
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            out = Path(folder) / f"{script}.json"
            done = subprocess.run(
                [sys.executable, "-m", f"benchmarks.{script}", "--out", str(out), *options], check=False
            )
            if done.returncode:
                raise SystemExit(
                    f"benchmarks.{script} ended with exit code {done.returncode}; RESULTS.md is unchanged."
                )
            sections.append(f"## benchmarks.{script}\n\n{render_results(read_results(out))}")
    return "\n".join(sections)


def main(options: list[str]) -> None:
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{RESULTS.name} has lost the line {BEGIN!r} or {END!r}.")
    tables = measured(options)
    RESULTS.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
