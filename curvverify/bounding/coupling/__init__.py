"""Curvature coupling: the nonlinear entries of one level pay for their curvature together, not one by one.

Let z = z(x) be the arguments of elementwise functions, z - z0 = G xi + eps with |xi_i| <= 1, and lambda a row's
coefficients.  For any c >= 0 and p > 0

    sum_k lambda_k sigma(z_k) >= sum_k hull_k(z_k) - 1/2 sum_k c_k (z_k - z0_k)^2,
    sum_k c_k (z_k - z0_k)^2  <= lambda_max(C G diag(1/p) G^T C) sum_i p_i    (for eps = 0, C = diag(sqrt c)),

where hull_k is any convex function below lambda_k sigma(z) + c_k/2 (z - z0_k)^2.  The added square straightens every
scalar function; its price is one eigenvalue for all of them, whereas a first-order bound adds up each one's worst case.

* `hulls`: what a table of supporting lines answers.  `table`: for any function, on a grid.  `hinge`: closed form.
* `grid`: enclosures of a function on a grid.  `chain`: lower hulls of many point sets at once.
* `generators`: z - z0 = G xi + eps for any node.  `groups`: generators that share their p.
* `block`: the coupled entries of one level.  `weights`: the choice of (c, p) and the price, row by row.
"""
