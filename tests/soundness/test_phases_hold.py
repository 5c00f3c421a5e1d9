"""Phases of hinges, attacked: points of every part against its bounds, linear programmes against the ascent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import curvverify
from curvverify import Options, Verdict
from curvverify.bounding.contraction import Contraction
from curvverify.bounding.cuts import OVER, Cuts, best_cuts
from curvverify.bounding.linear import Effort, linear_bounds
from curvverify.bounding.phases import Ascent, Phases, decided_lower
from curvverify.bounding.reduced import Hinges, ReducedNetwork, reduced_network, reducible
from curvverify.bounding.relaxation import Part, Relaxation
from curvverify.bounding.substitution import Rows
from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.graph.loading import LoadedModel
from curvverify.ops.elementwise.hinge import LeakyRelu
from curvverify.ops.linear import Sum
from curvverify.ops.product import Product
from curvverify.spec.query import Query
from curvverify.types import Deadline, Interval
from curvverify.verification import branch
from curvverify.verification.checker import Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.phases import PhaseSearch
from curvverify.verification.property import compile_query
from curvverify.verification.state import Subproblems
from tests.soundness.attack import ascent, points
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import Builder, residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import ROUNDING, box_around
from tests.soundness.test_branching_holds import asked, small_network
from tests.soundness.test_coupling_holds import with_fixed_inputs

HINGES = ["Relu", "LeakyRelu"]

FAR = 1e6
"""More than any row here reaches."""

SEARCHES = [(FAR, False), (2.0, True), (2.0, False)]
"""What an ascent is asked for, and whether it is warm."""


def rows_of(graph: Graph, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *graph.output_shape, generator=generator, dtype=torch.float64)


def reduced(name: str, seed: int, radius: float = 0.4) -> tuple[Graph, Relaxation, Tensor, ReducedNetwork]:
    """A residual convolutional network over a box, some inputs fixed where the seed is odd, and its reduced form."""
    graph = residual_convnet(SAMPLES[name], seed)
    box = box_around(graph.input_shape, radius, seed)
    relaxation = linear_bounds(graph, with_fixed_inputs(box) if seed % 2 else box, Effort(2))
    rows = rows_of(graph, 5, seed)
    return graph, relaxation, rows, reduced_network(relaxation, graph.output, rows, None)


def arguments(graph: Graph, network: ReducedNetwork, x: Tensor) -> Tensor:
    """The arguments (B, U) of the unstable hinges at inputs x (B, *S_in)."""
    values = graph.values(x)
    return torch.cat([values[graph.nodes[s.node].inputs[0]].flatten(1)[:, s.entries] for s in network.hinges.sites], 1)


def parts_around(hinges: Hinges, signs: Tensor, count: int, seed: int) -> Phases:
    """For activation patterns (B, U): parts that fix some of their phases, with arbitrary slopes and multipliers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(signs), signs.shape[1])
    share = torch.rand(len(signs), 1, generator=generator)
    fixed = torch.rand(shape, generator=generator) < share
    turns = 1.4 * torch.rand(shape, generator=generator) - 0.2
    multipliers = (torch.randn(shape, generator=generator).abs() * 0.3) * (torch.rand(shape, generator=generator) < 0.5)
    whole = Phases.whole(hinges)[torch.zeros(len(signs), dtype=torch.long)].fixed(torch.where(fixed, signs, 0.0))
    return replace(whole, turns=turns, multipliers=multipliers)[torch.arange(count)]


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("seed", range(2))
def test_reduced_network_is_the_network(name: str, seed: int) -> None:
    """At any point, the forms give the hinges' arguments and the rows, from the hinges' own values."""
    graph, relaxation, rows, network = reduced(name, seed)
    assert network.hinges.count > 10
    x = points(relaxation.box, 64, seed)
    z = arguments(graph, network, x)
    h = network.hinges
    a = torch.where(z > 0, h.right, h.left) * z
    width = relaxation.box.width.flatten()
    t = ((x - relaxation.box.centre).flatten(1) / (0.5 * width))[:, width > 0]
    for forms, truth in ((network.arguments, z), (network.rows, graph(x).flatten(1) @ rows.flatten(1).T)):
        found = t @ forms.inputs.double().T + a @ forms.hinges.double().T + forms.constant.double()
        assert float((found - truth).abs().max()) < 1e-4


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize(("seed", "most", "warm"), [(k, *asked_for) for k in range(3) for asked_for in SEARCHES])
def test_points_of_a_part_are_above_its_bounds(name: str, seed: int, most: float, warm: bool) -> None:
    """Whatever slopes and multipliers: samples, corners and descents that stay in a part do not pass its bounds."""
    graph, relaxation, rows, network = reduced(name, seed)
    box = relaxation.box
    x = points(box, 600, seed)
    descended = [ascent(graph, graph.output, box, -row, x[:64]) for row in rows]
    x = torch.cat([x, *descended]).detach()
    z = arguments(graph, network, x)
    values = graph(x).flatten(1) @ rows.flatten(1).T
    anchors = torch.cat([values.argmin(0), torch.arange(0, 600, 40)])
    parts = parts_around(network.hinges, z[anchors].sign(), len(anchors), seed)
    index = torch.arange(len(anchors)) % len(rows)
    lower = decided_lower(relaxation, graph.output, Rows(rows[index].unsqueeze(0)), network.hinges, parts)
    bars = torch.full((len(index),), most)
    starts = replace(parts, turns=parts.turns.clamp(0.0, 1.0))
    searched, found = Ascent(network).ascend(index, starts, bars, 6, warm)
    better = decided_lower(relaxation, graph.output, Rows(rows[index].unsqueeze(0)), network.hinges, found)
    near, rough = Ascent(network.coarse()).ascend(index, starts, bars, 6, warm)
    roughly = decided_lower(relaxation, graph.output, Rows(rows[index].unsqueeze(0)), network.hinges, rough)
    for b, anchor in enumerate(anchors.tolist()):
        inside = ((parts.signs[b] * z) >= 0).all(1)
        assert bool(inside[anchor])
        least = float(values[inside, index[b]].min())
        scale = 1.0 + abs(least)
        assert float(lower[b]) <= least + ROUNDING * scale
        assert float(better[b]) <= least + ROUNDING * scale
        assert float(roughly[b]) <= least + ROUNDING * scale
        # one computation in two arithmetics
        assert abs(float(better[b] - searched[b])) < 1e-3 * scale
        assert abs(float(roughly[b] - near[b])) < 0.05 * scale


