"""The curved atoms of cvxpy that are smooth inside their domain, and their torch functions.

Written so that every derivative torch takes of them, nested in any order, is finite and right
wherever the mathematics is. Outside its domain an atom gives what cvxpy's own value gives, or NaN.
inv_pos, sqrt, square, inv_prod are powers to cvxpy, harmonic_mean a p-norm with p = -1, and
sum_squares, var a quad_over_lin.
"""

import math
from functools import partial

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayer.declare import terms
from optlayer.declare.cvxpy_internals import averaged
from optlayer.declare.operation import Atom, Function, Operation, Rule, along, curved, entries, linear, same

# --- elementwise ----------------------------------------------------------------------------------


def relative_entropy(x: Tensor, y: Tensor) -> Tensor:
    """x log(x / y), with the limits 0 and -x / y = 0 at x = 0.

    There log(x / y) is infinite, so the border takes the form x log x - x log y; elsewhere that
    form would lose the digits of x close to y.
    """
    inside = x > 0
    quotient = torch.where(inside, x, 1.0) / y
    at_border = -torch.special.entr(x) - torch.xlogy(x, y)
    return torch.where(inside, x * torch.log(quotient), at_border)


def log_one_plus_exp(x: Tensor) -> Tensor:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), both halves analytic across 0."""
    above = x > 0
    return torch.where(above, x, 0.0) + torch.log1p(torch.exp(torch.where(above, -x, x)))


def huber_loss(x: Tensor, M: Tensor) -> Tensor:
    """x^2 up to |x| = M, 2 M |x| - M^2 beyond."""
    return torch.where(x.abs() <= M, x.square(), 2 * M * x.abs() - M.square())


def power(atom: Atom) -> Operation:
    """x^p. cvxpy means x >= 0 by it unless p is 0, 1, 2, 4, 8, ...: odd powers included."""
    if isinstance(atom.p, cp.Parameter):
        return curved(torch.pow, borders={0: same}, hidden=(atom.p,))
    exponent = float(atom.p.value)
    unbounded = exponent == 0 or (exponent >= 1 and math.frexp(exponent)[0] == 0.5)
    return Operation(
        partial(torch.pow, exponent=exponent),
        partial(terms.raised, exponent),
        borders={} if unbounded else {0: same},
    )


# --- of vectors -----------------------------------------------------------------------------------


def quadratic_form(x: Tensor, P: Tensor) -> Tensor:
    """x' P x, of which only the symmetric part of P counts."""
    return x.reshape(-1) @ P @ x.reshape(-1)


def squares_over(atom: Atom) -> Operation:
    """The sum of squares over a positive scalar."""
    squares = along(atom, lambda x, axis: x.square().sum(axis))
    return Operation(
        lambda x, y: squares(x) / y.reshape(()),
        lambda x, y: terms.divided(terms.multiplied(x, x), y),
        borders={1: same},
    )


def weights(atom: Atom) -> np.ndarray:
    """The exponents of a geometric mean, in a shape that broadcasts against its argument."""
    ndim = atom.args[0].ndim
    axes = range(ndim) if atom.axis is None else np.atleast_1d(atom.axis)
    kept = averaged(atom)
    exponents = np.zeros(len(kept))
    exponents[kept] = [float(w) for w in atom.w]
    lengths = [atom.args[0].shape[axis] for axis in axes]
    in_place = exponents.reshape(lengths + [1] * (ndim - len(lengths)), order="F")
    return np.moveaxis(in_place, range(len(lengths)), list(axes))


def geometric_mean(atom: Atom) -> Operation:
    """exp(sum w log x). An entry without weight is free, and so is one that has all of it."""
    exponents = weights(atom)
    weighted_sum = partial(weighted, torch.as_tensor(exponents), along(atom, torch.sum))
    if np.count_nonzero(exponents) == 1:
        return linear(weighted_sum)
    weighing = np.broadcast_to(exponents > 0, atom.args[0].shape)
    mask = torch.tensor(weighing)
    return curved(
        lambda x: weighted_sum(torch.where(mask.to(x.device), x, 1.0).log()).exp(),
        borders={0: entries(atom.args[0].shape, weighing)},
    )


def weighted(w: Tensor, total: Function, x: Tensor) -> Tensor:
    """The total of w x."""
    return total(w.to(x.device, x.dtype) * x)


def p_norm(atom: Atom) -> Operation:
    """(sum |x|^p)^(1/p). Below p = 1 a concave function of x >= 0, the harmonic mean among them."""
    p = float(atom.p)
    absolute = same if p < 1 or p % 2 == 0 else torch.abs
    length = along(atom, lambda x, axis: absolute(x).pow(p).sum(axis).pow(1 / p))
    return curved(length, borders={0: same if p < 1 else length}, apex=p > 1)


# --- of matrices ----------------------------------------------------------------------------------
#
# Factor and substitute: torch's derivatives of Cholesky factors and of triangular solves are right
# in every nesting to third order; those of cholesky_inverse and of LU solves are not in all.


def cholesky(X: Tensor) -> Tensor:
    """The lower factor of the symmetric part of X, NaN where that is not positive definite."""
    factor, info = torch.linalg.cholesky_ex((X + X.mT) / 2)
    return torch.where(info == 0, factor, torch.nan)


def log_determinant(X: Tensor) -> Tensor:
    """2 sum log diag L, where X = L L'."""
    return 2 * cholesky(X).diagonal().log().sum()


def matrix_fraction(V: Tensor, P: Tensor) -> Tensor:
    """tr V' P^-1 V = |L^-1 V|^2, where P = L L'."""
    columns = V.reshape(P.shape[0], -1)
    return torch.linalg.solve_triangular(cholesky(P), columns, upper=False).square().sum()


def trace_of_inverse(X: Tensor) -> Tensor:
    """tr X^-1."""
    return matrix_fraction(torch.eye(X.shape[0], dtype=X.dtype, device=X.device), X)


SMOOTH: dict[str, Rule] = {
    # elementwise
    "exp": lambda atom: curved(torch.exp),
    "xexp": lambda atom: curved(lambda x: x * x.exp()),
    "log": lambda atom: curved(torch.log, borders={0: same}),
    "log1p": lambda atom: curved(torch.log1p, borders={0: lambda x: 1 + x}),
    "entr": lambda atom: curved(torch.special.entr, borders={0: same}),
    "rel_entr": lambda atom: curved(relative_entropy, borders={0: same, 1: same}),
    "kl_div": lambda atom: curved(lambda x, y: relative_entropy(x, y) - x + y, borders={0: same, 1: same}),
    "logistic": lambda atom: curved(log_one_plus_exp),
    "huber": lambda atom: curved(huber_loss, hidden=(atom.M,)),
    "Power": power,
    "PowerApprox": power,
    # of vectors
    "QuadForm": lambda atom: Operation(quadratic_form, lambda x, P: terms.multiplied(x, P, x)),
    "quad_over_lin": squares_over,
    "log_sum_exp": lambda atom: curved(along(atom, torch.logsumexp)),
    "GeoMean": geometric_mean,
    "GeoMeanApprox": geometric_mean,
    "Pnorm": p_norm,
    "PnormApprox": p_norm,
    # of matrices
    "log_det": lambda atom: curved(log_determinant),
    "tr_inv": lambda atom: curved(trace_of_inverse),
    "MatrixFrac": lambda atom: Operation(
        matrix_fraction, lambda V, P: terms.divided(terms.multiplied(V, V), P)
    ),
}
