"""Who solves it: this package and others, each behind one call. A package that is missing is skipped."""

import functools
import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnnls

from .workloads import Floats, Kind, Workload

Call = Callable[[], Any]
EVERY: tuple[Kind, ...] = ("nnls", "gram", "vmap")


@dataclass(frozen=True)
class Peer:
    """A solver.

    Attributes
    ----------
    label, short : str
        For tables, and for plots.
    package, distribution : str
        What is imported, and what it is called on PyPI.
    kinds : tuple of str
        The kinds of workloads it can do.
    prepare : callable
        Does what is not timed, such as moving data to the device; returns the call that is, which returns X.
    compiled : bool
        Whether the first call compiles.
    probe : int
        Columns of the first, shortest run, by which the time of a longer one is estimated.
    """

    label: str
    short: str
    package: str
    distribution: str
    kinds: tuple[Kind, ...]
    prepare: Callable[[Workload], Call]
    compiled: bool
    probe: int = 4

    @property
    def installed(self) -> bool:
        """Whether the package can be imported."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """As installed."""
        return importlib.metadata.version(self.distribution)


def load(module: str) -> Any:
    """Import without warnings: jaxopt says on import that it is no longer maintained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def our_solver(kind: Kind) -> Callable[[Any, Any], jax.Array]:
    """X of a workload's A and B."""
    if kind == "gram":
        return lambda Q, q: jaxnnls.box_qp(Q, q).x
    return jax.vmap(jaxnnls.nnls) if kind == "vmap" else jaxnnls.nnls


def jitted(solver: Callable[[Any, Any], Any], workload: Workload) -> Call:
    """The call of a JAX function of A and B, with both on the device and the result waited for."""
    compiled, A, B = jax.jit(solver), jnp.asarray(workload.A), jnp.asarray(workload.B)
    return lambda: jax.block_until_ready(compiled(A, B))


def prepare_ours(workload: Workload) -> Call:
    return jitted(our_solver(workload.kind), workload)


def prepare_scipy(workload: Workload) -> Call:
    """One column after another, in float64, from data that are contiguous and in float64 already."""
    nnls = load("scipy.optimize").nnls
    A, B = workload.A.astype(np.float64), workload.B.astype(np.float64)
    if workload.kind == "gram":
        A, B = _least_squares(A, B)
    if workload.kind != "vmap":
        A, B = A[None], B[None]
    columns = np.ascontiguousarray(B.swapaxes(1, 2))

    def call() -> Floats:
        X = np.array([[nnls(a, b)[0] for b in many] for a, many in zip(A, columns)]).swapaxes(1, 2)
        return X if workload.kind == "vmap" else X[0]

    return call


def _least_squares(Q: Floats, q: Floats) -> tuple[Floats, Floats]:
    """A and B with A'A = Q and A'B = q, by Cholesky factorisation."""
    try:
        factor = np.linalg.cholesky(Q)
        return factor.T, np.linalg.solve(factor, q)
    except np.linalg.LinAlgError:  # Rounding to float32 may leave Q with eigenvalues below zero.
        values, vectors = np.linalg.eigh(Q)
        root = np.sqrt(np.maximum(values, 1e-9 * values[-1]))
        return root[:, None] * vectors.T, (vectors.T @ q) / root[:, None]


def prepare_librosa(workload: Workload) -> Call:
    nnls = load("librosa.util").nnls  # which imports more
    A, B = workload.A, workload.B
    if B.shape[1] == 1:  # librosa takes a single column to SciPy
        B = B[:, 0]
    return lambda: nnls(A, B).reshape(A.shape[1], -1)


def prepare_optax(workload: Workload, iterations: int) -> Call:
    optax = load("optax")

    def solver(A: jax.Array, B: jax.Array) -> jax.Array:
        return optax.nnls(A, B, iterations)

    return jitted(jax.vmap(solver) if workload.kind == "vmap" else solver, workload)


def prepare_jaxopt(workload: Workload) -> Call:
    """Its default of 500 epochs at most, or until an epoch changes x by rounding errors only."""
    jaxopt = load("jaxopt")
    quadratic = workload.kind == "gram"
    n = workload.A.shape[-1]
    A, B = workload.A.astype(np.float64), workload.B.astype(np.float64)
    Q, q = (A, B) if quadratic else (A.swapaxes(-1, -2) @ A, A.swapaxes(-1, -2) @ B)
    diagonal = np.diagonal(Q, axis1=-2, axis2=-1)[..., None]
    typical = np.median(np.max(np.abs(q) / np.where(diagonal > 0, diagonal, 1), axis=-2))
    method = jaxopt.BoxCDQP(maxiter=500, tol=float(np.finfo(workload.A.dtype).eps * typical))

    def column(Q: jax.Array, q: jax.Array) -> jax.Array:
        zero = jnp.zeros(n, Q.dtype)
        return method.run(zero, params_obj=(Q, -q), params_ineq=(zero, jnp.full(n, jnp.inf, Q.dtype))).params

    def solver(A: jax.Array, B: jax.Array) -> jax.Array:
        Q, q = (A, B) if quadratic else (A.T @ A, A.T @ B)
        return jax.vmap(column, in_axes=(None, 1), out_axes=1)(Q, q)

    return jitted(jax.vmap(solver) if workload.kind == "vmap" else solver, workload)


def prepare_sklearn(workload: Workload) -> Call:
    model = load("sklearn.linear_model").LinearRegression(positive=True, fit_intercept=False)
    return lambda: model.fit(workload.A, workload.B).coef_.T


OURS = Peer("jaxnnls.nnls", "jaxnnls", "jaxnnls", "jaxnnls", EVERY, prepare_ours, True)
SCIPY = Peer("scipy.optimize.nnls", "SciPy", "scipy", "scipy", EVERY, prepare_scipy, False)
PEERS = [
    OURS,
    SCIPY,
    # librosa's columns share an L-BFGS: few of them say little about many.
    Peer("librosa.util.nnls", "librosa", "librosa", "librosa", ("nnls",), prepare_librosa, False, probe=64),
    *(
        Peer(
            f"optax.nnls, {iterations}",
            f"optax {iterations}",
            "optax",
            "optax",
            ("nnls", "vmap"),
            functools.partial(prepare_optax, iterations=iterations),
            True,
        )
        for iterations in (100, 1000, 5000)
    ),
    Peer("jaxopt.BoxCDQP", "jaxopt", "jaxopt", "jaxopt", EVERY, prepare_jaxopt, True),
    Peer("sklearn LinearRegression", "sklearn", "sklearn", "scikit-learn", ("nnls",), prepare_sklearn, False),
]
