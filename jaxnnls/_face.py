"""Linear algebra on the free set F of each column, differentiable; maps (n, k) that are zero off the free set.

`weight` (n, k) is `unit` on the free set and 0 elsewhere: the variables are z = x_scaled / unit, so that null spaces
count in the units of x. Four kinds of faces, the first three by conjugate gradients, without a matrix per column:

    regular_face     H_FF regular: tall A of full column rank or with a ridge, a positive definite Q
    few_face         H_FF regular, of a wide A: a misfit, or a ridge, with no more free variables than rows
    fit_face         A x = b with B = A_F of full row rank: the flagship case, wide A; or a ridge
    gram_face,       anything, by the pseudo-inverse of one matrix per column
    wide_face
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _lapack as lapack
from jaxnnls._conjugate import conjugate_gradients
from jaxnnls._device import group_size
from jaxnnls._loops import once, while_loop
from jaxnnls._objective import Problem, einsum
from jaxnnls._pseudoinverse import pseudoinverse
from jaxnnls._queue import work_off
from jaxnnls._tridiagonal import bands, neighbours, solve

CG_REDUCTION = 8  # eps
# Columns whose matrices are factorised at a time: those on which conjugate gradients fail, 600 of 20,000 decay curves
# and none or two in most problems. On a CPU LAPACK takes one after another in any case, and several take a loop to
# compile for each factorisation (with 128, 24 kernels more, and 1 to 1.15 times the time of value and gradient).
GROUP = 1
GROUP_ELEMENTS = 2**18  # of these matrices, at most


def hessian(problem: Problem) -> Array:
    """H of a scaled problem, (n, n)."""
    if problem.A is not None:
        H = einsum("ij,ik->jk", problem.A, problem.A)
    else:
        assert problem.Q is not None
        H = (problem.Q + problem.Q.T) / 2
    return H + jnp.diag(problem.ridge[:, 0])


def linear_solve(
    product: Callable[[Array], Array],
    direct: Callable[[Array, Array], Array],
    order: int,
    weight: Array,
    r: Array,
    precondition: Callable[[Array], Array] = lambda r: r,
) -> Array:
    """M^+ r for each column, r in the range of M; differentiable where M is regular.

    Parameters
    ----------
    product : callable
        v -> M v, (p, k) -> (p, k), differentiable.
    direct : callable
        From the weights (n, j) of some columns and their r (p, j) to M^+ r, where conjugate gradients fail.
    order : int
        Of the matrices that `direct` factorises, at least the rank of M.
    weight : Array, shape (n, k)
    r : Array, shape (p, k)
    precondition : callable
        r -> about M^-1 r.
    """
    weight = lax.stop_gradient(weight)

    def solve(product: Callable[[Array], Array], r: Array) -> Array:
        # Cotangents may be as small or as large as there are numbers, but not their squares.
        size = jnp.max(jnp.abs(r), axis=0)
        size = jnp.where((size > 0) & (size < jnp.inf), size, 1)
        r = r / size
        target = (CG_REDUCTION * jnp.finfo(r.dtype).eps) ** 2 * jnp.sum(r * r, axis=0)
        d, square = conjugate_gradients(product, r, target, 2 * order, precondition)

        def step(given: tuple[Array, Array], d: Array, own: Array) -> tuple[Array, Array]:
            return direct(*given), jnp.zeros_like(own)

        missed = ~(square <= target)
        return size * work_off(step, (weight, r), d, missed, group_size(GROUP, GROUP_ELEMENTS, order**2))

    return lax.custom_linear_solve(product, r, solve, symmetric=True)


def inverse_times(M: Array, r: Array) -> Array:
    """M^+ r, of matrices (j, p, p) and columns (p, j)."""
    K, _ = pseudoinverse(M)
    return einsum("kij,jk->ik", K, r)


def refined_times(M: Array, r: Array) -> Array:
    """M^-1 r, of positive definite matrices (j, p, p), however close to singular, and columns (p, j).

    Refined as long as each step is less than half of the one before it. What rounding makes indefinite has no factor,
    and is left at what the pseudo-inverse says.
    """
    factor = jax.vmap(lapack.cholesky)(M)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d, size, _ = state
        e = jax.vmap(lapack.solve_cholesky)(factor, (r - einsum("kij,jk->ik", M, d)).T).T
        new = jnp.max(jnp.abs(e), axis=0)
        going = new < size / 2
        return d + jnp.where(going, e, 0), jnp.where(going, new, 0), going

    unknown = jnp.full_like(r[0], jnp.inf)
    return while_loop(lambda state: jnp.any(state[-1]), step, (inverse_times(M, r), unknown, unknown > 0))[0]


def regular_face(H: Array, weight: Array) -> Callable[[Array], Array]:
    """H_FF^-1, where weight is 0 or 1."""

    def product(v: Array) -> Array:
        return weight * einsum("ij,jk->ik", H, weight * v)

    fixed = lax.stop_gradient(H)

    def direct(weight: Array, r: Array) -> Array:
        return inverse_times(einsum("ik,ij,jk->kij", weight, fixed, weight), r)

    # Masked on both sides: the transpose has the other one.
    return lambda r: weight * linear_solve(product, direct, len(H), weight, weight * r)


def few_face(A: Array, ridge: Array, weight: Array) -> Callable[[Array], Array]:
    """H_FF^-1 = (A_F'A_F + ridge I)^-1, where weight is 0 or 1 and no more than m of it are 1; ridge (n, 1)."""
    m = len(A)
    fixed, fixed_ridge = lax.stop_gradient((A, ridge[:, 0]))

    def product(v: Array) -> Array:
        v = weight * v
        return weight * einsum("ij,ik->jk", A, einsum("ij,jk->ik", A, v)) + ridge * v

    def direct(weight: Array, r: Array) -> Array:
        index = jnp.argsort(-weight, axis=0)[:m]  # (m, j): F, filled up with others
        own = jnp.take_along_axis(weight, index, axis=0)
        B = own.T * fixed[:, index.T]  # (m, j, m)
        H = einsum("ikp,ikq->kpq", B, B) + jax.vmap(jnp.diag)((own * fixed_ridge[index]).T)
        d = inverse_times(H, jnp.take_along_axis(r, index, axis=0))
        return jnp.put_along_axis(jnp.zeros_like(r), index, own * d, axis=0, inplace=False)

    return lambda r: weight * linear_solve(product, direct, m, weight, weight * r)


def fit_face(
    A: Array, ridge: Array, inverse: Array, tridiagonal: Array, unit: Array, weight: Array
) -> Callable[[Array], Array]:
    """(B B' + ridge I)^-1, B = A diag(weight); without a ridge (), on the rows of B that are not zero; maps (m, k).

    inverse is about (C C' + ridge I)^-1, C = A diag(unit). The preconditioner is D inverse D, where the diagonal D
    makes up for what the rows lose of their size to the variables that are not free, as in `least_norm` (mel inversion,
    value and gradient: 1.5 to 1.75 times the value alone; without D 2.1 to 2.7). Where B B' is tridiagonal, the
    preconditioner is about its inverse.
    """
    fixed, fixed_ridge = lax.stop_gradient((A, ridge))
    left, rows = (einsum("ij,jk->ik", fixed**2, v**2) + fixed_ridge for v in (lax.stop_gradient(weight), unit))
    alive = (left > 0).astype(A.dtype)
    # Fewer free variables than rows to be fitted, at a kink: B B' is singular, and preconditioned conjugate gradients
    # would find a solution, but not the shortest, so that the modes of differentiation would not agree. Without a
    # preconditioner there is no first step, and these columns are left to the pseudo-inverse.
    regular = (jnp.sum(weight > 0, axis=0) >= jnp.sum(alive, axis=0)).astype(A.dtype)
    D = regular * alive * jnp.sqrt(rows / jnp.where(left > 0, left, 1))

    def product(v: Array) -> Array:
        return alive * einsum("ij,jk->ik", A, weight**2 * einsum("ij,ik->jk", A, alive * v)) + ridge * v

    def direct(weight: Array, r: Array) -> Array:
        M = einsum("ij,jk,lj->kil", fixed, weight**2, fixed)
        ridged = M + fixed_ridge * jnp.eye(len(A), dtype=A.dtype)
        return lax.cond(fixed_ridge > 0, lambda r: refined_times(ridged, r), lambda r: inverse_times(M, r), r)

    squares = lax.stop_gradient(weight) ** 2
    diagonals = jnp.zeros((2 * len(A) - 1, weight.shape[1]), A.dtype)
    diagonals = once(tridiagonal, lambda squares: bands(neighbours(fixed), squares), squares, diagonals)

    # Rows of B may depend on others, in silent bands, and B B' be singular.
    shift = jnp.where(left > 0, jnp.sqrt(jnp.finfo(A.dtype).eps) * left, 1)
    shift = jnp.where(fixed_ridge > 0, fixed_ridge, shift)

    def precondition(v: Array) -> Array:
        by_bands = once(tridiagonal, lambda v: solve(diagonals, shift, regular * v), v, v)
        return jnp.where(tridiagonal, by_bands, D * einsum("ij,jk->ik", inverse, D * v))

    return lambda r: linear_solve(product, direct, len(A), weight, alive * r, precondition)


class Face(NamedTuple):
    """Linear algebra on faces of any kind."""

    solve: Callable[[Array], Array]  # H_FF^+
    pinv: Callable[[Array], Array]  # H_FF^+ where there is no ridge
    null: Callable[[Array], Array]  # I - H_FF^+ H_FF


def gram_face(H: Array, weight: Array) -> Face:
    """By the free block of H itself, for n <= m and for Q."""
    K, N = pseudoinverse(einsum("ik,ij,jk->kij", weight, H, weight))

    def apply(v: Array) -> Array:
        return einsum("kij,jk->ik", K, v)

    return Face(solve=apply, pinv=apply, null=lambda v: jnp.where(weight > 0, einsum("kij,jk->ik", N, v), 0))


def wide_face(A: Array, ridge: Array, weight: Array) -> Face:
    """By the m x m matrices B B' + ridge I, B = A diag(weight), for m < n; ridge () is that of z."""
    m = A.shape[0]
    K, N = pseudoinverse(einsum("ij,jk,lj->kil", A, weight**2, A) + ridge * jnp.eye(m, dtype=A.dtype))
    rank = m - jnp.round(jnp.einsum("kii->k", N))
    deficient = rank < jnp.sum(weight > 0, axis=0)
    positive = ridge > 0

    def ahead(v: Array) -> Array:  # B v
        return einsum("ij,jk->ik", A, weight * v)

    def back(y: Array) -> Array:  # B'y
        return weight * einsum("ij,ik->jk", A, y)

    def times(K: Array, r: Array) -> Array:
        return einsum("kij,jk->ik", K, r)

    def pinv(v: Array) -> Array:
        return back(times(K, times(K, ahead(v))))

    def product(v: Array) -> Array:  # H_FF v
        return back(ahead(v)) + ridge * v

    def solve_ridge(product: Callable[[Array], Array], v: Array) -> Array:
        # Where rows of B depend on others, K has entries of 1 / ridge, whose rounding the division takes to
        # eps / ridge^2. Refinement of y = K B v, in which each step takes off a factor of eps / ridge, leaves
        # eps / ridge, and of the result next to nothing.
        fixed, divisor = lax.stop_gradient((K, jnp.where(positive, ridge, 1)))

        def rough(v: Array) -> Array:
            r, small = ahead(v), jnp.finfo(v.dtype).eps * jnp.max(jnp.abs(v), axis=0)

            def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
                y, z, size, going = state
                dy = times(fixed, r - ahead(z) - ridge * y)
                dz = back(dy)
                new = jnp.max(jnp.abs(dz), axis=0)
                going &= new < size / 2
                return y + jnp.where(going, dy, 0), z + jnp.where(going, dz, 0), new, going & (new > small)

            y = times(fixed, r)
            z = back(y)
            start = y, z, jnp.max(jnp.abs(z), axis=0), jnp.broadcast_to(positive, small.shape)
            _, z, *_ = while_loop(lambda state: jnp.any(state[-1]), step, start)
            return (v - z) / divisor

        u = rough(v)
        return u + rough(v - product(u))

    def solve(v: Array) -> Array:
        return jnp.where(positive, lax.custom_linear_solve(product, v, solve_ridge, symmetric=True), pinv(v))

    return Face(solve, pinv, null=lambda v: jnp.where(deficient & ~positive, v - back(times(K, ahead(v))), 0))