@pytest.mark.parametrize("wild", [-1.0, 1e30, float("inf"), float("nan")])
def test_wild_multipliers_prove_nothing(wild: float) -> None:
    """Negative multipliers count as 0; infinite ones and NaN give no bound."""
    graph, relaxation, rows, network = reduced("Relu", 1)
    x = points(relaxation.box, 500, 1)
    z = arguments(graph, network, x)
    parts = parts_around(network.hinges, z[:20].sign(), 20, 3)
    parts.multipliers[:, ::3] = wild
    index = torch.arange(20) % len(rows)
    lower = decided_lower(relaxation, graph.output, Rows(rows[index].unsqueeze(0)), network.hinges, parts)
    values = graph(x).flatten(1) @ rows.flatten(1).T
    for b in range(20):
        inside = ((parts.signs[b] * z) >= 0).all(1)
        assert float(lower[b]) <= float(values[inside, index[b]].min()) + ROUNDING
    assert not bool(lower.isnan().any())


@pytest.mark.parametrize("seed", range(4))
def test_ascent_meets_the_linear_programme(seed: int) -> None:
    """Where all phases are fixed, a row is linear on a polytope: its minimum there bounds the ascent and is met."""
    graph, _, rows, network = reduced("Relu", 2 * seed, 0.15)
    x = points(box_around(graph.input_shape, 0.15, 2 * seed), 4, seed)
    signs = arguments(graph, network, x)[:1].sign()
    turns = torch.zeros_like(signs).float()
    whole = Ascent(network)
    free = replace(Phases.whole(network.hinges), turns=turns)
    _, free = whole.ascend(torch.zeros(1, dtype=torch.long), free, torch.tensor([FAR]), 20)
    parts = replace(free.fixed(signs), multipliers=turns)
    active = (signs[0] > 0).double()
    forms = network.arguments
    u = network.hinges.count
    h = forms.hinges.double() * active
    inverse = torch.linalg.inv(torch.eye(u, dtype=torch.float64) - h)
    slopes, constants = inverse @ forms.inputs.double(), inverse @ forms.constant.double()
    weight = network.rows.hinges.double() * active
    objective = network.rows.inputs.double() + weight @ slopes
    shift = network.rows.constant.double() + weight @ constants
    for k in range(len(rows)):
        truth = linprog(
            objective[k].numpy(),
            A_ub=(-signs[0].unsqueeze(1) * slopes).numpy(),
            b_ub=(signs[0] * constants).numpy(),
            bounds=[(-1, 1)] * slopes.shape[1],
        )
        assert truth.status == 0
        least = truth.fun + float(shift[k])
        plain = float(shift[k] - objective[k].abs().sum())
        found, _ = whole.ascend(torch.tensor([k]), parts, torch.tensor([least + 0.1]), 60)
        assert float(found) <= least + 1e-4
        assert least - float(found) <= 0.2 * (least - plain) + 1e-3


