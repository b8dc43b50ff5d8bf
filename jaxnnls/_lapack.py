"""Factorisations, of one matrix; under `jax.vmap`, on a CPU, of a few at a time.

From 0.10.0 until 0.11, jaxlib spreads a batch of matrices over the threads that run programs, and one of these waits
for the others. Two batches at the same time, of one program, of two threads of Python or of two devices, then wait for
each other for ever. (Two cores, 120 x 160 mel bands that nothing fits, solved by two threads: it took a second at most
to hang.) Batches of little work are not spread, so a batch is cut into such ones, and a large matrix goes alone.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

LITTLE = 200_000  # operations, as jaxlib counts them


def in_turn(f: Callable[..., Any], cost: int) -> Callable[..., Any]:
    """f of arrays, of so many operations; under vmap on a CPU, as many lanes at a time as is LITTLE, one at least.

    Lanes that `jax.jit` has spread over devices are gathered for that; in `jax.shard_map` each device has its own.
    """
    guarded = jax.custom_batching.custom_vmap(f)

    @guarded.def_vmap
    def lanes(count: int, batched: list[bool], *args: Array) -> tuple[Any, Any]:
        together = jax.vmap(f, [0 if own else None for own in batched])
        # A divisor, so that no piece is smaller than the others; `jax.export` has counts that are no numbers.
        sizes = range(2, min(count, LITTLE // max(cost, 1)) + 1) if isinstance(count, int) else ()
        few = max((size for size in sizes if count % size == 0), default=1)
        some = in_turn(together, few * cost)  # a vmap around this one makes more lanes of it

        def by_few(*args: Array) -> Any:
            def take(own: tuple[Array, ...]) -> Any:
                rest = iter(own)
                return some(*(next(rest) if b else a for a, b in zip(args, batched)))

            own = tuple(a.reshape(-1, few, *a.shape[1:]) for a, b in zip(args, batched) if b)
            return jax.tree.map(lambda out: out.reshape(count, *out.shape[2:]), lax.map(take, own))

        out = lax.platform_dependent(*args, cpu=some if few == count else by_few, default=together)
        return out, jax.tree.map(lambda _: True, out)

    return guarded


def cholesky(M: Array) -> Array:
    """The lower Cholesky factor of M, whose lower triangle is read; NaN where M is not positive definite. (n, n)."""
    return in_turn(lambda M: lax.linalg.cholesky(M, symmetrize_input=False), len(M) ** 3)(M)


def solve_cholesky(factor: Array, B: Array) -> Array:
    """M^-1 B by the lower Cholesky factor of M. (n, n), (n,) or (n, p)."""
    return in_turn(lambda factor, B: jax.scipy.linalg.cho_solve((factor, True), B), len(factor) * B.size)(factor, B)


def triangular_inverse(R: Array, lower: bool = False) -> Array:
    """R^-1 for a triangular R, (n, n)."""
    identity = jnp.eye(len(R), dtype=R.dtype)
    return in_turn(lambda R, identity: solve_triangular(R, identity, lower=lower), len(R) ** 3)(R, identity)


def qr(A: Array) -> tuple[Array, Array]:
    """Q and R of A = Q R, (m, n) -> (m, p) and (p, n), p the smaller of m and n."""
    return in_turn(lambda A: tuple(jnp.linalg.qr(A)), 4 * _work(A))(A)


def triangle(A: Array) -> Array:
    """R of A = Q R, (m, n) -> (p, n)."""
    return in_turn(lambda A: jnp.linalg.qr(A, mode="r"), 4 * _work(A))(A)


def right_singular(A: Array) -> tuple[Array, Array]:
    """The singular values of A and its right singular vectors, as rows; (n, n) -> (n,) and (n, n)."""
    return in_turn(lambda A: tuple(jnp.linalg.svd(A)[1:]), 10 * _work(A))(A)


def eigh(M: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors, as columns, of a symmetric M; (n, n) -> (n,) and (n, n)."""
    return in_turn(lambda M: tuple(jnp.linalg.eigh(M)), 10 * _work(M))(M)


def eigenvalues(M: Array) -> Array:
    """Those of a symmetric M, ascending; (n, n) -> (n,)."""
    return in_turn(lambda M: jnp.linalg.eigvalsh(M), 10 * _work(M))(M)


def _work(A: Array) -> int:
    return math.prod(A.shape) * min(A.shape)
