"""The anchored quadratic: lower bounds on a margin of a two-layer network where the largest curvature is too coarse.

h(x) = sum_j w_j sigma(z_j) + c with z = W x + b.  At an anchor x^, for every neuron and z in its range,

    sigma(z) = sigma(z^) + sigma'(z^)(z - z^) + q(z) (z - z^)^2 / 2,    q(z) a mean of secants of sigma' from z^,

so that h(y) >= h(x^) + g.e + 1/2 e^T W^T diag(k) W e, e = y - x^, k = w max q where w < 0, else w min q.  With a
multiplier eta for the ball and mu >= 0 for the box, mu_i (y_i - low_i)(y_i - high_i) <= 0, the bound is the minimum of
a quadratic with the matrix P = eta I + diag(mu) + W^T diag(k) W.  Anchored at the smallest point of ball and box, with
mu taken from its active faces, nothing is lost wherever P > 0.  Otherwise eta is raised, the point sought anew, and
what the bound leaves possible narrows the ranges of the neurons.

Sources: the bound on q for softplus is Jaakkola and Jordan's (1997); anchors, faces and ranges are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.certificates.ball_box import Problem
from curvverify.certificates.evaluate import ROUND, Evaluator, length
from curvverify.numerics.norms import smallest_eigenvalue_lower
from curvverify.numerics.rounding import gamma, round_down, round_up
from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.accuracy import RELATIVE_ERROR
from curvverify.ops.elementwise.softplus import Softplus
from curvverify.ops.linear import Dense, Reshape
from curvverify.types import Interval

ROUNDS = 6
SHIFTS = (0.08, 0.3)
"""By how much eta is raised above what makes P positive definite."""

NEAR = 1e-3
"""So close to the anchor q is bounded by second derivatives, further off by its own formula."""


@dataclass(frozen=True, eq=False)
class Bent:
    """What an anchor gives: h >= beta + g.e + 1/2 e^T P e on ball and box, P's smallest eigenvalue at least `least`."""

    beta: float
    gradient: Tensor
    matrix: Tensor
    least: float
    error: float


@dataclass(eq=False)
class TwoLayers:
    """A network Dense, elementwise, Dense (reshaping aside), whose Hessian is W^T diag(w sigma'') W."""

    evaluator: Evaluator
    weight: Tensor
    bias: Tensor
    bias_size: Tensor
    op: Elementwise
    outer: Tensor

    @classmethod
    def of(cls, evaluator: Evaluator) -> TwoLayers | None:
        """None for any other network."""
        ops = [node.op for node in evaluator.graph.nodes[1:] if not isinstance(node.op, Reshape)]
        chain = all(node.inputs == (i,) for i, node in enumerate(evaluator.graph.nodes[1:]))
        if not chain or len(ops) != 3:
            return None
        first, middle, last = ops
        if not (isinstance(first, Dense) and isinstance(middle, Elementwise) and isinstance(last, Dense)):
            return None
        zero = torch.zeros(len(first.weight), dtype=torch.float64)
        size = first.constant_size
        bias = zero if first.bias is None else first.bias
        same = evaluator.graph.nodes[0].size == first.weight.shape[1] and middle is not None
        return cls(evaluator, first.weight, bias, zero if size is None else size, middle, last.weight) if same else None

    def certified(self, problem: Problem, eps: float, d: Tensor) -> bool:
        """Whether the margin of a problem of one is proved positive over ball and box, given its lowest point found."""
        spot = _Spot(self, problem, eps)
        return spot.certified(d)


