"""Steps that change the free set: of coordinate descent, or on a GPU of accelerated projected gradients.

On a CPU, coordinate descent is the cheapest progress there is. On a GPU, where a turn of a loop costs the same for one
variable as for all, products with H are: accelerated gradients (Nesterov 1983; Beck and Teboulle 2009,
doi:10.1137/080716542), from the start again where the last move and the next disagree, column by column (O'Donoghue and
Candes 2015, doi:10.1007/s10208-013-9150-3).

Measured, float32, milliseconds, on one H100 as on a CPU, with larger groups, and with gradients as well; then on two
cores with sweeps, and with gradients there, which take fewer steps of descent but are no cheaper:

    1025 x 64 random    64, 45, 7.4     20, 25    (1.9 steps of descent a column with sweeps, 0.02 with gradients)
    1025 x 128 learnt   539, 457, 67    150, 185  (7.9 and 5.6)
    48 x 12 decay       110, 40, 46     40        (the active set; 21 in a single block)
    128 x 1025 mel      156, 85, 99     550       (the dual; 56 in a single block)

Later, with the same forms, factorisations by products on the CPU and shorter steps of the dual: 7.6, 68, 41 and 72 on
the H100, and 25, 243, 18 and 131 in float64. By the active set, as for few variables, the first two took 19 and 38 ms
there.
"""

import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _device as device
from jaxnnls._loops import fori_loop
from jaxnnls._objective import Problem, einsum

GRADIENT_STEPS = 8  # in the place of a sweep


def hessian_product(problem: Problem, gram: Array | None, v: Array) -> Array:
    """H v, by H itself where it is at hand, else by A. (n, k) -> (n, k)."""
    if gram is not None:
        return einsum("ij,jk->ik", gram, v)
    return einsum("ji,jk->ik", problem.A, einsum("ij,jk->ik", problem.A, v)) + problem.ridge * v


def sweep(problem: Problem, gram: Array | None, x: Array, g: Array, e: Array, count: int | Array) -> Array:
    """`count` sweeps from x + e, where g is the gradient at x. Returns the new x, (n, k).

    The correction e is what is updated: its products with H are small numbers with small rounding errors.
    """
    lower, upper = jnp.broadcast_to(problem.lower, x.shape), jnp.broadcast_to(problem.upper, x.shape)
    method = by_gradients if device.on_gpu() else by_coordinates
    return moved_by(problem, x, method(problem, gram, g, e, lower - x, upper - x, count))


def by_coordinates(
    problem: Problem, gram: Array | None, g: Array, e: Array, low: Array, high: Array, count: int | Array
) -> Array:
    """`count` passes of coordinate descent.

    A variable costs one product with a row of H and one fused loop; bands of 2 to 16 variables, whose products are
    shared, took 1 to 2.5 times as long, two or four variables a turn of the loop 0.9 to 1.2 times, and keeping the
    gradient instead of a product with e 4 to 8 times. It keeps one core busy: two halves of the columns, in loops of
    their own, are run one after the other (1.1 times as long).
    """
    n = len(e)

    def row(a: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(a, i, 1)

    def moved(i: Array, e: Array, slope: Array) -> Array:
        return jnp.clip(row(e, i) - slope, row(low, i), row(high, i))

    if gram is not None:

        def update(i: Array, e: Array) -> Array:
            slope = row(g, i) + einsum("ij,jk->ik", row(gram, i), e)
            return lax.dynamic_update_slice_in_dim(e, moved(i, e, slope), i, axis=0)

        return fori_loop(count, lambda _, e: fori_loop(n, update, e), e)
    assert problem.A is not None
    columns, one = problem.A.T, jnp.isfinite(jnp.sum(problem.A.ravel()[:1]))  # A is, which XLA does not know
    minus = jnp.where(one, jnp.array([1, -1], e.dtype), jnp.nan)

    def update_residual(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        e, r = state  # r = A e
        a = row(columns, i)
        slope = row(g, i) + einsum("ij,jk->ik", a, r) + row(problem.ridge, i) * row(e, i)
        # A product, and so a value of its own: XLA would compute a difference again for r, from an e that it would
        # have to copy first. It drops an optimization_barrier, and a product with constants.
        delta = einsum("i,ik->k", minus, jnp.concatenate([moved(i, e, slope), row(e, i)]))[None]
        return lax.dynamic_update_slice_in_dim(e, row(e, i) + delta, i, axis=0), r + a.T * delta

    state = (e, einsum("ij,jk->ik", problem.A, e))
    e, _ = fori_loop(count, lambda _, state: fori_loop(n, update_residual, state), state)
    return e


def by_gradients(
    problem: Problem, gram: Array | None, g: Array, e: Array, low: Array, high: Array, count: int | Array
) -> Array:
    """As many steps of accelerated projected gradients as are worth `count` sweeps.

    All of the same length 1 / L, where L = max_i sum_j |H_ij| is no less than the largest eigenvalue.
    """
    if gram is not None:
        L = jnp.max(jnp.sum(jnp.abs(gram), axis=1), initial=0)
    else:
        assert problem.A is not None
        size = jnp.abs(problem.A)
        L = jnp.max(einsum("ij,ik->jk", size, jnp.sum(size, axis=1, keepdims=True)) + problem.ridge, initial=0)
    length = 1 / jnp.where(L > 0, L, 1)

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        e, ahead, t = state
        new = jnp.clip(ahead - length * (g + hessian_product(problem, gram, ahead)), low, high)
        move = new - e
        back = jnp.sum((ahead - new) * move, axis=0) > 0
        following = jnp.where(back, 1, (1 + jnp.sqrt(1 + 4 * t * t)) / 2)
        return new, new + jnp.where(back, 0, (t - 1) / following) * move, following

    def steps(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        return fori_loop(GRADIENT_STEPS, step, state)

    return fori_loop(count, steps, (e, e, jnp.ones_like(e[0])))[0]


def moved_by(problem: Problem, x: Array, e: Array) -> Array:
    """x + e, on a bound wherever it is no further from it than rounding. (n, k)."""
    y = x + e
    near = 2 * jnp.finfo(x.dtype).eps * jnp.abs(y)
    lower, upper = problem.lower, problem.upper
    return jnp.clip(jnp.where(y - lower <= near, lower, jnp.where(upper - y <= near, upper, y)), lower, upper)
