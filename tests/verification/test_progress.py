"""Progress events, their trace, what is left open, cancellation, and small memories."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
from torch import nn

import curvverify
from curvverify import Deadline, Options, Progress, Result, Verdict
from curvverify.bounding.linear import Effort
from curvverify.graph import LoadedModel, load
from curvverify.report.serialise import from_json, to_json
from curvverify.spec import parse_query
from curvverify.spec.query import Query
from curvverify.verification.branch import Branching
from curvverify.verification.checker import Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.methods import Method
from curvverify.verification.progress import MOST, REGIONS, Reporter, open_leaves
from curvverify.verification.property import compile_query
from curvverify.verification.state import Subproblems

HARD = Options(timeout=60.0, attack_rounds=1, attack_starts=4, threads=1)


def barely_true(inputs: int = 2, below: float = 0.02) -> tuple[LoadedModel, Query]:
    """A network and a threshold a little below its sampled minimum on a wide box: long to prove."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    model = load(module, shapes=(1, inputs))
    x = torch.rand(50_000, 1, inputs, dtype=torch.float64) * 8 - 4
    least = float(model.graph(x).min())
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (and (>= X_{i} -4.0) (<= X_{i} 4.0)))" for i in range(inputs)]
    return model, parse_query("\n".join([*lines, f"(assert (<= Y_0 {least - below:.6f}))"]))


def test_events_are_in_order_and_end_in_the_result() -> None:
    model, asked = barely_true()
    seen: list[Progress] = []
    result = curvverify.verify(model, asked, HARD, progress=seen.append)
    assert result.verdict is Verdict.VERIFIED
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    margins = [p.margin_lower for p in seen]
    assert margins == sorted(margins)
    assert {"linear", "boxes"} <= {p.stage for p in seen}
    assert (seen[-1].open_disjuncts, seen[-1].open_subproblems, seen[-1].share_left) == (0, 0, 0.0)
    assert seen[-1].bounded == result.subproblems
    assert set(result.trace) <= set(seen)
    assert result.remaining is None


@pytest.fixture(scope="module")
def unfinished() -> tuple[LoadedModel, Query, Result]:
    """Cut off while branching along the inputs."""
    model, asked = barely_true(4)
    deadline = Deadline.after(60.0)

    def stop(p: Progress) -> None:
        if p.bounded > 100 and p.share_left < 0.9:
            deadline.cancel()

    return model, asked, curvverify.verify(model, asked, HARD, deadline=deadline, progress=stop)


def test_cancelled_from_the_callback(unfinished) -> None:
    _, _, result = unfinished
    assert result.verdict is Verdict.UNKNOWN
    assert any("cancelled" in note for note in result.notes)
    assert result.margin_lower < 0.0
    assert result.subproblems < 20_000


def test_the_remaining_region_holds_all_that_is_open(unfinished) -> None:
    """Every listed margin holds on its region, the worst is the result's own, and the rest of the box is above."""
    model, asked, result = unfinished
    threshold, left = float(asked.groups[0].disjuncts[0].bound_cover[0]), result.remaining
    assert left is not None
    assert 0.0 < left.share < 1.0
    assert len(left.regions) == min(left.count, REGIONS)
    margins = [region.margin_lower for region in left.regions]
    assert margins == sorted(margins)
    assert margins[0] == pytest.approx(result.margin_lower)
    for region in left.regions:
        assert region.lower is not None
        assert region.upper is not None
        low, high = torch.tensor(region.lower), torch.tensor(region.upper)
        assert float(((high - low) / 8.0).prod()) == pytest.approx(region.share)
        y = model.graph(low + torch.rand(500, 1, 4, dtype=torch.float64) * (high - low))
        assert float(y.min()) >= threshold + region.margin_lower


def test_results_with_all_their_fields_read_back(unfinished) -> None:
    _, _, result = unfinished
    again = from_json(json.loads(json.dumps(to_json(result), allow_nan=False)))
    assert again == result
    assert again.remaining.regions[0].disjuncts == (0,)


