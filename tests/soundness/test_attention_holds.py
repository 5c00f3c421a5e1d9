"""Tangents of joint operators, and bounds on random attention networks: attacked by samples, corners and ascents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, linear_bounds, row_bounds
from curvverify.bounding.phases import Ascent, decided_lower
from curvverify.bounding.reduced import reduced_network, reducible
from curvverify.bounding.relaxation import Part
from curvverify.bounding.substitution import Rows
from curvverify.graph import load
from curvverify.graph.attention import with_attention
from curvverify.graph.layers import Graph
from curvverify.ops.joint import Form, Joint, MatMul, Softmax, stacked
from curvverify.types import Interval, Verdict
from curvverify.verification.driver import verify
from curvverify.verification.given import Given
from curvverify.verification.options import Options
from tests.soundness.attack import ascent, points
from tests.soundness.test_bounds_hold import ROUNDING, box_around
from tests.soundness.test_phases_hold import arguments, parts_around
from tests.verification.test_verdicts import query

CASES: dict[str, tuple[Joint, list[tuple[int, ...]]]] = {
    "matmul": (MatMul(), [(2, 3, 4), (2, 5, 4)]),
    "matmul of one column": (MatMul(), [(1, 3, 1), (1, 2, 1)]),
    "softmax": (Softmax(), [(2, 3, 5)]),
    "softmax of one": (Softmax(), [(2, 1)]),
}


class Attention(nn.Module):
    """Blocks of two attention heads and a ReLU layer, each with a residual join."""

    def __init__(self, seed: int, blocks: int = 2, tokens: int = 4, width: int = 6, sharp: float = 2.0):
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.width = tokens, width
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(6 * blocks))
        for k, map_ in enumerate(self.maps):
            map_.weight.data *= sharp if k % 6 < 2 else 1.5
        self.last = nn.Linear(tokens * width, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.tokens, self.width)
        for k in range(0, len(self.maps), 6):
            q, key, v = (
                m(x).reshape(-1, self.tokens, 2, self.width // 2).transpose(1, 2) for m in self.maps[k : k + 3]
            )
            mixed = torch.softmax(q @ key.transpose(-1, -2) * 0.6, -1) @ v
            x = x + self.maps[k + 3](mixed.transpose(1, 2).reshape(-1, self.tokens, self.width))
            x = x + self.maps[k + 5](torch.relu(self.maps[k + 4](x)))
        return self.last(x.flatten(1))


def network(seed: int, **sizes: float) -> tuple[Graph, Graph]:
    """An attention network's graph as it is read, and with joint operators."""
    module = Attention(seed, **sizes)  # type: ignore[arg-type]
    plain = load(module, shapes=(1, module.tokens * module.width)).graph
    return plain, with_attention(plain)


def random_forms(shapes: list[tuple[int, ...]], size: float, seed: int) -> tuple[list[Form], Tensor]:
    """Inputs made of 7 generators, a pair of them idle, over two boxes; and their values at points xi (B, K, 7)."""
    generator = torch.Generator().manual_seed(seed)
    xi = 2.0 * torch.rand(2, 4000, 7, generator=generator, dtype=torch.float64) - 1.0
    xi[:, ::2] = xi[:, ::2].sign()
    forms = []
    for shape in shapes:
        centre = 2.0 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        columns = size * torch.randn(2, *shape, 7, generator=generator, dtype=torch.float64)
        columns[..., 5:] = 0.0
        radius = columns.abs().sum(-1) * (1.0 + 1e-15)
        error = 1e-15 * (1.0 + centre.abs() + radius)
        forms.append(Form(Interval(centre - radius - error, centre + radius + error), centre, error, columns))
    return forms, xi


def around(x: Tensor) -> Interval:
    """A box around the middle half of the points (B, K, *S)."""
    low, high = (x.quantile(q, 1) for q in (0.25, 0.75))
    return Interval(low - 1e-9, high + 1e-9)


