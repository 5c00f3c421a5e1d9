"""Executors: every instance comes back once, whatever happens to the workers; and warm processes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from curvverify.cli.child import Instance, Limits
from curvverify.cli.executors import opened, run_all
from curvverify.cli.warm import Template
from curvverify.demo import FAILS, HOLDS, MODEL
from curvverify.errors import UnsupportedError, UsageError
from curvverify.report.batch import read_records

LIMITS = Limits(grace=5.0, memory_gib=8.0)
FLAGS = ["--threads", "1", "--real-semantics"]


def wait_for(template: Template, code: str, folder: Path) -> tuple[int, str, str]:
    """Exit code and both outputs of Python code in a child of the template."""
    out, err = folder / "out", folder / "err"
    child = template.start("builtins:exec", [code], out, err, {})
    while not child.wait(1.0):
        pass
    assert child.code is not None
    return child.code, out.read_text(), err.read_text()


@pytest.fixture
def template() -> Iterator[Template]:
    own = Template()
    yield own
    own.close()


def test_a_template_starts_again_and_its_end_ends_its_children(template: Template, tmp_path: Path) -> None:
    assert wait_for(template, "import os; print(os.getpid() == os.getpgrp())", tmp_path) == (0, "True\n", "")
    process = template._process
    assert process is not None
    process.kill()
    process.wait()
    again = tmp_path / "again"
    again.mkdir()
    assert wait_for(template, "import torch; print(float(torch.ones(3).sum()))", again) == (0, "3.0\n", "")
    sleeper = template.start("time:sleep", ["no number"], tmp_path / "o", tmp_path / "e", {})
    assert sleeper.wait(30.0)
    assert sleeper.code == 1
    assert "TypeError" in (tmp_path / "e").read_text()
    sleeper = template.start("time:sleep", [60], tmp_path / "o", tmp_path / "e", {})
    left = psutil.Process(sleeper.pid)
    folder = Path(template._socket).parent
    template.close()
    assert sleeper.wait(30.0)
    psutil.wait_procs([left], timeout=10.0)
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert not folder.exists()


def instances(folder: Path, count: int) -> list[Instance]:
    """So many instances of the demo's two queries."""
    shutil.copy(MODEL, folder / "moons.onnx")
    found = []
    for i in range(count):
        name = f"{i}.vnnlib"
        shutil.copy(FAILS if i % 3 == 0 else HOLDS, folder / name)
        found.append(Instance("demo", "moons.onnx", name, 60.0, folder))
    return found


def verdicts(count: int) -> dict[str, str]:
    return {f"{i}.vnnlib": "sat" if i % 3 == 0 else "unsat" for i in range(count)}


class Failing(Executor):
    """An executor all of whose workers have died."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        future.set_exception(ConnectionError("nobody is left"))
        return future


def test_an_executor_that_fails_gives_records_without_verdict(tmp_path: Path) -> None:
    (record,) = run_all(instances(tmp_path, 1), FLAGS, LIMITS, Failing(), here=False)
    assert record.verdict == "error"
    assert "ConnectionError: nobody is left" in record.error


def test_any_executor_will_do(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        records = list(run_all(instances(tmp_path, 3), FLAGS, LIMITS, pool, here=True))
    assert {r.vnnlib: r.verdict for r in records} == verdicts(3)
    assert all(record.stages and record.peak_gib > 0.05 for record in records)


@pytest.mark.filterwarnings("ignore")
def test_a_dask_worker_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="pip install 'curvverify[dask]'")
    count = 9
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor(pure=False) as pool,
    ):
        running = run_all(instances(tmp_path, count), FLAGS, LIMITS, pool, here=False)
        records = [next(running)]
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        records += running
    assert len(records) == count
    assert {r.vnnlib: r.verdict for r in records} == verdicts(count)


@pytest.mark.filterwarnings("ignore")
def test_submitit_runs_jobs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="pip install 'curvverify[slurm]'")
    monkeypatch.chdir(tmp_path)
    with opened("slurm://local?jobs=2", 1, 1) as (pool, here):
        records = list(run_all(instances(tmp_path, 3), FLAGS, LIMITS, pool, here))
    assert {r.vnnlib: r.verdict for r in records} == verdicts(3)


def test_the_command_takes_an_executor_and_says_what_it_knows(tmp_path: Path, call, monkeypatch) -> None:
    instances(tmp_path, 2)
    (tmp_path / "instances.csv").write_text("moons.onnx,0.vnnlib,60\nmoons.onnx,1.vnnlib,60\n")
    out = tmp_path / "r.jsonl"
    assert call("batch", tmp_path / "instances.csv", "--out", out, "--executor", "local").code == 0
    assert {r.vnnlib: r.verdict for r in read_records(out)} == verdicts(2)
    wrong = call("batch", tmp_path / "instances.csv", "--out", tmp_path / "s.jsonl", "--executor", "ray://x")
    assert wrong.code == 2
    assert "write local, dask://HOST:PORT" in wrong.err


@pytest.mark.parametrize(
    "where", ["dask://local?workers=0", "dask://local?size=3", "slurm://", "dask", "slurm://a?jobs=x"]
)
def test_wrong_executors_are_refused(where: str) -> None:
    with pytest.raises(UsageError, match="--executor"), opened(where, 1, 1):
        pass


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for where, extra in (("dask://local", "dask"), ("slurm://gpu", "slurm")):
        with pytest.raises(UnsupportedError, match=rf"pip install 'curvverify\[{extra}\]'"), opened(where, 1, 1):
            pass