def test_halfspaces_of_the_remaining_region() -> None:
    """Cut along directions, leaves list halfspaces in the uncut box, and what lies in them is above their margins."""
    model, asked = barely_true(14, 0.1)
    prop = compile_query(asked)
    checker = Checker(model.graph, prop)
    falsifier = Falsifier(model.graph, asked, prop, lambda x: x.new_full((1,), torch.nan))
    branching = Branching(checker, falsifier, 8.0, 256, [Method("slab")])
    with torch.no_grad():
        root = checker.linear(Subproblems.of(prop), Effort(3), 6)
        branching.progress = lambda now: deadline.cancel() if now.bounded > 20 else None
        deadline = Deadline.after(60.0)
        branching.run([root], deadline)
    regions = open_leaves(branching.worst(REGIONS), root.problems, [7])
    assert len(regions) == min(branching.open, REGIONS) > 1
    shares = sum(region.share for region in regions)
    assert shares == branching.share if len(regions) == branching.open else shares < branching.share
    threshold = float(asked.groups[0].disjuncts[0].bound_cover[0])
    x = torch.rand(20_000, 14, dtype=torch.float64) * 8 - 4
    y = model.graph(x.reshape(-1, 1, 14)).flatten()
    for region in regions:
        assert (region.group, region.lower, region.upper) == (7, None, None)
        assert region.halfspaces
        inside = torch.ones(len(x), dtype=torch.bool)
        for h in region.halfspaces:
            value = x @ torch.tensor(h.direction, dtype=torch.float64)
            inside &= (value >= h.low) & (value <= h.high)
        assert bool((y[inside] >= threshold + region.margin_lower).all())


def test_cancelled_from_another_thread() -> None:
    model, asked = barely_true(6)
    deadline = Deadline.after(60.0)
    threading.Timer(0.5, deadline.cancel).start()
    begun = time.monotonic()
    result = curvverify.verify(model, asked, HARD, deadline=deadline)
    assert result.verdict is Verdict.UNKNOWN
    assert time.monotonic() - begun < 30.0


def test_deadlines_share_their_end() -> None:
    deadline = Deadline.after(100.0)
    sooner = deadline.sooner(50.0)
    assert not sooner.passed
    sooner.cancel()
    assert deadline.passed
    assert deadline.sooner(10.0).passed
    assert not Deadline.after(1.0).cancelled
    assert deadline.remaining <= 0.0


def test_what_the_callback_raises_ends_the_run() -> None:
    class StopError(Exception):
        pass

    def raising(p: Progress) -> None:
        raise StopError(p.stage)

    with pytest.raises(StopError, match="falsify"):
        curvverify.verify(*barely_true(), HARD, progress=raising)


def test_traces_stay_short() -> None:
    """Thousands of events leave at most so many points, the first and last of every stage among them."""
    reporter = Reporter(time.monotonic(), Deadline.never())
    for stage, count in (("linear", 2), ("branch", 5000), ("after", 3)):
        for i in range(count):
            reporter.event(stage, -1.0 / (i + 1), 1, 1.0, i, i)
            reporter.started -= 0.2
    stages = [p.stage for p in reporter.trace]
    assert len(stages) <= MOST
    assert len(stages) > MOST // 4
    assert {"linear", "branch", "after"} <= set(stages)
    assert (reporter.trace[0].stage, reporter.trace[-1].bounded) == ("linear", 2)
    seconds = [p.seconds for p in reporter.trace]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("branch_inputs", [0, 64])
@pytest.mark.parametrize("memory", [1e-3, 1e-5, 1e-7])
def test_little_memory_narrows_the_search_and_no_more(memory: float, branch_inputs: int) -> None:
    """A queue beyond its memory goes deep, then ends: with bounds that hold, and the same verdict or none."""
    model, asked = barely_true()
    options = Options(timeout=2.0, attack_rounds=1, threads=1, memory=memory, branch_inputs=branch_inputs)
    result = curvverify.verify(model, asked, options)
    assert result.verdict in (Verdict.VERIFIED, Verdict.UNKNOWN, Verdict.TIMEOUT)
    assert (result.margin_lower > 0.0) is (result.verdict is Verdict.VERIFIED)
    assert result.margin_lower <= 0.021