def within(bounds: Interval, x: Tensor) -> Tensor:
    """Which of the points (B, K, *S) are inside."""
    return ((x >= bounds.lower.unsqueeze(1)) & (x <= bounds.upper.unsqueeze(1))).flatten(2).all(2)


def values_at(form: Form, xi: Tensor) -> Tensor:
    return form.centre.unsqueeze(1) + torch.einsum("b...n,bkn->bk...", form.columns, xi)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", CASES)
def test_tangents_hold(name: str, size: float, outside: bool) -> None:
    """|f(x) - (J x + middle)| <= radius everywhere, and where ascents of single entries make the remainder largest.

    `outside`: bounds that are tighter than the form leave its centre out, as slabs do.
    """
    op, shapes = CASES[name]
    forms, xi = random_forms(shapes, size, 3)
    if outside:
        xi[..., :2] = 0.75 + 0.25 * xi[..., :2]
        forms = [replace(f, interval=around(values_at(f, xi))) for f in forms]
    tangent, image = op.tangent(*forms), op.interval(*(f.interval for f in forms))
    entries = torch.randperm(tangent.middle[0].numel(), generator=torch.Generator().manual_seed(1))[:6].tolist()
    for entry, sign in [(None, 1.0), *((e, s) for e in entries for s in (1.0, -1.0))]:
        tried = xi if entry is None else xi[:, :24]
        for step in range(1 if entry is None else 8):
            tried = tried.detach().requires_grad_(True)
            inputs = [values_at(f, tried) for f in forms]
            value = torch.stack([op.forward(*(x[b] for x in inputs)) for b in range(2)])
            remainder = value - tangent.linear(*inputs) - tangent.middle.unsqueeze(1)
            inside = torch.stack([within(f.interval, x) for f, x in zip(forms, inputs, strict=True)]).all(0)
            slack = 4e-15 * tangent.size.unsqueeze(1)
            held = (remainder.abs() <= tangent.radius.unsqueeze(1) + slack).flatten(2).all(2)
            held &= (value >= image.lower.unsqueeze(1) - 1e-15 * (1.0 + value.abs())).flatten(2).all(2)
            held &= (value <= image.upper.unsqueeze(1) + 1e-15 * (1.0 + value.abs())).flatten(2).all(2)
            assert bool((held | ~inside).all())
            assert entry is not None or bool(inside.any())
            if entry is not None:
                (gradient,) = torch.autograd.grad(sign * remainder.flatten(2)[..., entry].sum(), tried)
                low = 0.5 if outside else -1.0
                ends = [t.clamp(low, 1.0) for t in (tried[..., :2] + 0.5 * 0.7**step * gradient[..., :2].sign(),)]
                others = (tried[..., 2:] + 0.5 * 0.7**step * gradient[..., 2:].sign()).clamp(-1.0, 1.0)
                tried = torch.cat([*ends, others], -1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 1e200, 1e-200])
def test_tangents_of_anything(name: str, bad: float) -> None:
    """Columns and bounds without limit give radii without limit, or none that is wrong; never an error."""
    op, shapes = CASES[name]
    forms, _ = random_forms(shapes, 0.1, 3)
    found = []
    for form in forms:
        columns = form.columns * bad
        radius = columns.abs().sum(-1).nan_to_num(torch.inf, torch.inf)
        whole = Interval(form.centre - 1.01 * radius - 1e-12, form.centre + 1.01 * radius + 1e-12)
        found.append(replace(form, columns=columns, interval=whole, error=form.error.clamp(min=1e-14)))
    tangent = op.tangent(*found)
    if name == "softmax of one":
        assert bool((tangent.radius < 1e-10).all())
    elif bad > 1 or bad != bad:
        assert not bool((tangent.radius < (0.1 if isinstance(op, Softmax) else 1e100)).any())
    else:
        assert bool((tangent.radius < 1e-9).all())