@dataclass(eq=False)
class _Spot:
    """One margin over one ball and box."""

    net: TwoLayers
    problem: Problem
    eps: float

    def __post_init__(self) -> None:
        p, net = self.problem, self.net
        self.x0 = p.centre[0]
        self.low = torch.maximum(p.low, round_down(self.x0 - self.eps))
        self.high = torch.minimum(p.high, round_up(self.x0 + self.eps))
        self.w = p.rows[0] @ net.outer
        self.w_error = gamma(len(p.rows[0]) + 4) * (p.rows[0].abs() @ net.outer.abs())
        self.range = self._preactivations()

    def _preactivations(self) -> Interval:
        """Ranges of W x + b over ball and box: for any s > 0, min a.d over them >= min over the box of
        a.d + s/2 (||d||^2 - eps^2), which is separable."""
        net = self.net
        z0 = net.weight @ self.x0 + net.bias
        low, high = self.low - self.x0, self.high - self.x0
        ends = []
        for sign in (1.0, -1.0):
            A = sign * net.weight
            s = _multipliers(A, low, high, self.eps).unsqueeze(1)
            d = (-A / s).maximum(low).minimum(high)
            ends.append(((A + 0.5 * s * d) * d).sum(1) - 0.5 * s.squeeze(1) * self.eps**2)
        size = net.weight.abs() @ (self.x0.abs() + self.eps) + net.bias_size + self.eps * length(net.weight)
        wide = torch.maximum(low.abs(), high.abs())
        slack = 4.0 * gamma(len(self.x0) + 32) * (size + net.weight.abs() @ wide) + 1e-12
        return Interval(z0 + ends[0] - slack, z0 - ends[1] + slack)

    def value(self, x: Tensor) -> tuple[float, Tensor, float, Tensor, float]:
        """h from below, its gradient with its l_2 error, the preactivations with theirs."""
        h = self.net.evaluator.enclose(x[None], self.problem.rows)
        z = self.net.weight @ x + self.net.bias
        error = gamma(len(x) + 8) * (self.net.weight.abs() @ x.abs() + self.net.bias_size)
        return float(h.lower[0]), h.gradient[0], float(h.error[0]), z, float(error.max())

    def bends(self, z: Tensor, error: float) -> Tensor:
        """k (neurons): lower bounds on w q over the ranges; the anchor's preactivation is only known to the error."""
        q = secant_mean(self.net.op, z, error, self.range)
        a, b = self.w - self.w_error, self.w + self.w_error
        corners = torch.stack([a * q.lower, a * q.upper, b * q.lower, b * q.upper])
        return round_down(corners.amin(0))

    def bent(self, x: Tensor, eta: float) -> Bent:
        """The quadratic at the anchor x with the multiplier eta, its faces' multipliers included."""
        h, g, g_error, z, z_error = self.value(x)
        k = self.bends(z, z_error)
        W = self.net.weight
        D = x - self.x0
        G = g + eta * D
        a, b = round_down(self.low - x), round_up(self.high - x)
        width = (b - a).clamp(min=1e-9)
        mu = torch.zeros_like(G)
        mu = torch.where((a > -1e-10) & (G > 0), 2.0 * G / width, mu)
        mu = torch.where((b < 1e-10) & (G < 0), -2.0 * G / width, mu).clamp(max=1e3)
        H = (W.T * k) @ W
        P = 0.5 * (H + H.T)
        P.diagonal().add_(mu + eta)
        size = float((k.abs() * W.square().sum(1)).sum()) * 1.01
        rounding = gamma(2 * len(W) + 16) * size + 1e-12 * (eta + float(mu.max()))
        g1 = G - 0.5 * mu * (a + b)
        beta = h + 0.5 * eta * (float(D.square().sum()) - self.eps**2) + 0.5 * float((mu * a * b).sum())
        wide = torch.maximum(a.abs(), b.abs())
        terms = float(((g.abs() + (eta * D).abs() + mu * width) * wide).sum()) + eta * self.eps**2 + abs(h)
        slack = gamma(len(x) + 64) * 4.0 * terms + ROUND * g_error * float(wide.norm()) + 1e-12
        return Bent(beta - slack, g1, P, 0.0, rounding)

    def certified(self, d: Tensor) -> bool:
        x = (self.x0 + d).maximum(self.low).minimum(self.high)
        eta0 = self._multiplier(x)
        point, eta = x, eta0
        for _ in range(ROUNDS):
            if not bool((self.range.lower <= self.range.upper).all()):
                return True  # no admissible point with h <= 0 is left
            before = float((self.range.upper - self.range.lower).sum())
            here = self.bent(x, eta0)
            least = float(torch.linalg.eigvalsh(here.matrix)[0])
            if least > 1e-6 and self._bound(here, point)[0] > 0.0:
                return True
            for shift in SHIFTS:
                eta = max(eta0, eta0 - least + shift)
                point = self._minimised(x, eta)
                there = self.bent(point, eta)
                bound, centre, inverse = self._bound(there, point)
                if bound > 0.0:
                    return True
                if inverse is not None and not self._narrow(there, point, bound, centre, inverse):
                    return True
            if float((self.range.upper - self.range.lower).sum()) > 0.97 * before:
                return False
        return False

    def _multiplier(self, x: Tensor) -> float:
        """The ball's multiplier at the lowest point: -g.d / ||d||^2 over the entries that are not at a face."""
        _, g, _, _, _ = self.value(x)
        d = x - self.x0
        free = (x > self.low + 1e-9) & (x < self.high - 1e-9)
        square = float(d[free].square().sum())
        if float(d.norm()) < self.eps * (1.0 - 1e-5) or square < 1e-20:
            return 0.0
        return max(0.0, -float((g[free] * d[free]).sum()) / square)

    def _minimised(self, x: Tensor, eta: float, steps: int = 300) -> Tensor:
        """About the smallest point of h + eta/2 ||x - x0||^2 over the box, by accelerated projected gradients."""
        rate = 1.0 / (float(self.problem.top[0]) + eta)
        ahead, t = x, 1.0
        for _ in range(steps):
            _, g = self.net.evaluator.search(ahead[None], self.problem.rows)
            new = (ahead - rate * (g[0] + eta * (ahead - self.x0))).maximum(self.low).minimum(self.high)
            step = new - x
            if float((new - ahead).abs().max()) < 1e-8:
                return new
            if float(((ahead - new) * step).sum()) > 0.0:
                t, ahead = 1.0, new
            else:
                faster = 0.5 * (1.0 + (1.0 + 4.0 * t * t) ** 0.5)
                ahead, t = new + (t - 1.0) / faster * step, faster
            x = new
        return x

    def _bound(self, bent: Bent, point: Tensor) -> tuple[float, Tensor, Tensor | None]:
        """(lower bound on h over ball and box, the quadratic's smallest point, P's inverse); -inf unless P > 0.

        Sound because: with any v, min over e of g.e + 1/2 e^T P e >= g.v + v^T P v / 2 - ||g + P v||^2 / (2 lambda),
        lambda > 0 a lower bound on P's smallest eigenvalue.
        """
        lam = float(smallest_eigenvalue_lower(bent.matrix, bent.error))
        if not lam > 0.0:
            return -torch.inf, torch.zeros_like(point), None
        inverse = torch.linalg.inv(bent.matrix)
        v = -inverse @ bent.gradient
        Pv = bent.matrix @ v
        residual, lost = _residual(bent, v)
        value = float((bent.gradient * v).sum()) + 0.5 * float((v * Pv).sum())
        terms = float((bent.gradient * v).abs().sum() + (v * Pv).abs().sum())
        slack = float(v.norm()) * lost + gamma(len(v) + 16) * terms
        return bent.beta + value - ROUND * (slack + (residual + lost) ** 2 / (2.0 * lam)) - 1e-12, v, inverse

    def _narrow(self, bent: Bent, point: Tensor, bound: float, v: Tensor, inverse: Tensor) -> bool:
        """Ranges of neurons over the points with h <= 0; False where none is left.

        Such e have (e - v)^T P (e - v) <= 2 rho, rho = -bound, so that |W_j (e - v)|^2 <= 2 rho W_j P^-1 W_j^T.
        Sound because: with any R and S = P R W_j^T's residual, W_j P^-1 W_j^T = W_j R (2 I - P R) W_j^T + the residual
        s^T P^-1 s, s = W_j^T - P R W_j^T, at most ||s||^2 / lambda.
        """
        net = self.net
        lam = float(smallest_eigenvalue_lower(bent.matrix, bent.error))
        Y = inverse @ net.weight.T
        S = net.weight.T - bent.matrix @ Y
        lost = (gamma(len(v) + 16) * bent.matrix.abs().sum(1).max() * len(v) ** 0.5 + bent.error) * Y.norm(dim=0)
        lost = lost + gamma(8) * net.weight.norm(dim=1)
        spread = (net.weight.T * Y).sum(0) + (S * Y).sum(0) + ROUND * (S.norm(dim=0) + lost) ** 2 / lam
        slop = gamma(len(v) + 16) * ((net.weight.T * Y).abs().sum(0) + (S * Y).abs().sum(0)) + lost * Y.norm(dim=0)
        spread = spread + 2.0 * slop
        # the residual of v moves the centre: ||P^-1 (g + P v)|| <= ||...|| / lambda
        drift = sum(_residual(bent, v)) / lam * ROUND
        reach = (2.0 * max(-bound, 0.0) * spread).clamp(min=0.0).sqrt() * ROUND + drift * net.weight.norm(dim=1) + 1e-10
        x = point + v
        z = net.weight @ x + net.bias
        reach = reach + 2.0 * gamma(len(v) + 16) * (net.weight.abs() @ (x.abs() + v.abs()) + net.bias_size)
        self.range = self.range.intersect(Interval(z - reach, z + reach))
        return bool((self.range.lower <= self.range.upper).all())


