"""Rigorous upper bounds on the norms of matrices, convolutions and all other linear operators, in one place.

Names tell what is proved: `*_upper` and `*_lower` are bounds in spite of every rounding error, inf where an entry is
not finite; `*_differentiable` and `*_estimate` are for training and for looking, return types of their own and prove
nothing.  `matrix_*` functions take tensors with leading batch axes, the others take operators.
"""

from __future__ import annotations

from curvverify.numerics.norms.convolution import convolution_norm_upper, convolution_schur_upper
from curvverify.numerics.norms.dense import column_norms_upper as matrix_column_norms_upper
from curvverify.numerics.norms.dense import gram_iteration_upper, hadamard_gram_norm_upper
from curvverify.numerics.norms.dense import induced_norm_upper as matrix_induced_norm_upper
from curvverify.numerics.norms.dense import infinity_norm_upper as matrix_infinity_norm_upper
from curvverify.numerics.norms.dense import one_norm_upper as matrix_one_norm_upper
from curvverify.numerics.norms.dense import row_norms_upper as matrix_row_norms_upper
from curvverify.numerics.norms.dense import row_weighted_norm_upper as matrix_row_weighted_norm_upper
from curvverify.numerics.norms.dense import schur_upper as matrix_schur_upper
from curvverify.numerics.norms.dense import spectral_norm_upper as matrix_norm_upper
from curvverify.numerics.norms.dense import weighted_spectral_norm_upper as matrix_weighted_norm_upper
from curvverify.numerics.norms.eigenvalues import largest_eigenvalue_upper, smallest_eigenvalue_lower
from curvverify.numerics.norms.estimates import (
    Estimate,
    Trained,
    hadamard_gram_differentiable,
    largest_eigenvalue_differentiable,
    power_iteration_estimate,
    row_weighted_norm_differentiable,
    spectral_norm_differentiable,
)
from curvverify.numerics.norms.geometry import Geometry
from curvverify.numerics.norms.induced import (
    hadamard_norm_upper,
    induced_norm_upper,
    row_weighted_norm_upper,
    vector_norms_upper,
)
from curvverify.numerics.norms.operators import (
    LinearOperator,
    absolute_sums_upper,
    product_norm_upper,
    spectral_norm_upper,
    spectral_norms_upper,
    weighted_norm_upper,
)
from curvverify.numerics.norms.scaling import frobenius_upper as matrix_frobenius_upper

__all__ = [
    "Estimate",
    "Geometry",
    "LinearOperator",
    "Trained",
    "absolute_sums_upper",
    "convolution_norm_upper",
    "convolution_schur_upper",
    "gram_iteration_upper",
    "hadamard_gram_differentiable",
    "hadamard_gram_norm_upper",
    "hadamard_norm_upper",
    "induced_norm_upper",
    "largest_eigenvalue_differentiable",
    "largest_eigenvalue_upper",
    "matrix_column_norms_upper",
    "matrix_frobenius_upper",
    "matrix_induced_norm_upper",
    "matrix_infinity_norm_upper",
    "matrix_norm_upper",
    "matrix_one_norm_upper",
    "matrix_row_norms_upper",
    "matrix_row_weighted_norm_upper",
    "matrix_schur_upper",
    "matrix_weighted_norm_upper",
    "power_iteration_estimate",
    "product_norm_upper",
    "row_weighted_norm_differentiable",
    "row_weighted_norm_upper",
    "smallest_eigenvalue_lower",
    "spectral_norm_differentiable",
    "spectral_norm_upper",
    "spectral_norms_upper",
    "vector_norms_upper",
    "weighted_norm_upper",
]
