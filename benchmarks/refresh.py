"""Run every benchmark and put its tables into RESULTS.md.

    python -m benchmarks.refresh                  # runs all scripts
    python -m benchmarks.refresh --rounds 11      # options go to every script

Each script runs in a process of its own; seven of them want PyTorch (`make peers`) and say so where it is missing. Run
this on a machine that does nothing else; the results say what its load was.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import read_results, render_results

SCRIPTS = (
    "density",
    "gamma_sweep",
    "conv",
    "resnet",
    "tabular_folds",
    "supernet",
    "detection_kernels",
    "detection",
    "data_loading",
    "bootstrap",
    "box_evaluation",
)
RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- measured: written by benchmarks.refresh -->", "<!-- end of measured -->"
HEADING = "## benchmarks."


def measure(script: str, options: list[str]) -> str:
    """The tables of one script."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{script}", "--out", str(out), *options], check=False)
        if done.returncode:
            raise SystemExit(f"benchmarks.{script} ended with exit code {done.returncode}; its tables are unchanged.")
        return render_results(read_results(out))


def sections(text: str) -> dict[str, str]:
    """The measured tables of a page, by script."""
    found = re.split(rf"^{re.escape(HEADING)}(\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: tables.strip() + "\n" for name, tables in zip(found[::2], found[1::2], strict=True)}


def main(arguments: list[str]) -> None:
    scripts = [a for a in arguments if a in SCRIPTS] or list(SCRIPTS)
    options = [a for a in arguments if a not in SCRIPTS]
    for script in scripts:
        tables = measure(script, options)
        # Written after every script, and read again: what was measured is not lost if the next one fails.
        before, _, rest = RESULTS.read_text(encoding="utf-8").partition(BEGIN)
        block, _, after = rest.partition(END)
        if not after:
            raise SystemExit(f"{RESULTS.name} has lost the line {BEGIN!r} or {END!r}.")
        known = sections(block) | {script: tables}
        measured = "\n".join(f"{HEADING}{name}\n\n{known[name]}" for name in SCRIPTS if name in known)
        RESULTS.write_text(f"{before}{BEGIN}\n\n{measured}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