def _residual(bent: Bent, v: Tensor) -> tuple[float, float]:
    """||g + P v|| as computed, and what rounding and P's error may have changed it by."""
    size = float(bent.matrix.abs().sum(1).max()) * float(v.norm()) * len(v) ** 0.5
    lost = gamma(len(v) + 16) * (size + float(bent.gradient.norm())) + bent.error * float(v.norm())
    return float((bent.gradient + bent.matrix @ v).norm()), lost


def secant_mean(op: Elementwise, z: Tensor, error: float, range_: Interval) -> Interval:
    """Bounds on q = 2 (sigma(y) - sigma(z) - sigma'(z)(y - z)) / (y - z)^2 for y in the range, z within `error`.

    Sound because: q is a mean of secants of sigma' from z, hence of sigma'' between; for softplus q rises up to y = -z
    and falls beyond it (q' has the sign of the trapezoidal rule's error, whose second derivative in y is proportional
    to sigma''' and changes sign at 0 only), so that its extremes over an interval are at the ends and at -z.
    """
    low = torch.minimum(range_.lower, z - error)
    high = torch.maximum(range_.upper, z + error)
    hull = Interval(low, high)
    whole = op.derivative(2, hull)
    if not isinstance(op, Softplus):
        found = op.secant(2, z, hull)
        pad = op.derivative(3, hull).magnitude * error * 2.0
        return Interval(
            torch.maximum(whole.lower, found.lower - pad).nan_to_num(nan=-torch.inf),
            torch.minimum(whole.upper, found.upper + pad).nan_to_num(nan=torch.inf),
        )
    pad = op.derivative(3, hull).magnitude * error * 2.0
    ends = [_softplus_mean(op, z, y) for y in (range_.lower, range_.upper)]
    top = _softplus_mean(op, z, (-z).maximum(range_.lower).minimum(range_.upper))
    lower = torch.minimum(ends[0].lower, ends[1].lower) - pad
    upper = top.upper + pad
    return Interval(lower.maximum(whole.lower), upper.minimum(whole.upper))


