"""Status: failures are honest, and each column's own. Empty shapes, zero columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import problems
import pytest
from problems import TALL, WIDE

import jaxnnls
from jaxnnls import Status


@functools.cache
def run(max_steps, shape):
    """The number of steps is traced: no recompilation."""
    rng = np.random.default_rng(1)
    if shape == TALL:
        # Decays, nearly collinear.
        A = np.exp(-np.arange(12)[:, None] / np.geomspace(1, 20, 7))
        problem = problems.wide_misfit(rng, *TALL)._replace(A=A, B=A @ rng.uniform(size=(7, 10)) + 0.1)
    else:
        problem = problems.fit(rng, *shape)
    args, options = problem.astype("f8")
    return problem, jax.tree.map(np.asarray, jaxnnls.lsq_linear(*args, **options, max_steps=max_steps))


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("max_steps", [0, 1, 2, 5])
def test_max_steps(max_steps, shape, x64):
    problem, short = run(max_steps, shape)
    full = run(500, shape)[1]
    np.testing.assert_array_equal(full.status, Status.CONVERGED)
    assert np.max(full.nit) > 1
    measured, _ = oracle.optimality(problem, short.x)
    # The measure is that of what is returned; MAX_STEPS wherever it is not optimal, which occurs.
    np.testing.assert_allclose(short.optimality, measured, rtol=1e-6, atol=1e-14)
    optimal = measured <= oracle.attainable(problem, short.x, "f8")
    np.testing.assert_array_equal(short.status[~optimal], Status.MAX_STEPS)
    assert max_steps > 1 or not np.all(optimal)
    # The best so far: feasible, no worse than where it started.
    assert np.all((problem.lower <= short.x) & (problem.upper >= short.x))
    assert np.all(oracle.objective(problem, short.x) <= oracle.objective(problem, 0 * short.x))


@pytest.mark.parametrize("max_steps", [1, 2, 5, 10])
def test_max_steps_is_honest_about_the_norm(max_steps, x64):
    problem, short = run(max_steps, WIDE)
    longer = np.linalg.norm(short.x, axis=0) > 1.002 * np.linalg.norm(problem.X, axis=0)
    np.testing.assert_array_equal(short.status[longer], Status.MAX_STEPS)


@pytest.mark.parametrize("shape", [TALL, WIDE, (10, 12)])
@pytest.mark.parametrize("max_steps", [0, 1, 2, 5, 10])
def test_max_steps_limits_nit(max_steps, shape, x64):
    assert np.max(run(max_steps, shape)[1].nit) <= max_steps


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_nonfinite_columns_are_isolated(shape, x64):
    rng = np.random.default_rng(2)
    problem = problems.fit(rng, *shape, bounded=True)
    args, options = problem.astype("f8")
    clean = jaxnnls.lsq_linear(*args, **options)
    A, B, (lower, upper) = args
    B, lower, upper = B.copy(), lower.copy(), upper.copy()
    B[3, 1], B[0, 4], B[2, 5], lower[2, 7], upper[1, 9] = np.nan, np.inf, -np.inf, np.nan, np.nan
    bad = np.isin(np.arange(10), [1, 4, 5, 7, 9])
    sol = jax.jit(functools.partial(jaxnnls.lsq_linear, **options))(A, B, (lower, upper))
    np.testing.assert_array_equal(sol.status, np.where(bad, Status.NONFINITE, Status.CONVERGED))
    np.testing.assert_array_equal(np.isnan(sol.x), np.broadcast_to(bad, sol.x.shape))
    assert np.all(np.isnan(sol.optimality[bad])) and np.all(np.isnan(sol.dual[:, bad]))
    np.testing.assert_allclose(sol.x[:, ~bad], clean.x[:, ~bad], rtol=0, atol=1e-12)
    np.testing.assert_allclose(sol.dual[:, ~bad], clean.dual[:, ~bad], rtol=0, atol=1e-12)
    for value in (np.nan, np.inf):
        broken = A.copy()
        broken[1, 2] = value
        sol = jaxnnls.lsq_linear(broken, *args[1:], **options)
        np.testing.assert_array_equal(sol.status, Status.NONFINITE)
        assert np.all(np.isnan(sol.x))


def test_infeasible_columns_are_isolated(x64):
    problem = problems.full_rank(np.random.default_rng(3), *TALL, bounded=True)
    args, options = problem.astype("f8")
    A, B, (lower, upper) = args
    lower, upper = lower.copy(), upper.copy()
    lower[0, 1], upper[0, 1] = 1, 0
    lower[2, 3] = np.inf
    upper[2, 3] = np.inf
    upper[2, 5] = lower[2, 5] = -np.inf
    bad = np.isin(np.arange(10), [1, 3, 5])
    sol = jax.jit(functools.partial(jaxnnls.lsq_linear, **options))(A, B, (lower, upper))
    np.testing.assert_array_equal(sol.status, np.where(bad, Status.INFEASIBLE, Status.CONVERGED))
    np.testing.assert_allclose(sol.x[:, ~bad], problem.X[:, ~bad], atol=1e-9)
    assert not np.any(sol.success[bad])


# Q, then per column q, bounds, the status and x.
ZERO = np.diag([1.0, 0.0])
RAY = np.array([[1.0, -1.0], [-1.0, 1.0]])
QP = {
    "down": (ZERO, [1, -1], (0, np.inf), Status.CONVERGED, [1, 0]),
    "flat": (ZERO, [1, 0], (0, np.inf), Status.CONVERGED, [1, 0]),
    "flat, off zero": (ZERO, [1, 0], (0.5, np.inf), Status.CONVERGED, [1, 0.5]),
    "up": (ZERO, [1, 1], (0, np.inf), Status.UNBOUNDED, None),
    "up to a bound": (ZERO, [1, 1], (0, 3), Status.CONVERGED, [1, 3]),
    "down without end": (ZERO, [1, -1], (-np.inf, 3), Status.UNBOUNDED, None),
    "ray": (RAY, [1, 1], (0, np.inf), Status.UNBOUNDED, None),
    "up the ray, not down": (RAY, [-1e-20, -1e-20], (1, np.inf), Status.CONVERGED, [1, 1]),
    "ray with a wall": (RAY, [1, 1], (0, 5), Status.CONVERGED, [5, 5]),
    "across the ray": (RAY, [1, -1], (-np.inf, np.inf), Status.CONVERGED, [0.5, -0.5]),
    "across the ray, x >= 0": (RAY, [1, -1], (0, np.inf), Status.CONVERGED, [1, 0]),
    "zero, up": (0 * RAY, [1, 0], (0, np.inf), Status.UNBOUNDED, None),
    "zero, boxed": (0 * RAY, [1, -1], (-2, 3), Status.CONVERGED, [3, -2]),
    "zero": (0 * RAY, [0, 0], (1, 3), Status.CONVERGED, [1, 1]),
}


@pytest.mark.parametrize("name", QP)
def test_singular_box_qp(name, dtype):
    Q, q, (lower, upper), status, x = QP[name]
    bounds = (np.full(2, lower, dtype), np.full(2, upper, dtype))
    sol = jaxnnls.box_qp(Q.astype(dtype), np.asarray(q, dtype), bounds)
    assert Status(int(sol.status)) == status
    assert np.all((sol.x >= bounds[0]) & (sol.x <= bounds[1]))
    if x is not None:
        np.testing.assert_allclose(sol.x, x, atol=1e-5 if dtype == "f4" else 1e-9)


def test_rays_are_told_by_what_is_left_of_its_curvature(dtype):
    # Far out along a ray rounding is all there is of x'Qx, and may exceed q'x. Few columns are carried off elsewhere.
    told = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        G, ray = rng.normal(size=(3, 6)), rng.uniform(0.1, 1, 6)
        G[:, 5] = -G[:, :5] @ ray[:5] / ray[5]
        G = G.astype(dtype)
        q = rng.normal(size=(6, 50))
        q[5] = (np.abs(rng.normal(size=50)) + 0.1 - ray[:5] @ q[:5]) / ray[5]
        for start in (0, 1):
            sol = jaxnnls.box_qp(G.T @ G, q.astype(dtype), x_init=np.full((6, 50), start, dtype))
            told.append(sol.status == Status.UNBOUNDED)
    assert np.mean(told) > 0.98


def test_a_minimum_is_no_ray():
    # Where free duplicates have drifted apart, x'Qx and q'x are rounding, and tell nothing.
    rng = np.random.default_rng(0)
    n, N = 30, 9
    for _ in range(40):
        A, kind, B = rng.normal(size=(n + 5, n)), rng.integers(0, 3, (n, N)), rng.normal(size=(n + 5, N))
        A[:, 1], A[:, 3] = -2 * A[:, 0], A[:, 2]
        lower, upper = np.where(kind == 0, -np.inf, 0.0), np.where(kind == 1, np.inf, 1.0)
        lower[:4], upper[:4] = -np.inf, np.inf
        Q, q, lower, upper = (a.astype("f") for a in (A.T @ A / (n + 5), A.T @ B, lower, upper))
        assert not np.any(jaxnnls.box_qp(Q, q, (lower, upper)).status == Status.UNBOUNDED)


@pytest.mark.parametrize("junk", [0, 1e-17])
def test_zero_columns_go_where_their_linear_term_wants_them(junk, x64):
    rng = np.random.default_rng(4)
    A = problems.matrix(rng, *TALL)
    A[:, 3] *= junk
    problem = problems.full_rank(rng, *TALL)
    lower, upper = problem.lower.copy(), problem.upper.copy()
    lower[3] = [0, 2, 0, 2, -5, -np.inf, -5, -2, 1, 0]
    upper[3] = [np.inf, 5, 3, 2, -2, np.inf, np.inf, np.inf, np.inf, 0]
    nearest = [0, 2, 0, 2, -2, 0, 0, 0, 1, 0]
    sol = jaxnnls.lsq_linear(A, problem.B, (lower, upper), ridge=np.asarray(0.0), l1=np.asarray(0.0))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_array_equal(sol.x[3], nearest)
    # l1 pulls down, to the lower bound.
    lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
    sol = jaxnnls.lsq_linear(A, problem.B, (lower, upper), ridge=np.asarray(0.0), l1=np.asarray(0.1))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_array_equal(sol.x[3], lower[3])


@pytest.mark.parametrize(
    ("shape", "right"),
    [((0, 3), "vector"), ((3, 0), "vector"), ((0, 0), "two"), ((3, 2), "none"), ((0, 3), "leading")],
)
def test_empty_shapes(shape, right):
    m, n = shape
    batch = {"vector": (), "none": (0,), "two": (2,), "leading": (2, 0)}[right]
    B = np.ones((m,) if right == "vector" else (*batch[:-1], m, batch[-1]), "f")
    sol = jaxnnls.lsq_linear(np.ones(shape, "f"), B, (0, np.inf))
    x_shape = (n,) if right == "vector" else (*batch[:-1], n, batch[-1])
    assert sol.x.shape == sol.dual.shape == sol.active_mask.shape == x_shape
    assert sol.residual_norm.shape == sol.status.shape == sol.optimality.shape == sol.nit.shape == batch
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    if m == 0 or n == 0:
        np.testing.assert_array_equal(sol.x, 0)
        np.testing.assert_allclose(sol.residual_norm, np.sqrt(m), rtol=1e-6)


def test_zero_right_hand_side(dtype):
    args, options = problems.full_rank(np.random.default_rng(6), *TALL).astype(dtype)
    sol = jaxnnls.lsq_linear(args[0], 0 * args[1], args[2], **options)
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_array_equal(sol.x, 0)
    np.testing.assert_array_equal(sol.residual_norm, 0)


def test_raise_if_failed():
    A = jnp.eye(2)
    jaxnnls.raise_if_failed(jaxnnls.lsq_linear(A, jnp.ones((2, 3))))
    B = jnp.ones((2, 3)).at[0, 1].set(jnp.nan)
    with pytest.raises(RuntimeError, match=r"1 of 3 columns failed.\nNONFINITE \(1 column, first 1\)"):
        jaxnnls.raise_if_failed(jaxnnls.lsq_linear(A, B))
    assert all(status.advice for status in Status)


def test_repr_says_how_it_went():
    A, B = np.eye(3, 2, dtype="f4"), np.array([[1, np.nan, 2], [1, 0, np.inf], [0, 0, 0]], "f4")
    solution = jaxnnls.lsq_linear(A, B, (0, np.inf))
    head, line = repr(solution).split("\n")
    assert head.startswith("Solution: x (2, 3) float32, 1 of 3 columns converged, worst optimality ")
    assert line == f"NONFINITE (2 columns, first 1): {Status.NONFINITE.advice}"
    assert repr(jax.tree.map(np.asarray, solution)) == repr(solution)

    single = jaxnnls.lsq_linear(A, B[:, 0])
    assert repr(single).startswith("Solution: x (2,) float32, 1 of 1 columns converged, worst optimality ")
    assert "\n" not in repr(single)

    # Neither a tracer nor a tree of something else has values to look at.
    seen = []
    jax.eval_shape(lambda B: seen.append(repr(jaxnnls.lsq_linear(A, B))), B)
    assert seen[0].startswith("Solution(x=") and repr(jax.tree.map(lambda a: 0, single)).startswith("Solution(x=0,")


def test_solutions_that_are_large_beside_the_data():
    # Optimal at the bounds, with nothing to round, and with a multiplier of zero.
    q = np.array([[1e-3, 0], [1e-3, 0]], "f")
    sol = jaxnnls.box_qp(np.eye(2, dtype="f"), q, bounds=(np.array([[1, 1e5]], "f"), np.array([[2, 2e5]], "f")))
    np.testing.assert_array_equal(sol.status, Status.CONVERGED)
    np.testing.assert_array_equal(sol.x, [[1, 1e5]] * 2)
    # A rod whose ends are held at 300 and 310.
    ends = np.full(12, np.inf, "f")
    lower, upper = -ends, ends
    lower[[0, -1]] = upper[[0, -1]] = 300, 310
    Q = 2 * np.eye(12) - np.eye(12, k=1) - np.eye(12, k=-1)
    Q[0, 0] = Q[-1, -1] = 1
    sol = jaxnnls.box_qp(Q.astype("f"), np.zeros(12, "f"), bounds=(lower, upper))
    assert sol.status == Status.CONVERGED
    np.testing.assert_allclose(sol.x, np.linspace(300, 310, 12), rtol=1e-5)


def test_ridge_and_l1_out_of_range_that_are_traced():
    solve = jax.jit(
        lambda ridge, l1: jaxnnls.lsq_linear(np.eye(2, dtype="f"), np.ones(2, "f"), (0, 2), ridge=ridge, l1=l1)
    )
    assert solve(0.0, 0.0).status == Status.CONVERGED
    for weights in ((-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (0.0, np.nan), (0.0, np.inf)):
        sol = solve(*weights)
        assert sol.status == Status.NONFINITE and np.all(np.isnan(sol.x))