@pytest.mark.parametrize("name", CASES)
def test_adjoint_is_the_transpose(name: str) -> None:
    """y.(J x) = (J^T y).x, for each of stacked and selected tangents."""
    op, shapes = CASES[name]
    forms, xi = random_forms(shapes, 0.2, 5)
    whole = op.tangent(*forms)
    tangent = stacked([whole[torch.tensor([1])], whole])[torch.tensor([1, 2])]
    inputs = [values_at(f, xi)[:, :6] for f in forms]
    found = tangent.linear(*inputs)
    y = torch.randn(found.shape, dtype=torch.float64)
    left = (y * found).flatten(2).sum(-1)
    right = sum((a * x).flatten(2).sum(-1) for a, x in zip(tangent.adjoint(y), inputs, strict=True))
    torch.testing.assert_close(left, right)


def test_the_joint_bound_of_products_is_less_than_the_radii() -> None:
    """With many generators, an ellipsoid around all of them is smaller than the box around the entries."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.zeros(1, 1, 8, dtype=torch.float64)
    columns = 0.01 * torch.randn(1, 1, 8, 400, generator=generator, dtype=torch.float64)
    radius = 1.0000001 * columns.abs().sum(-1)
    form = Form(Interval(-radius, radius), centre, torch.zeros_like(centre), columns)
    by_radii = (radius * radius).sum()
    assert float(MatMul().tangent(form, form).radius) < 0.6 * float(by_radii)


@pytest.mark.parametrize("seed", range(3))
def test_graph_with_attention_is_the_network(seed: int) -> None:
    """The same function of fewer nodes: two products of matrices and one softmax for each block."""
    plain, joint = network(seed)
    x = torch.randn(5, *plain.input_shape, dtype=torch.float64)
    torch.testing.assert_close(joint(x), plain(x), rtol=1e-12, atol=1e-12)
    kinds = [type(n.op) for n in joint]
    assert kinds.count(MatMul) == 4
    assert kinds.count(Softmax) == 2
    assert with_attention(joint) is joint


def attacked(graph: Graph, box: Interval, seed: int) -> list[Tensor]:
    """Values of all nodes at samples, corners and the ends of ascents of entries in front of nonlinear nodes."""
    starts = points(box, 256, seed)
    inputs = [starts]
    generator = torch.Generator().manual_seed(seed)
    for node in (*graph.bounded, graph.output):
        weight = torch.zeros(graph.nodes[node].size, dtype=torch.float64)
        weight[int(torch.randint(len(weight), (), generator=generator))] = 1.0
        for sign in (1.0, -1.0):
            inputs.append(ascent(graph, node, box, sign * weight.reshape(graph.nodes[node].shape), starts[:4]))
    with torch.no_grad():
        return graph.values(torch.cat(inputs))


@pytest.mark.parametrize(("radius", "seed"), [(0.0, 0), (1e-3, 1), (0.03, 0), (0.3, 1)])
def test_bounds_hold(radius: float, seed: int) -> None:
    """Bounds of all nodes, on two boxes together and on parts that take the tangents of the whole."""
    graph = network(seed)[1]
    boxes = [box_around(graph.input_shape, r, seed) for r in (radius, 0.5 * radius)]
    both = Interval(*(torch.cat([getattr(b, side) for b in boxes]) for side in ("lower", "upper")))
    whole = linear_bounds(graph, both, Effort(3))
    part = Part(tangents=whole.select(torch.tensor([0])).tangents)
    inside = linear_bounds(graph, boxes[1], Effort(2), part=part)
    by_intervals = interval_bounds(graph, both)
    for b, box in enumerate(boxes):
        values = attacked(graph, box, seed)
        for node in range(1, len(graph)):
            allowed = ROUNDING * (1.0 + float(values[node].abs().max()))
            found = [whole.intervals[node][b], by_intervals[node][b]]
            found += [inside.intervals[node][0]] if b else []
            for bounds in found:
                assert float((bounds.lower - values[node]).max()) <= allowed
                assert float((values[node] - bounds.upper).max()) <= allowed


def test_bounds_with_tangents_are_tighter() -> None:
    """On a small box, outputs' bounds are narrower than those by planes of single products."""
    for seed in range(3):
        plain, joint = network(seed)
        box = box_around(plain.input_shape, 0.02, seed)
        widths = []
        for graph in (plain, joint):
            relaxation = linear_bounds(graph, box, Effort(1))
            rows = torch.eye(3, dtype=torch.float64)
            both = Rows(torch.cat([rows, -rows]).reshape(1, 6, *graph.output_shape))
            widths.append(float(-row_bounds(relaxation, graph.output, both, Effort(1)).lower.sum()))
        assert widths[1] < widths[0]


