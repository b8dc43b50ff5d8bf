"""Columns that come in blocks, from wherever they are: the next one is fetched while one is solved."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnnls._api import lsq_linear
from jaxnnls._problem import DEFAULT_BLOCK_BYTES, as_array, pair
from jaxnnls._solution import Solution


def lsq_linear_blocks(
    A: ArrayLike,
    blocks: Iterable[ArrayLike],
    bounds: tuple[ArrayLike, ArrayLike] = (-jnp.inf, jnp.inf),
    *,
    width: int | None = None,
    ridge: ArrayLike = 0.0,
    l1: ArrayLike = 0.0,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[Solution]:
    """`lsq_linear` for more columns than fit into memory: an iterator of blocks in, an iterator of solutions out.

    While a block is solved, the caller works on the solution before it, and the next block is fetched. At most two
    blocks and two solutions are held, besides what the caller keeps. Not differentiable.

    Parameters
    ----------
    A : array_like, shape (m, n)
        One matrix for all blocks.
    blocks : iterable of array_like, shape (m, k)
        Right-hand sides; k may differ.
    bounds : 2-tuple of array_like
        Lower and upper ones, for all columns of all blocks: scalars, or one entry per variable, length n.
    width : int, optional
        Blocks of fewer columns are filled up to so many, so that all of them are solved by one compiled program; by
        default as many as the first block has.
    ridge, l1, tol, max_steps, block_bytes
        As for `lsq_linear`.

    Yields
    ------
    solution : Solution
        Of NumPy arrays, one for each block, in order.

    Raises
    ------
    ValueError, TypeError
        As for `lsq_linear`, when the block is reached; also for a block without two axes, and for bounds with two.
        What is raised, also by `blocks`, comes after the solutions of all blocks before.

    Examples
    --------
    >>> import jaxnnls, numpy as np
    >>> A = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> blocks = (np.full((2, k), -2.0 + k) for k in (4, 3))
    >>> [sol.x.shape for sol in jaxnnls.lsq_linear_blocks(A, blocks, bounds=(0, 1))]
    [(2, 4), (2, 3)]
    """
    A = jnp.array(as_array("A", A))  # for as long as there are blocks
    bounds = tuple(as_array(label, bound) for label, bound in zip(("lower", "upper"), pair(bounds)))
    for bound in bounds:
        if np.ndim(bound) > 1:
            raise ValueError(f"Expected bounds that all columns share, got shape {np.shape(bound)}; see lsq_linear.")
    if width is not None and not (isinstance(width, int | np.integer) and width > 0):
        raise ValueError(f"Expected width to be a positive int, got {width!r}.")

    def start(block: ArrayLike) -> tuple[Solution, int]:
        nonlocal width
        B = np.asarray(as_array("B", block))
        if B.ndim != 2:
            raise ValueError(f"Expected blocks of shape (m, k), got {B.shape}.")
        k = B.shape[1]
        width = width or k
        if 0 < k < width:
            B = np.pad(B, ((0, 0), (0, width - k)), mode="edge")
        solution = lsq_linear(A, B, bounds, ridge=ridge, l1=l1, tol=tol, max_steps=max_steps, block_bytes=block_bytes)
        return solution, k

    def finish(solution: Solution, k: int) -> Solution:
        return jax.tree.map(lambda a: np.asarray(a)[..., :k], solution)

    running, failure, fetch = None, None, iter(blocks)
    while failure is None:
        done = None
        try:
            block = next(fetch)
            # One after another: JAX would run two solves side by side, for the same processors.
            if running is not None:
                done, running = finish(*running), None
            running = start(block)
        except StopIteration:
            break
        except BaseException as error:  # not before what is done has been delivered
            failure = error
        if done is not None:
            yield done
    if running is not None:
        yield finish(*running)
    if failure is not None:
        raise failure
