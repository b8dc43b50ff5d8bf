"""The same answer however it is asked for: batches, blocks, vmap, warm starts, units."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import TALL, WIDE, Problem

import jaxnnls
from jaxnnls._stages import _result


def unbounded(problem):
    return problem._replace(lower=np.full_like(problem.lower, -np.inf), upper=np.full_like(problem.upper, np.inf))


CASES = {
    "tall": lambda rng: problems.full_rank(rng, *TALL, bounded=True),
    "tall duplicate": lambda rng: problems.fit(rng, *TALL, A=problems.deficient(rng, *TALL, "duplicate")),
    "wide fit": lambda rng: problems.fit(rng, *WIDE),
    "wide misfit": lambda rng: problems.wide_misfit(rng, *WIDE),
    "wide vertex": lambda rng: problems.vertex(rng, *WIDE),
    "tall duplicate unbounded": lambda rng: unbounded(CASES["tall duplicate"](rng)),
    "wide unbounded": lambda rng: unbounded(CASES["wide fit"](rng)),
}
SHAPES = {"tall": TALL, "wide": WIDE}

# One jitted function for each way of asking, so that cases of one shape share a compilation.
solve = jax.jit(jaxnnls.lsq_linear, static_argnames="block_bytes")
over_matrices = jax.jit(jax.vmap(jaxnnls.lsq_linear, in_axes=(0, None, None)))


@jax.jit
def warm(A, B, bounds, x_init):
    return jaxnnls.lsq_linear(A, B, bounds, x_init=x_init)


def problem_of(name):
    return CASES[name](np.random.default_rng(list(CASES).index(name) + 100))


@functools.cache
def reference(name):
    with jax.enable_x64(True):
        args, _ = problem_of(name).astype("f8")
        return jax.tree.map(np.asarray, solve(*args))


def close(sol, expected, tol=1e-9):
    np.testing.assert_array_equal(sol.status, 0)
    scale = np.abs(expected.x).max()  # A has norm 1 to 10
    np.testing.assert_allclose(sol.x, expected.x, rtol=0, atol=tol * scale)
    np.testing.assert_allclose(sol.dual, expected.dual, rtol=0, atol=tol * scale)
    np.testing.assert_allclose(sol.residual_norm, expected.residual_norm, rtol=0, atol=tol * scale)


@pytest.mark.parametrize("name", CASES)
def test_column_alone(name, x64):
    A, B, (lower, upper) = problem_of(name).astype("f8")[0]
    expected = reference(name)
    for k in range(3):
        sol = solve(A, B[:, k], (lower[:, k], upper[:, k]))
        assert sol.x.shape == (A.shape[1],) and sol.status.shape == ()
        close(sol, jax.tree.map(lambda a, k=k: a[..., k], expected))


@pytest.mark.parametrize("name", CASES)
def test_leading_axes(name, x64):
    A, B, (lower, upper) = problem_of(name).astype("f8")[0]

    def split(a):
        return np.moveaxis(a.reshape(a.shape[0], 2, 5), 1, 0)

    sol = solve(A, split(B), (split(lower), split(upper)))
    assert sol.x.shape == (2, A.shape[1], 5) and sol.status.shape == (2, 5)
    sol = sol._replace(x=np.hstack(sol.x), dual=np.hstack(sol.dual), residual_norm=np.hstack(sol.residual_norm))
    close(sol, reference(name))


@pytest.mark.parametrize("block_bytes", [1, 8000])
@pytest.mark.parametrize("name", CASES)
def test_blocks(name, block_bytes, x64):
    # Blocks of one column, and several blocks, the last one padded.
    close(solve(*problem_of(name).astype("f8")[0], block_bytes=block_bytes), reference(name))


@pytest.mark.parametrize("shape", SHAPES)
def test_vmap_over_matrices(shape, x64):
    names = [name for name in CASES if name.startswith(shape)]
    A = np.stack([problem_of(name).A for name in names])
    _, B, bounds = problem_of(names[0]).astype("f8")[0]
    sol = over_matrices(A, B, bounds)
    for k in range(len(names)):
        close(jax.tree.map(lambda a, k=k: a[k], sol), jax.tree.map(np.asarray, solve(A[k], B, bounds)))


@pytest.mark.parametrize("start", ["zero", "solution", "another", "random", "ones", "large", "huge", "nan"])
@pytest.mark.parametrize("name", CASES)
def test_warm_start(name, start, x64):
    args, _ = problem_of(name).astype("f8")
    expected = reference(name)
    noise = np.random.default_rng(0).normal(size=expected.x.shape)
    x_init = {"zero": 0 * noise, "solution": expected.x, "random": noise, "huge": 1e20 * noise, "nan": noise * np.nan}
    x_init |= {"ones": 1 + np.abs(noise), "large": 1e6 * noise}
    A = args[0]  # where bounds leave room for it, another minimiser
    x_init["another"] = expected.x + 2 * (noise - np.linalg.pinv(A) @ (A @ noise))
    close(warm(*args, x_init[start]), expected)


# The condition number of A'A on the free set is the square: up to 1e4, beyond which rounding of the gradient shows.
@pytest.mark.parametrize("condition", [1e1, 1e2])
def test_warm_start_of_ill_conditioned_free_sets(condition, x64):
    rng = np.random.default_rng(1)
    problem = problems.full_rank(rng, *TALL, A=problems.matrix(rng, *TALL, condition))
    args, _ = problem.astype("f8")
    cold = jax.tree.map(np.asarray, solve(*args))
    np.testing.assert_allclose(cold.x, problem.X, atol=1e-9)
    for x_init in (problem.X, rng.normal(size=problem.X.shape), 100 * rng.normal(size=problem.X.shape)):
        close(warm(*args, x_init), cold)


@pytest.mark.parametrize("factor", [1e-18, 1e-9, 1e9, 1e18])
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("name", CASES)
def test_units(name, which, factor, dtype):
    problem = problem_of(name)
    plain = jax.tree.map(lambda a: np.asarray(a, float), solve(*problem.astype(dtype)[0]))
    # min ||c A x - b|| within bounds / c, or min ||A x - c b|| within bounds c.
    c = 1 / factor if which == "A" else factor
    A, B = (problem.A * factor, problem.B) if which == "A" else (problem.A, problem.B * factor)
    sol = solve(*Problem(A, B, problem.lower * c, problem.upper * c).astype(dtype)[0])
    np.testing.assert_array_equal(sol.status, 0)
    tol = 1e-9 if dtype == "f8" else 1e-4
    np.testing.assert_allclose(np.asarray(sol.x, float) / c, plain.x, rtol=0, atol=tol * np.abs(plain.x).max())
    size = plain.residual_norm + np.linalg.norm(problem.B, axis=0)
    norm = np.asarray(sol.residual_norm, float) / (1 if which == "A" else factor)
    np.testing.assert_allclose(norm, plain.residual_norm, rtol=0, atol=tol * size.max())
    np.testing.assert_allclose(np.asarray(sol.dual, float) / factor, plain.dual, rtol=0, atol=tol * size.max())


@pytest.mark.parametrize("power", [-4, -2, 2, 4])
@pytest.mark.parametrize("column", [0, 5])
def test_units_of_one_column(power, column, dtype):
    problem = problems.full_rank(np.random.default_rng(2), *TALL)
    s = np.ones((TALL[1], 1))
    s[column] = 10.0**power
    sol = solve(*problem._replace(A=problem.A * s.T).astype(dtype)[0])
    np.testing.assert_array_equal(sol.status, 0)
    tol = 1e-9 if dtype == "f8" else 1e-4
    np.testing.assert_allclose(sol.x * s, problem.X, rtol=0, atol=tol * np.abs(problem.X).max())


@pytest.mark.parametrize("name", CASES)
def test_order_of_variables_equations_and_columns(name, x64):
    problem, expected = problem_of(name), reference(name)
    rng = np.random.default_rng(3)
    rows, variables, columns = (rng.permutation(k) for k in (len(problem.A), len(problem.lower), 10))
    grid = np.ix_(variables, columns)
    permuted = Problem(
        problem.A[np.ix_(rows, variables)], problem.B[np.ix_(rows, columns)], problem.lower[grid], problem.upper[grid]
    )
    sol = solve(*permuted.astype("f8")[0])
    np.testing.assert_allclose(sol.x, expected.x[grid], rtol=0, atol=1e-9 * np.abs(expected.x).max())


def test_bounds_broadcast(x64):
    rng = np.random.default_rng(4)
    A, B = problems.fit(rng, *TALL)[:2]
    n = A.shape[1]
    upper = rng.uniform(0.1, 1, n)
    expected = solve(A, B, (np.zeros((n, 10)), np.broadcast_to(upper[:, None], (n, 10))))
    # One entry per variable, even as a column; scalars.
    close(solve(A, B, (0.0, upper)), expected)
    close(solve(A, B, (np.zeros((1, 1)), upper[:, None])), expected)
    vector = solve(A, B[:, 0], (0.0, upper))
    close(vector, jax.tree.map(lambda a: a[..., 0], expected))


def test_jitted_is_eager(x64):
    close(jaxnnls.lsq_linear(*problem_of("tall").astype("f8")[0]), reference("tall"), 1e-12)


def test_numbers_do_not_recompile():
    A, B = np.eye(3, 2, dtype="f"), np.ones((3, 2), "f")
    jaxnnls.nnls(A, B, ridge=0.1, l1=0.1, tol=1e-5, max_steps=50).block_until_ready()
    before = _result._cache_size()
    jaxnnls.nnls(A, B, ridge=0.2, l1=0.3, tol=1e-4, max_steps=60).block_until_ready()
    assert _result._cache_size() == before > 0


def test_strict_promotion():
    # Researchers set this for their own models. What it forbids raises while a function is traced.
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for m, n in ((5, 3), (3, 5)):
            A, B = jnp.ones((m, n)) + jnp.eye(m, n), jnp.ones((m, 2))
            jax.eval_shape(jaxnnls.lsq_linear, A, B, (0.0, 1.0))
            jax.eval_shape(jax.grad(lambda A, B: jnp.sum(jaxnnls.nnls(A, B, ridge=0.1))), A, B)
            with pytest.raises(ValueError, match="rank_promotion"):
                jax.eval_shape(lambda A, B: A[0] + A, A, B)
        assert jaxnnls.box_qp(jnp.eye(3), jnp.ones(3)).success


def test_batched_factorisations_do_not_block_each_other():
    # Two that run at the same time wait for each other for ever: without `in_turn` in `_lapack`, two runs of three
    # within three calls.
    code = """
import jax, jaxnnls, numpy as np
rng = np.random.default_rng(0)
A, B = (rng.uniform(size=(64, 120, n)).astype("f4") for n in (60, 2))
solve = jax.jit(jax.vmap(jaxnnls.nnls))
for _ in range(10):
    jax.block_until_ready(solve(A, B))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
