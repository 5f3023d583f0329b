"""The `fusion-jax` command line: finds the command, parses its options, and turns bad input into one message.

A command is a module beside this one with a frozen dataclass `Config` and `run(config) -> exit code`. It imports what
is heavy inside `run`, so that help comes at once.
"""

import difflib
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

import tyro

from fusion_jax import __version__
from fusion_jax.cpu import tune_cpu

__all__ = ["enable_compilation_cache", "main"]

COMMANDS = {
    "cohort init": "write a first cohort.toml by looking at a table and its images, or at a scanner export",
    "cohort check": "integrity report of a cohort: what is missing, broken, doubled, leaking or implausible",
    "cohort show": "contact sheet of images with masks, boxes and clinical values, and histograms",
    "cohort table": "the study's Table 1 and the flow diagram of its patients",
    "cohort convert": "write a cohort as array_record shards, for random access at any size",
    "compare": "train and judge ways of fusing a cohort's sources: did fusion help, by how much, and why",
    "search": "search cells of a network that fuse a cohort's images, by gradient descent",
    "detect train": "train detectors of findings, with or without clinical data, on boxes, and judge them",
    "detect predict": "find what a trained detector knows in new images",
    "predict": "apply a trained model to new cases, after checking that they are of the kind it knows",
    "export": "write a trained model as weights, settings and a program that runs without this package",
    "evaluate": "judge predictions: metrics with intervals, paired tests, did fusion help",
    "evaluate-boxes": "judge detected boxes: COCO's AP and AR, IoBB, FROC, with intervals over patients",
    "quality": "measure how balanced a fusion of two or more data sources is",
}


def _listed(names: Iterable[str]) -> str:
    return "\n".join(f"  {name:<16}{COMMANDS[name]}" for name in names)


HELP = f"""\
usage: fusion-jax COMMAND [OPTIONS]

Which way of fusing medical images with clinical data works on a cohort, by how much, and why.
Research software, not a medical device.

commands:
{_listed(COMMANDS)}

options:
  -h, --help    show this message; `fusion-jax COMMAND --help` shows that of a command
  --version     show the version

environment:
  FUSION_JAX_CACHE    folder of compiled programs, or `off`; in the user's cache folder unless set
  FUSION_JAX_DEBUG    show where in the code an error was raised
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default the command line) asks for.

    Returns:
      Exit code: 0, or 2 after input that cannot be used, with one message on standard error.
    """
    words = sys.argv[1:] if argv is None else argv
    name, options = _split(words)
    if name in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if name == "--version":
        print(f"fusion-jax {__version__}")
        return 0
    group = [command for command in COMMANDS if command.startswith(f"{name} ")]
    if group and set(options) <= {"-h", "--help"}:
        print(f"usage: fusion-jax {name} COMMAND [OPTIONS]\n\ncommands:\n{_listed(group)}")
        return 0 if options else 2
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}" if close else ""
        found = f"unknown command {name!r}{hint}" if name else "no command"
        print(f"fusion-jax: {found}. `fusion-jax --help` lists the commands.", file=sys.stderr)
        return 2
    command = import_module(f"fusion_jax.commands.{re.sub('[ -]', '_', name)}")
    try:
        config = tyro.cli(command.Config, args=options, prog=f"fusion-jax {name}")
        tune_cpu()
        if getattr(config, "compilation_cache", False):
            enable_compilation_cache()
        return command.run(config)
    except SystemExit as stop:  # tyro has said what was wrong, or helped
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:  # ImportError: an optional package that is not installed
        if os.environ.get("FUSION_JAX_DEBUG"):
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}."
        print(f"fusion-jax {name}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fusion-jax {name}: interrupted.", file=sys.stderr)
        return 130


def _split(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The command, of one word or two, and its options."""
    if len(words) > 1 and any(name.startswith(f"{words[0]} ") for name in COMMANDS) and not words[1].startswith("-"):
        return f"{words[0]} {words[1]}", words[2:]
    return (words[0], words[1:]) if words else ("", [])


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs for the next run, in a folder that only this user can write to.

    The folder is `fusion_jax/xla` in the user's cache folder, or what the environment variable FUSION_JAX_CACHE
    names; `FUSION_JAX_CACHE=off` switches the cache off, and JAX_COMPILATION_CACHE_DIR, JAX's own, goes before.

    Returns:
      The folder; None if there is no cache.
    """
    import jax

    wanted = os.environ.get("FUSION_JAX_CACHE", "")
    if wanted.lower() in ("off", "0", "no"):
        return None
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return Path(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]
    folder = Path(wanted) if wanted else _user_cache() / "fusion_jax" / "xla"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
    except (OSError, ValueError) as error:
        logging.getLogger("fusion_jax").warning("no compilation cache, programs are compiled anew: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps only what took a second to compile; a command compiles hundreds of programs of less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _check_private(folder: Path) -> None:
    """Refuse a folder in which somebody else could leave a program for us to run."""
    found = folder.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise ValueError(
            f"{folder} belongs to or can be written by others; expected a folder of one's own. Change it "
            "(chmod 700), or name another in FUSION_JAX_CACHE."
        )


if __name__ == "__main__":
    sys.exit(main())