@pytest.mark.parametrize("seed", range(2))
def test_phases_of_attention_hold(seed: int) -> None:
    """Parts that fix phases of the ReLUs: no attack in a part gets below its bounds, and the estimates are theirs."""
    graph = network(seed)[1]
    box = box_around(graph.input_shape, 0.05, seed)
    relaxation = linear_bounds(graph, box, Effort(2))
    assert reducible(relaxation, graph.output)
    rows = torch.randn(4, *graph.output_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = reduced_network(relaxation, graph.output, rows, None)
    assert found.hinges.count > 3
    x = torch.cat(
        [points(box, 400, seed), *(ascent(graph, graph.output, box, -r, points(box, 32, seed)) for r in rows)]
    )
    x = x.detach()
    z, values = arguments(graph, found, x), graph(x).flatten(1) @ rows.flatten(1).T
    anchors = torch.cat([values.argmin(0), torch.arange(0, 400, 40)])
    parts = parts_around(found.hinges, z[anchors].sign(), len(anchors), seed)
    index = torch.arange(len(anchors)) % len(rows)
    starts = replace(parts, turns=parts.turns.clamp(0.0, 1.0))
    searched, better = Ascent(found).ascend(index, starts, torch.full((len(index),), 2.0), 6)
    for tried in (parts, better):
        lower = decided_lower(relaxation, graph.output, Rows(rows[index].unsqueeze(0)), found.hinges, tried)
        for b in range(len(anchors)):
            inside = ((parts.signs[b] * z) >= 0).all(1)
            assert float(lower[b]) <= float(values[inside, index[b]].min()) + ROUNDING
        assert float(((lower - searched).abs() / (1.0 + lower.abs())).max()) < 1e-3 or tried is parts


@pytest.mark.parametrize("seed", range(2))
def test_verdicts(seed: int) -> None:
    """A threshold below the proved bound is verified, one that an attack reaches is falsified; bounds that are given,
    of the nodes of the plain graph, leave that graph alone."""
    module = Attention(seed)
    loaded = load(module, shapes=(1, module.tokens * module.width))
    plain, joint = loaded.graph, with_attention(loaded.graph)
    box = box_around(plain.input_shape, 0.02, seed)
    row = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).reshape(joint.output_shape)
    relaxation = linear_bounds(joint, box, Effort(2))
    proved = float(row_bounds(relaxation, joint.output, Rows(row.reshape(1, 1, *row.shape)), Effort(2)).lower)
    reached = float(joint(ascent(joint, joint.output, box, -row, points(box, 32, seed))).flatten(1)[:, 0].min())
    assert proved < reached
    bounds = linear_bounds(plain, box, Effort(1)).intervals
    given = Given({i: bounds[i] for i in plain.bounded}, "test")
    ends = zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True)
    inputs = [f"(and (>= X_{i} {low!r}) (<= X_{i} {high!r}))" for i, (low, high) in enumerate(ends)]
    options = Options(timeout=20.0, threads=1)
    for threshold, source, verdict in (
        (proved - 1e-3, None, Verdict.VERIFIED),
        (reached + 1e-3, None, Verdict.FALSIFIED),
        (reached + 1e-3, given, Verdict.FALSIFIED),
        (proved - 30.0, given, Verdict.VERIFIED),
    ):
        asked = query(len(inputs), 3, *inputs, f"(<= Y_0 {threshold!r})")
        assert verify(loaded, asked, options, given=source).verdict is verdict
