"""Where instances run: any `concurrent.futures` executor, or what `--executor` names.

`local` is threads of this process, each of which watches a process of its own.  On other machines every task does the
same there: what is sent is an instance, what comes back is its record.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from curvverify.cli.child import run_instance
from curvverify.cli.warm import TEMPLATE
from curvverify.errors import UnsupportedError, UsageError
from curvverify.report.batch import Record

if TYPE_CHECKING:
    from curvverify.cli.child import Instance, Limits
    from curvverify.report.batch import RunKey

JOBS_POLL = 0.2
"""Seconds between looks at the jobs of a cluster."""

FOLDER = "curvverify-slurm"
"""Where submitit keeps what its jobs say, in the current folder."""

FORMS = "local, dask://HOST:PORT, dask://local?workers=N, slurm://PARTITION?jobs=N&minutes=N or slurm://local?jobs=N"


def run_all(
    instances: Iterable[Instance], flags: list[str], limits: Limits, executor: Executor, here: bool
) -> Generator[Record, None, None]:
    """One record per instance, in the order in which they finish; closed early, it gives up what still runs.

    `here`: the executor's tasks run in this process, and can be told to stop.  A task that ends in an exception, as
    one does whose worker died several times, is a record with the verdict `error`.
    """
    stop = threading.Event() if here else None
    pending: dict[Future[Record | None], Instance] = {}
    recorded: set[RunKey] = set()
    try:
        for instance in instances:
            arguments = (instance, flags, limits, *([stop] if stop is not None else []))
            pending[executor.submit(run_instance, *arguments)] = instance
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                record = _outcome(pending.pop(future), future)
                if record is not None and record.run_key not in recorded:
                    recorded.add(record.run_key)
                    yield record
    finally:
        if stop is not None:
            stop.set()
        for future in pending:
            future.cancel()


def _outcome(instance: Instance, future: Future[Record | None]) -> Record | None:
    try:
        return future.result()
    except CancelledError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever an executor raises says that there is no verdict
        text = f"the executor gave no result: {type(error).__name__}: {error}"
        return Record(*instance.key, instance.timeout, "error", 0.0, 0.0, error=text, method=instance.method)


@contextlib.contextmanager
def opened(where: str, jobs: int, threads: int) -> Iterator[tuple[Executor, bool]]:
    """The executor that the text names, and whether its tasks run in this process; closed at the end.

    Raises UsageError for a text of another form, UnsupportedError where the package it needs is missing.
    """
    place = urlsplit(where)
    if where == "local":
        with ThreadPoolExecutor(jobs) as pool:
            try:
                yield pool, True
            except BaseException:
                TEMPLATE.close()  # whatever still runs ends at once, and with it the pool's threads
                raise
    elif place.scheme == "dask" and place.netloc:
        with _dask(place.netloc, _settings(where, place.query, ("workers",)), jobs, threads) as executor:
            yield executor, False
    elif place.scheme == "slurm" and place.netloc:
        settings = _settings(where, place.query, ("jobs", "minutes"))
        with _slurm(place.netloc, settings, jobs, threads) as executor:
            yield executor, False
    else:
        raise UsageError(f"--executor {where!r}: write {FORMS}")


def _settings(where: str, text: str, known: tuple[str, ...]) -> dict[str, int]:
    """The numbers behind the question mark."""
    found: dict[str, int] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in known or not value.isdecimal() or int(value) < 1:
            raise UsageError(
                f"--executor {where!r}: {name}={value}; known is {', '.join(f'{k}=NUMBER' for k in known)}"
            )
        found[name] = int(value)
    return found


def _needed(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"--executor needs the package {package}: pip install 'curvverify[{extra}]'")


@contextlib.contextmanager
def _dask(address: str, settings: dict[str, int], jobs: int, threads: int) -> Iterator[Executor]:
    """Dask's own executor over a cluster at the address, or over one of this machine's processes.

    A task whose worker dies is run again, elsewhere; its future is done once.
    """
    _needed("distributed", "dask")
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        if address == "local":
            count = settings.get("workers", jobs)
            cluster = stack.enter_context(
                LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)  # type: ignore[arg-type]
            )
            client = stack.enter_context(Client(cluster))
        else:
            try:
                client = stack.enter_context(Client(f"tcp://{address}", timeout=20))
            except (OSError, ValueError) as error:
                raise UsageError(f"no Dask scheduler answers at {address}: {error}") from error
        yield stack.enter_context(client.get_executor(pure=False))


class Submitted(Executor):
    """submitit's jobs as futures of the standard library; a thread submits them together and looks after them.

    What has been asked for goes out as one SLURM array; on this machine at most `at_once` jobs run at a time.
    """

    def __init__(self, executor: Any, at_once: int | None):
        self._executor, self._at_once = executor, at_once
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._running: dict[Future[Any], Any] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._look_after, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            self._waiting.append((future, functools.partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop; jobs that still run are cancelled where asked for."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if cancel_futures:
            for job in self._running.values():
                job.cancel()

    def _look_after(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait(JOBS_POLL)
                free = len(self._waiting) if self._at_once is None else self._at_once - len(self._running)
                out, self._waiting = self._waiting[:free], self._waiting[free:]
            self._send([(future, call) for future, call in out if future.set_running_or_notify_cancel()])
            for future, job in list(self._running.items()):
                if job.done():
                    del self._running[future]
                    _settle(future, job.result)

    def _send(self, calls: list[tuple[Future[Any], Callable[[], Any]]]) -> None:
        if not calls:
            return
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(call) for _, call in calls]
        except Exception as error:  # noqa: BLE001 - every future must end, whatever the scheduler says
            for future, _ in calls:
                future.set_exception(error)
            return
        self._running.update(zip((future for future, _ in calls), jobs, strict=True))


def _settle(future: Future[Any], result: Callable[[], Any]) -> None:
    try:
        future.set_result(result())
    except Exception as error:  # noqa: BLE001 - handed on to whoever waits
        future.set_exception(error)


@contextlib.contextmanager
def _slurm(partition: str, settings: dict[str, int], jobs: int, threads: int) -> Iterator[Executor]:
    """Jobs of SLURM arrays in the partition, at most `jobs` at a time; `local` stands for this machine."""
    _needed("submitit", "slurm")
    import submitit

    local, jobs = partition == "local", settings.get("jobs", jobs)
    executor = submitit.AutoExecutor(FOLDER, cluster="local" if local else None)
    if not local and executor.cluster != "slurm":
        raise UnsupportedError(f"--executor slurm://{partition}: there is no sbatch on this machine")
    executor.update_parameters(timeout_min=settings.get("minutes", 60), cpus_per_task=threads)
    if not local:
        executor.update_parameters(slurm_partition=partition, slurm_array_parallelism=jobs)
    found = Submitted(executor, jobs if local else None)
    try:
        yield found
    finally:
        found.shutdown(cancel_futures=True)
