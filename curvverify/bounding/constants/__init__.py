"""Lipschitz, curvature and third-order constants of every node: over all of R^n, over a region, or from a point."""