def test_parts_that_hold_no_point_are_closed() -> None:
    """Phases of two points at once contradict each other: bounds grow without limit, and multipliers with them."""
    graph, _, _, network = reduced("Relu", 0, 0.15)
    z = arguments(graph, network, points(box_around(graph.input_shape, 0.15, 0), 400, 0))
    often = ((z > 0).double().mean(0) - 0.5).abs().argsort(descending=True)[:12]
    signs = torch.zeros(1, network.hinges.count)
    signs[0, often] = -(z[:, often].mean(0).sign()).float()
    whole, index = Ascent(network), torch.zeros(1, dtype=torch.long)
    parts = replace(Phases.whole(network.hinges).fixed(signs), turns=torch.full_like(signs, 0.5))
    for factor in (3.0, 300.0):
        wanted = (whole.backward(index, parts).lower.abs() + 1.0) * factor
        assert float(whole.ascend(index, parts, wanted, 12)[0]) > float(wanted)


def test_coarse_products_are_used_only_where_they_hardly_move_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where they are small, or the processor is not faster at them."""
    network = reduced("Relu", 0)[-1]
    missed = torch.full((len(network.rows.constant),), FAR)
    cancelling = Ascent(network).backward(torch.arange(len(missed)), Phases.whole(network.hinges)[0 * missed.long()])
    for large, fast, bars, wanted in (
        (0, True, missed, torch.bfloat16),
        (2**19, True, missed, torch.float32),
        (0, False, missed, torch.float32),
        (0, True, cancelling.lower + 1e-6, torch.float32),
    ):
        monkeypatch.setattr("curvverify.bounding.phases.LARGE", large)
        monkeypatch.setattr("curvverify.bounding.phases._multiplies_bfloat16", lambda fast=fast: fast)
        assert Ascent.quick(network, bars).precision == wanted


def open_parts(name: str) -> Iterator[tuple[Ascent, Tensor, Phases, Tensor, Tensor]]:
    """Ascents, rows (R,), the parts that up to three cuts in turn leave most open, their bounds, and bars for them."""
    for seed in range(4):
        _, _, rows, network = reduced(name, seed)
        ascended, index, twice = Ascent(network), torch.arange(len(rows)), torch.arange(len(rows)).repeat_interleave(2)
        parts = Phases.whole(network.hinges)[torch.zeros_like(index)]
        lower, parts = ascended.ascend(index, parts, torch.full((len(rows),), FAR), 20)
        bars = lower + 0.3 * lower.abs()
        for _ in range(4):
            yield ascended, index, parts, lower, bars
            chosen = best_cuts(ascended, index, parts, ascended.backward(index, parts), bars - lower)
            both, halves = ascended.ascend(twice, chosen.halves(parts), bars[twice], 12, warm=True)
            least = 2 * index + both.reshape(-1, 2).argmin(1)
            lower, parts = both[least].minimum(bars - 0.01), halves[least]


@pytest.mark.parametrize("name", HINGES)
def test_the_chosen_cut_gains_nearly_as_much_as_the_best(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every cut tried: both halves' gains by an ascent, each up to what is missing.  Multipliers help."""
    monkeypatch.setattr("curvverify.bounding.cuts.PROBED", 100)
    shares: dict[float, list[float]] = {OVER: [], 0.0: []}
    for ascended, index, parts, lower, bars in open_parts(name):
        free = torch.arange(ascended.network.hinges.count)
        for over, found in shares.items():
            monkeypatch.setattr("curvverify.bounding.cuts.OVER", over)
            chosen = best_cuts(ascended, index, parts, ascended.backward(index, parts), bars - lower).entries
            for k in range(len(index)):
                same = torch.full((2 * len(free),), k)
                halves = Cuts(free, torch.zeros(len(free)), free >= 0).halves(parts[same[: len(free)]])
                gains = ascended.ascend(same, halves, bars[same], 12, warm=True)[0] - lower[k]
                gains = gains.clamp(min=0.0).minimum(bars[k] - lower[k]).reshape(-1, 2).sum(1)
                found.append(float(gains[chosen[k]] / gains.max()))
    mean, alone = (sum(found) / len(found) for found in shares.values())
    assert mean > 0.85
    assert mean > alone + 0.02


