"""One file per command of `fusion-jax`: a frozen dataclass `Config`, parsed by tyro, and `run(config) -> exit code`.

Nothing is imported here: a command is loaded when it is asked for.
"""

__all__: list[str] = []
