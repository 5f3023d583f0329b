"""Where tasks run: in this process, in spawned processes, or on a Dask cluster.

Each function here returns a factory, not an executor: one dead worker breaks a whole standard pool, which is then built
anew by calling the factory again.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeAlias

__all__ = ["ExecutorFactory", "InProcess", "SpawnedPool", "dask_executor", "in_process", "spawned"]

ExecutorFactory: TypeAlias = Callable[[], Executor]

THREADS = (
    "NPROC",  # of XLA on a CPU
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",  # of scikit-learn's joblib
)
"""Variables that say how many threads a process computes with; read once, when the libraries are loaded."""


class InProcess(Executor):
    """Runs every task at once where it is submitted: slow tasks can be followed in a debugger, and Ctrl-C stops one.

    Example:
      >>> InProcess().submit(max, 2, 3).result()
      3
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run `fn` and return its finished future."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # whatever it is belongs to who asks for the result
            future.set_exception(error)
        return future


class SpawnedPool(ProcessPoolExecutor):
    """Processes that start from nothing, with variables of their own environment, and can be ended at once.

    Args:
      workers: number of processes.
      environment: variables of the workers, over those of this process.
    """

    def __init__(self, workers: int, environment: Mapping[str, str]) -> None:
        # A forked copy of a process in which JAX has started threads stands still at its first computation.
        super().__init__(workers, mp_context=multiprocessing.get_context("spawn"))
        self.environment = dict(environment)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Submit `fn`; a worker that starts for it has the pool's environment."""
        with _environment(self.environment):
            return super().submit(fn, *args, **kwargs)

    def end(self) -> None:
        """Stop without waiting for what runs."""
        # No public way before Python 3.14; the exit of this process would otherwise wait for tasks of hours.
        running = list((self._processes or {}).values())
        self.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        for process in running:
            process.join(10)


def in_process() -> Executor:
    """Factory of executors that run tasks in this process, one after the other."""
    return InProcess()


def spawned(workers: int, *, threads: int | None = None) -> ExecutorFactory:
    """Factory of pools of spawned processes on this machine.

    JAX's persistent compilation cache, if this process has one, is shared by the workers.

    Args:
      workers: number of processes.
      threads: that each computes with; by default its share of the usable cores, so that workers do not fight.

    Raises:
      ValueError: less than one worker or thread.

    Example:
      >>> with spawned(1)() as pool:  # doctest: +SKIP
      ...     pool.submit(max, 2, 3).result()
      3
    """
    if workers < 1 or (threads is not None and threads < 1):
        raise ValueError(f"{workers} workers with {threads} threads; expected at least one of each.")
    share = threads or max(1, usable_cores() // workers)

    def factory() -> Executor:
        return SpawnedPool(workers, _worker_environment(share))

    return factory


def dask_executor(
    address: str | None = None, *, workers: int | None = None, threads: int = 1, processes: bool = True
) -> ExecutorFactory:
    """Factory of executors on a Dask cluster: SLURM, Kubernetes, plain hosts, or this machine.

    The folder of the run has to be reachable under one path from all workers. Workers of a cluster that is already
    there are started with one thread each (`dask worker --nthreads 1`): two trainings in one process share one device.

    Args:
      address: of the scheduler, such as "tcp://10.0.0.1:8786"; None starts a cluster on this machine.
      workers: of the cluster on this machine; by default one a usable core.
      threads: that each of them computes with.
      processes: whether they are processes; threads of this process otherwise.

    Raises:
      ImportError: dask.distributed is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ImportError(
            'a Dask cluster needs dask.distributed; install it: pip install "fusion-jax[cluster]"'
        ) from None

    def factory() -> Executor:
        from distributed import Client, LocalCluster

        if address is not None:
            return _DaskExecutor(Client(address, set_as_default=False), None)
        count = workers or usable_cores()
        with _environment(_worker_environment(threads) if processes else {}):
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=processes,
                dashboard_address=":0",
                memory_limit=0,  # Dask would pause and kill workers by a share of memory it guesses
            )
        return _DaskExecutor(Client(cluster, set_as_default=False), cluster)

    return factory


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _DaskExecutor(Executor):
    """An executor that ends the client, and the cluster it started, with itself."""

    def __init__(self, client: Any, cluster: Any) -> None:
        self.client, self.cluster = client, cluster
        # Every task is a training of its own, never the cached result of an earlier call.
        self.executor = client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self.executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait=wait and not cancel_futures)
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()

    def end(self) -> None:
        """Stop without waiting for what runs."""
        self.shutdown(wait=False, cancel_futures=True)


def _worker_environment(threads: int) -> dict[str, str]:
    found = {name: str(threads) for name in THREADS}
    if "jax" in sys.modules:
        config = sys.modules["jax"].config
        if config.jax_compilation_cache_dir:
            found["JAX_COMPILATION_CACHE_DIR"] = str(config.jax_compilation_cache_dir)
            # From how many seconds on a program is kept: a training is many small ones.
            found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(config.jax_persistent_cache_min_compile_time_secs)
    return found


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None]:
    """Variables of this process's environment, which its children inherit, while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