@pytest.mark.parametrize("name", HINGES)
def test_halves_begin_with_what_their_multipliers_have_gained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the sides of what was cut; a part with every phase fixed is not cut."""
    monkeypatch.setattr("curvverify.bounding.cuts.PROBED", 100)
    monkeypatch.setattr("curvverify.bounding.cuts.OVER", 0.5)
    pulled = 0
    for ascended, index, parts, lower, bars in open_parts(name):
        found = ascended.backward(index, parts)
        chosen = best_cuts(ascended, index, parts, found, bars - lower)
        halves, twice = chosen.halves(parts), index.repeat_interleave(2)
        signs = parts.signs[twice]
        assert bool(chosen.free.all())
        assert bool((parts.signs[index, chosen.entries] == 0.0).all())
        signs[torch.arange(len(twice)), chosen.entries[twice]] = torch.tensor([1.0, -1.0]).repeat(len(index))
        assert bool((halves.signs == signs).all())
        begun = ascended.backward(twice, halves).lower.reshape(-1, 2)
        for k in chosen.pulls.nonzero().squeeze(1).tolist():
            assert float(begun[k, 0 if float(chosen.pulls[k]) > 0.0 else 1]) > float(found.lower[k])
            pulled += 1
        fixed = parts.fixed(torch.ones_like(parts.lower))
        assert bool((fixed.signs != 0.0).all())
        assert not bool(best_cuts(ascended, index, fixed, ascended.backward(index, fixed), bars - lower).free.any())
    assert pulled > 4


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("seed", range(2))
def test_no_point_below_the_bar_is_contracted_away(name: str, seed: int) -> None:
    """Samples, corners and descents whose row is not above the bar keep to the narrowed ranges, part by part.

    Twice, from what the first time left; the bars are met by a few points, by many, and by none of those.
    """
    graph, relaxation, rows, network = reduced(name, seed)
    box = relaxation.box
    x = points(box, 600, seed)
    x = torch.cat([x, *(ascent(graph, graph.output, box, -row, x[:64]) for row in rows)]).detach()
    z = arguments(graph, network, x)
    values = graph(x).flatten(1) @ rows.flatten(1).T
    anchors = values.argmin(0).repeat(3)
    index = torch.arange(len(rows)).repeat(3)
    bars = torch.cat([values.quantile(q, 0) for q in (0.02, 0.3)] + [values.amin(0) - 0.5])
    whole = Phases.whole(network.hinges)[torch.zeros(len(index), dtype=torch.long)]
    fixed = parts_around(network.hinges, z[anchors].sign(), len(anchors), seed)
    contraction = Contraction(Ascent(network), relaxation, graph.output, Rows(rows.unsqueeze(0)), seed % 2 == 0)
    shrunk = 0.0
    for parts in (whole, fixed):
        now = parts
        for _ in range(2):
            narrowed = contraction.narrowed(index, now, bars, Deadline.never())
            assert bool((narrowed.lower >= now.lower).all())
            assert bool((narrowed.upper <= now.upper).all())
            now = narrowed
        for b in range(len(index)):
            inside = ((parts.signs[b] * z) >= 0).all(1) & (values[:, index[b]] <= bars[b])
            assert bool((z[inside] >= now.lower[b] - 1e-12).all())
            assert bool((z[inside] <= now.upper[b] + 1e-12).all())
            assert not (bool(inside.any()) and bool(now.empty[b]))
        shrunk += float((1.0 - (now.upper - now.lower) / (parts.upper - parts.lower)).mean())
    assert shrunk > 0.02


def test_contraction_alone_closes_what_is_close_to_true() -> None:
    """Bars just below what is true: a few rounds leave nothing of parts whose rows are not proved by their bounds."""
    closed = 0
    for seed in range(3):
        graph, relaxation, rows, network = reduced("Relu", seed)
        x = points(relaxation.box, 2000, seed)
        x = torch.cat([x, *(ascent(graph, graph.output, relaxation.box, -row, x[:64]) for row in rows)]).detach()
        index, least = torch.arange(len(rows)), (graph(x).flatten(1) @ rows.flatten(1).T).amin(0)
        ascended = Ascent(network)
        whole = Phases.whole(network.hinges)[torch.zeros(len(index), dtype=torch.long)]
        lower, now = ascended.ascend(index, whole, torch.full((len(index),), FAR), 60)
        bars = lower.double() + 0.3 * (least - lower.double())
        contraction = Contraction(ascended, relaxation, graph.output, Rows(rows.unsqueeze(0)), True)
        for _ in range(6):
            now = contraction.narrowed(index, now, bars, Deadline.never())
        closed += int(now.empty.sum())
    assert closed > 2


def asking(model: LoadedModel, query: Query) -> tuple[Checker, Falsifier]:
    """What a search needs of a query; no witness is ever confirmed."""
    prop = compile_query(query)
    checker = Checker(model.graph, prop)
    return checker, Falsifier(model.graph, query, prop, lambda at: at.new_full((1,), torch.nan))


def low_points(seed: int, inputs: int, share: float) -> tuple[LoadedModel, Checker, Falsifier, Tensor]:
    """A random network, whether it falls below a threshold, and the points, about this share of 4000, where it does."""
    model = load(small_network(6 * seed, inputs), shapes=(1, inputs))
    box = box_around((1, inputs), 0.6, seed)
    box = type(box)(box.lower.float().double(), box.upper.float().double())
    x = points(box, 4000, seed)
    y = model.graph(x).flatten()
    threshold = float(y.quantile(share))
    return model, *asking(model, asked(box, threshold)), x[y < threshold - 1e-9]


def on_parts(search: PhaseSearch, values: list[Tensor]) -> Tensor:
    """Whether points with these values (N, ...) of the nodes lie on any open part."""
    sites = search.ascent.network.hinges.sites
    z = [values[search.graph.nodes[site.node].inputs[0]].flatten(1)[:, site.entries] for site in sites]
    z, found = torch.cat(z, 1), torch.zeros(len(values[0]), dtype=torch.bool)
    for part in search.queue:
        found |= ((z >= part.phases.lower - 1e-9) & (z <= part.phases.upper + 1e-9)).all(1)
    return found


@pytest.mark.parametrize(
    ("seed", "cuts", "parts"),
    [*((seed, math.inf, 150) for seed in range(6)), (0, 0.0, 60), (1, 0.0, 60), (1, 0.0, 150)],
)
def test_what_a_search_leaves_open_is_all_there_is(
    seed: int, cuts: float, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in between: every point of the box below the threshold lies on an open part, and within the remainder.

    With cuts alone, and with contractions whenever there is a group.
    """
    monkeypatch.setattr("curvverify.verification.phases.CUTS", cuts)
    model, checker, falsifier, low = low_points(seed, 20, 0.02)
    with torch.no_grad():
        root = checker.linear(Subproblems.of(checker.property), Effort(1), 1)
        deadline = Deadline.after(60.0)
        search = PhaseSearch(
            checker, falsifier, root, 8.0, 4, lambda s: deadline.cancel() if s.bounded > parts else None
        )
        assert search.possible
        search.run(deadline)
        left = search.remainder()
        values = model.graph.values(low)
    assert left
    assert len(search.queue) > (1 if cuts == 0.0 else 10)
    inside = torch.zeros(len(values[0]), dtype=torch.bool)
    for rest in left:
        assert bool(rest.open.any())
        assert 0.0 < rest.share <= 1.0
        here = torch.ones_like(inside)
        for node, bounds in rest.known.items():
            v = values[node]
            here &= ((v >= bounds.lower - 1e-9) & (v <= bounds.upper + 1e-9)).flatten(1).all(1)
        inside |= here
    assert len(inside) > 20
    assert bool(inside.all())
    assert bool(on_parts(search, values).all())


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_hulls_lose_no_point(seed: int, coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again: hulls of groups, what contractions leave of them, and their halves hold every point below.

    With large products in either precision.
    """
    monkeypatch.setattr("curvverify.verification.phases.AGAIN", 0.5)
    monkeypatch.setattr("curvverify.bounding.phases.LARGE", 0 if coarse else math.inf)
    monkeypatch.setattr("curvverify.bounding.phases._multiplies_bfloat16", lambda: True)
    model, checker, falsifier, low = low_points(seed, 16, 0.05)
    with torch.no_grad():
        values = model.graph.values(low)
        root, never = checker.linear(Subproblems.of(checker.property), Effort(1), 1), Deadline.never()
        search = PhaseSearch(checker, falsifier, root, 8.0, 4)
        assert search.possible
        search._attack_at = math.inf
        search._begin()
        assert search.ascent.precision == (torch.bfloat16 if coarse else torch.float32)
        contracted = 0
        for _ in range(12):
            for _ in range(4):
                search._advance(never)
            groups = sorted({part.group for part in search.queue} - {-1})[:2]
            if groups:
                search._contract(search.queue.hulls(groups), never)
            contracted += len(groups)
            assert bool(on_parts(search, values).all())
            assert search.queue.share == pytest.approx(sum(part.share for part in search.queue))
    assert contracted > 5
    assert len(values[0]) > 50


def test_hulls_lose_no_disjunct() -> None:
    """Neither one that is cut nor one whose whole box has no hinge left to cut."""
    model = load(small_network(0, 20), shapes=(1, 20))
    box = box_around((1, 20), 0.6, 0)
    least = float(model.graph(points(box, 500, 0)).min())
    query = asked(type(box)(box.lower.float().double(), box.upper.float().double()), least)
    checker, falsifier = asking(model, query)
    with torch.no_grad():
        root = checker.linear(Subproblems.of(checker.property), Effort(1), 1)
        for stuck in (False, True):
            search = PhaseSearch(checker, falsifier, root, 8.0, 4)
            search._begin()
            whole = search.queue.pop(1)
            if stuck:
                whole = replace(whole, phases=whole.phases.fixed(torch.ones_like(whole.phases.lower)))
            search.queue.add(whole, searched=True)
            assert search.queue.free == (0 if stuck else 1)
            hulls = search.queue.hulls([part.group for part in search.queue])
            assert len(search.queue) == 0
            search.queue.add(hulls, searched=True)
            assert len(search.queue) == 1
            assert bool(search.outcome()[1].any())
            assert search.queue.share == 1.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_phase_that_a_split_has_fixed_still_binds(sign: float) -> None:
    """min x + 0.1 relu(sign (x - 0.5)) over [0, 1] is 0; where x >= 0.5 is known, 0.5, which linear bounds miss."""
    first, second = nn.Linear(1, 2), nn.Linear(2, 1)
    first.weight.data, first.bias.data = torch.tensor([[sign], [1.0]]), torch.tensor([-0.5 * sign, 0.0])
    second.weight.data, second.bias.data = torch.tensor([[0.1, 1.0]]), torch.zeros(1)
    model = load(nn.Sequential(first, nn.ReLU(), second), shapes=(1, 1))
    checker, falsifier = asking(model, asked(Interval(torch.zeros(1, 1), torch.ones(1, 1)), 0.45))
    z = model.graph.nodes[model.graph.nonlinear[0]].inputs[0]
    ends = sorted((0.0, 0.5 * sign))
    known = Interval(
        *(torch.tensor([[end, at]], dtype=torch.float64) for end, at in zip(ends, (0.0, 1.0), strict=True))
    )
    with torch.no_grad():
        root = checker.linear(Subproblems.of(checker.property), Effort(1), 1, Part({z: known}))
        assert float(root.problems.margin_lower[0]) < -0.4
        search = PhaseSearch(checker, falsifier, root, 8.0, 4)
        assert search.possible
        search.run(Deadline.after(60.0))
    margins, still = search.outcome()
    assert not bool(still.any())
    assert 0.0 < float(margins.min()) <= 0.05 + 1e-6


def mixed_graph(seed: int) -> Graph:
    """Kinks around everything that bends: a sigmoid, a product, a step, and a hinge that is concave."""
    b = Builder((1, 6), seed)
    first = b.activate(SAMPLES["Relu"], b.dense(0, 10))
    bent = b.activate(SAMPLES["Sigmoid"], b.dense(first, 10))
    product = b.add(Product(), bent, b.dense(first, 10))
    step = b.activate(SAMPLES["Floor"], b.dense(bent, 10))
    concave = b.add(LeakyRelu(2.0), b.dense(first, 10))
    last = b.activate(SAMPLES["Relu"], b.dense(b.add(Sum((1.0, 0.2, 0.5)), product, step, concave), 10))
    b.dense(last, 3)
    return b.graph()


@pytest.mark.parametrize("seed", range(4))
def test_strips_hold_what_bends(seed: int) -> None:
    """At any point, the forms give the hinges' arguments and the rows but for the remainders' columns, times <= 1."""
    graph = mixed_graph(seed)
    box = box_around((1, 6), 0.2, seed)
    relaxation = linear_bounds(graph, with_fixed_inputs(box) if seed % 2 else box, Effort(2))
    rows = rows_of(graph, 5, seed)
    assert reducible(relaxation, graph.output)
    network = reduced_network(relaxation, graph.output, rows, None)
    assert network.hinges.count > 3
    x = points(relaxation.box, 500, seed)
    z = arguments(graph, network, x)
    a = z.clamp(min=0.0)
    width = relaxation.box.width.flatten()
    t = ((x - relaxation.box.centre).flatten(1) / (0.5 * width))[:, width > 0]
    for forms, truth in ((network.arguments, z), (network.rows, graph(x).flatten(1) @ rows.flatten(1).T)):
        assert forms.inputs.shape[1] > t.shape[1]
        moving, remainders = forms.inputs.double().split((t.shape[1], forms.inputs.shape[1] - t.shape[1]), 1)
        found = t @ moving.T + a @ forms.hinges.double().T + forms.constant.double()
        assert bool(((found - truth).abs() <= remainders.abs().sum(1) + 1e-4).all())


@pytest.mark.parametrize(("seed", "most", "warm"), [(k, *asked_for) for k in range(3) for asked_for in SEARCHES])
def test_points_of_a_part_are_above_its_bounds_where_functions_bend(seed: int, most: float, warm: bool) -> None:
    graph = mixed_graph(seed)
    box = box_around((1, 6), 0.2, seed)
    relaxation = linear_bounds(graph, box, Effort(2))
    rows = rows_of(graph, 5, seed)
    network = reduced_network(relaxation, graph.output, rows, None)
    x = points(box, 600, seed)
    x = torch.cat([x, *(ascent(graph, graph.output, box, -row, x[:64]) for row in rows)]).detach()
    z = arguments(graph, network, x)
    values = graph(x).flatten(1) @ rows.flatten(1).T
    anchors = torch.cat([values.argmin(0), torch.arange(0, 600, 40)])
    parts = parts_around(network.hinges, z[anchors].sign(), len(anchors), seed)
    index = torch.arange(len(anchors)) % len(rows)
    _, found = Ascent(network).ascend(index, parts, torch.full((len(index),), most), 6, warm)
    for phases in (parts, found):
        lower = decided_lower(relaxation, graph.output, Rows(rows[index].unsqueeze(0)), network.hinges, phases)
        assert bool(lower.isfinite().all())
        for b, anchor in enumerate(anchors.tolist()):
            inside = ((phases.signs[b] * z) >= 0).all(1)
            assert bool(inside[anchor])
            least = float(values[inside, index[b]].min())
            assert float(lower[b]) <= least + ROUNDING * (1.0 + abs(least))


@pytest.mark.parametrize("seed", range(6))
def test_only_parts_without_points_are_empty(seed: int) -> None:
    """Parts around points are not; parts that ask for a phase which no point has are, of many at once only those."""
    graph = residual_mlp(SAMPLES["Relu"], seed)
    box = box_around(graph.input_shape, 0.1, seed)
    whole = linear_bounds(graph, box, Effort(1))
    assert not bool(whole.empty.any())
    first = graph.nodes[graph.nonlinear[0]].inputs[0]
    x = whole.intervals[first]
    held = graph.values(points(box, 20, seed))[first]
    around = Interval(torch.where(held > 0, 0.0, x.lower), torch.where(held > 0, x.upper, 0.0))
    beyond = Interval(around.lower.clone(), around.upper.clone())
    beyond.lower[::2, ..., 0], beyond.upper[::2, ..., 0] = x.upper[..., 0] + 0.1, x.upper[..., 0] + 0.2
    boxes = Interval(box.lower.expand(20, 1, 4), box.upper.expand(20, 1, 4))
    assert not bool(linear_bounds(graph, boxes, Effort(1), part=Part({first: around})).empty.any())
    empty = linear_bounds(graph, boxes, Effort(1), part=Part({first: beyond})).empty
    assert torch.equal(empty, torch.arange(20) % 2 == 0)


def test_unbounded_arguments_are_not_reduced() -> None:
    """Strips need bounds."""
    b = Builder((1, 4), 0)
    b.dense(b.activate(SAMPLES["Relu"], b.dense(b.add(SAMPLES["Reciprocal"], b.dense(0, 6)), 6)), 2)
    relaxation = linear_bounds(b.graph(), box_around((1, 4), 3.0, 0), Effort(1))
    assert not reducible(relaxation, b.graph().output)


OPTIONS = Options(timeout=60.0, attack_rounds=1, threads=1, branch_inputs=0, coupling=False, refine_iterations=1)


@pytest.mark.parametrize(
    ("seed", "patience", "cuts"),
    [
        *((k, 1.0, 2.0) for k in (0, 5, 6, 11, 17, 29)),
        *((k, 4.0, 0.0) for k in (0, 5, 17)),
        *((k, 0.01, 2.0) for k in (0, 6, 11)),
    ],
)
def test_phases_decide(seed: int, patience: float, cuts: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two free inputs among four: a grid knows the minimum; both sides of it are decided, and rightly.

    Without patience most searches give up, and what they leave open is split along directions; with much of it, ranges
    are contracted whenever there is a group.
    """
    monkeypatch.setattr("curvverify.verification.phases.CUTS", cuts)
    monkeypatch.setattr(branch, "PATIENCE", patience)
    monkeypatch.setattr("curvverify.verification.run.PATIENCE", patience)
    monkeypatch.setattr("curvverify.verification.run.SPLIT", patience)
    monkeypatch.setattr("curvverify.verification.run.ROOT", 0.0)
    monkeypatch.setattr("curvverify.verification.run.ALONE", 0.85 if patience >= 1.0 else patience / 60.0)
    model = load(small_network(seed, 4), shapes=(1, 4))
    box = box_around((1, 4), 0.8, seed)
    upper = box.upper.clone()
    upper[0, 0, 2:] = box.lower[0, 0, 2:]
    box = type(box)(box.lower.float().double(), upper.float().double())
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    x = box.lower + torch.nn.functional.pad(torch.cartesian_prod(t, t), (0, 2)).reshape(-1, 1, 4) * box.width
    y = model.graph(x)
    least, spread = float(y.min()), float(y.max() - y.min())
    offset = 0.02 * spread + 1e-5
    below = curvverify.verify(model, asked(box, least - offset), OPTIONS)
    assert below.verdict is Verdict.VERIFIED
    assert 0.0 < below.margin_lower <= offset + 1e-6
    above = curvverify.verify(model, asked(box, least + offset), OPTIONS)
    assert above.verdict is Verdict.FALSIFIED
    assert np.all(np.array(above.witness.x if above.witness else [np.nan]) <= upper.flatten().numpy() + 1e-6)


@pytest.mark.parametrize("free", [2, 3])
@pytest.mark.parametrize("seed", range(1, 4))
def test_phases_decide_where_functions_bend(seed: int, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few free inputs, a sigmoid between kinks, and no splits before phases: both sides of a grid's minimum."""
    monkeypatch.setattr("curvverify.verification.run.AFTER", 0.0)
    torch.manual_seed(seed)
    layers = nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
    model = load(nn.Sequential(*layers), shapes=(1, 4))
    box = box_around((1, 4), 1.5, seed)
    upper = box.upper.clone()
    upper[0, 0, free:] = box.lower[0, 0, free:]
    box = type(box)(box.lower.float().double(), upper.float().double())
    t = torch.linspace(0, 1, 301 if free == 2 else 61, dtype=torch.float64)
    grid = torch.cartesian_prod(*[t] * free)
    y = model.graph(box.lower + torch.nn.functional.pad(grid, (0, 4 - free)).reshape(-1, 1, 4) * box.width)
    least, spread = float(y.min()), float(y.max() - y.min())
    offset = 0.03 * spread + 1e-5
    options = Options(timeout=60.0, attack_rounds=1, threads=1, box_inputs=0, refine_iterations=1)
    below = curvverify.verify(model, asked(box, least - offset), options)
    assert below.verdict is Verdict.VERIFIED
    assert 0.0 < below.margin_lower <= offset + 1e-6
    assert curvverify.verify(model, asked(box, least + offset), options).verdict is Verdict.FALSIFIED
