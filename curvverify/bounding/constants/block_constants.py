"""Sharp constants of softmax, log-softmax, log-sum-exp and normalisation over all of R^n.

From l2 to l2, of one group of entries: suprema of the norms of the first, second and third derivative.  Up to a
projection every map here is a gradient, or an entry of one, so that its derivatives are symmetric multilinear forms,
whose norms are attained on the diagonal (Banach, Studia Mathematica 7, 1938): it suffices to bound derivatives along
lines.  The numbers are rounded to nearest; `blocks` rounds up what it makes of them.
"""

from __future__ import annotations

import math

Constants = tuple[float, float, float]
"""Upper bounds on the first, second and third derivative."""

WIDTH = math.sqrt(2.0)
"""v_a - v_b <= sqrt(2) ||v||."""


def cumulant_bounds() -> Constants:
    """Bounds on the second, third and fourth derivative of log sum exp: w^2 / 4, w^3 / (6 sqrt 3), w^4 / 8, w = WIDTH.

    Sound because: along x + t v they are the cumulants of V = v_J, J distributed as softmax(x), and V lies in an
    interval of width w.  Variance: Popoviciu.  Third: at a given mean E (V - EV)^3 is linear in the distribution, hence
    largest for one with two atoms, p (1-p) (1-2p) w^3 <= w^3 / (6 sqrt 3).  Fourth, with variance s and fourth central
    moment in [s^2, w^2 s]: -w^4 / 8 <= -2 s^2 <= k4 <= w^2 s - 3 s^2 <= w^4 / 12.  Attained by two equal entries, by
    p (1-p) = 1/6, by two equal entries.
    """
    return WIDTH**2 / 4.0, WIDTH**3 / (6.0 * math.sqrt(3.0)), WIDTH**4 / 8.0


def entry_bounds() -> Constants:
    """Bounds on the derivatives of one entry q of a softmax: w / 4, w^2 / (6 sqrt 3), w^3 / 8; attained by sigmoid.

    Sound because: with V = v_J - v_i and M_k = E V^k the derivatives along v are -q M_1, q (2 M_1^2 - M_2) and
    -q (M_3 - 6 M_1 M_2 + 6 M_1^3).  Scale to w = 1: V is in [-A, B], A + B = 1, nonzero with probability at most
    c = 1 - q; by symmetry m = M_1 >= 0, so m <= c.
    First: q m <= q c <= 1/4.
    Second: M_2 >= m^2 / c gives q (2 m^2 - M_2) <= q c (2c - 1) <= 1 / (6 sqrt 3).  M_2 <= D m + (1 - D^2) c / 4 with
    D = B - A: for 2 m <= c the best D is 2 m / c, and q (M_2 - 2 m^2) <= max(q c / 4, q^2 c / 2) <= 2/27; for
    2 m > c it is 1, and q (M_2 - 2 m^2) <= (1-m) m (1-2m) <= 1 / (6 sqrt 3).
    Third: let a_k, b_k be the moments of V+ and V- and c_1 + c_2 <= c their masses; m = a_1 - b_1, b = b_1,
    a_1 <= B c_1, b <= A c_2, a_2 <= B a_1, b_2 <= A b, b_3 <= A^2 b, a_3 >= a_2^2 / a_1; N = M_3 - 6 m M_2 + 6 m^3.
    (i) N <= f(m) = a_3 - 6 m a_2 + 6 m^3, convex: f(m) <= max(f(a_1), 0) + (b / a_1) a_3, the last <= A B^2 c_2 and
    q c_2 A B^2 <= 1/27.  With y = a_2 / a_1 and s = a_1 / y <= c_1 and a_3 <= a_2:
    q f(a_1) <= z y^2 (1 - 6 y z), z = s (1-s), which is <= 1/24.
    (ii) 3 m <= B: -N <= 6 m a_2 - a_2^2 / a_1 - 6 m^3 + (6 m A + A^2) b <= 9 m^2 a_1 - 6 m^3 + (6 m A + A^2) b
    = 3 m^3 + (3 m + A)^2 b <= m / 3 + b = a_1 / 3 + 2 b / 3 <= c / 3 + (2/3) A B c <= c / 2, and q c / 2 <= 1/8.
    (iii) 3 m > B: a_2 = B a_1 is worst: -N <= X + b Y, X = B^3 x (6 x - 1 - 6 x^2), Y = 1 + B (6 x - 2), x = m / B,
    and q <= Q - b R, Q = 1 - x, R = 1 / (A B).  At b = 0: z (6 z - 1) <= 1/8, z = x (1-x).  A maximum at b > 0 needs
    X R < Y Q and is at most Y Q^2 / R <= (1-x)^2 (1/4 + (8/27) (3 x - 1)) < 0.113.
    """
    return WIDTH / 4.0, WIDTH**2 / (6.0 * math.sqrt(3.0)), WIDTH**3 / 8.0


def softmax_constants(size: int, shown: int) -> tuple[Constants, Constants]:
    """Of softmax over `size` entries, `shown` of which are output: the gradient of log sum exp; and of one entry."""
    if size == 1:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    rows = entry_bounds()
    return _least(cumulant_bounds(), rows, shown), rows


def logsumexp_constants(size: int, shown: int) -> tuple[Constants, Constants]:
    """Sound because: the gradient is a probability vector, of norm at most 1."""
    second, third, _ = cumulant_bounds() if size > 1 else (0.0, 0.0, 0.0)
    return (1.0, second, third), (1.0, second, third)


def log_softmax_constants(size: int, shown: int) -> tuple[Constants, Constants]:
    """Sound because: the Jacobian I - 1 p^T is a projection, and || I - P || = || P || for projections other than 0
    and I, so it has norm sqrt(n) ||p||; a row e_i - p has norm at most sqrt 2; higher derivatives are those of
    -log sum exp in every entry.
    """
    if size == 1:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    second, third, _ = cumulant_bounds()
    rows = (math.sqrt(2.0), second, third)
    root = math.sqrt(shown)
    return _least((math.sqrt(size), root * second, root * third), rows, shown), rows


def normalisation_constants(spread: float, eps: float) -> Constants:
    """Of y / sqrt(spread ||y||^2 + eps), sharp: 1 / sqrt(eps), 0.8587 sqrt(spread) / eps, 3 spread / eps^1.5.

    With spread = 1/n the curvature is 0.8587 / (sqrt(n) eps).

    Sound because: scaled, it is the gradient h of F(u) = sqrt(1 + ||u||^2), which along any line is
    sqrt(k^2 + t^2) = k g(t / k) with k >= 1 and g(t) = sqrt(1 + t^2).  So the derivatives of h are at most those of g,
    k = 1: g'' <= 1 at 0; |g'''| = 3 t (1 + t^2)^-2.5 <= 1.5 * 0.8^2.5 at 1/2; and
    |g''''| = |12 t^2 - 3| (1 + t^2)^-3.5 <= 3 at 0.  Centring comes before, with norm 1; entry i is the part of the
    gradient along its image P e_i, and its constants are ||P e_i|| times these.
    """
    root = math.sqrt(eps)
    return 1.0 / root, 1.5 * 0.8**2.5 * math.sqrt(spread) / eps, 3.0 * spread / (eps * root)


def _least(whole: Constants, row: Constants, shown: int) -> Constants:
    """The better of a group's constants and sqrt(entries) times those of an entry."""
    first, second, third = (min(a, math.sqrt(shown) * b) for a, b in zip(whole, row, strict=True))
    return first, second, third