def _softplus_mean(op: Softplus, z: Tensor, y: Tensor) -> Interval:
    """q at one y, enclosed: by its formula away from z, by second derivatives near it."""
    d = y - z
    near = Interval(torch.minimum(y, z), torch.maximum(y, z))
    close = op.derivative(2, near)
    far = d.abs() > NEAR / op.beta
    step = torch.where(far, d, 1.0)
    a, slope = op.value_and_slope(z)
    b = op.forward(y)
    q = 2.0 * (b - a - slope * step) / step.square()
    size = a.abs() + b.abs() + step.abs() + 2.0 / op.beta
    slack = 8.0 * RELATIVE_ERROR * size / step.square() + 1e-15
    return Interval(
        torch.where(far, (q - slack).maximum(close.lower), close.lower),
        torch.where(far, (q + slack).minimum(close.upper), close.upper),
    )


def _multipliers(A: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """About the best s (rows): the length of clip(-A / s, low, high) is eps; any s > 0 is sound."""
    end = torch.where(A > 0, low, high)
    big = torch.where(A != 0, A, 0.0).norm(dim=1) / eps + 1e-12
    small = 0.05 * big
    for _ in range(14):
        s = (small * big).sqrt()
        d = -A / s.unsqueeze(1)
        d = torch.where(d.abs() < end.abs(), d, end)
        over = d.square().sum(1) > eps * eps
        small, big = torch.where(over, s, small), torch.where(over, big, s)
    return big
