"""The derivative where it could be NaN, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import problems
import pytest

import jaxnnls
from jaxnnls._face import refined_times
from jaxnnls._pseudoinverse import pseudoinverse

TALL, WIDE, N = (8, 5), (4, 9), 7


def parts(A, B, lower, ridge, l1, counts=True):
    sol = jaxnnls.lsq_linear(A, B, (lower, jnp.inf), ridge=ridge, l1=l1)
    # Masked by the caller, or by the status, as users do it.
    x, dual, norm = (jnp.where(counts, a, 0) for a in (sol.x, sol.dual, sol.residual_norm))
    return jnp.sum(jnp.sin(x)) + jnp.sum(jnp.sin(dual)) + jnp.sum(norm) + jnp.sum(jnp.where(sol.success, 1.0, 0.0))


gradients = jax.jit(jax.grad(parts, argnums=(0, 1, 2, 3, 4)))
curvatures = jax.jit(jax.grad(lambda *a: sum(jnp.sum(jnp.cos(g)) for g in gradients(*a)), argnums=(0, 1)))


def hard(name, shape, rng):
    """Matrices and right-hand sides at which something is zero, equal or at a kink."""
    A = problems.matrix(rng, *shape)
    m, n = shape
    B = rng.normal(size=(m, N))
    if name == "zero right-hand side":
        B = 0 * B
    if name == "zero matrix":
        A = 0 * A
    if name == "zero column":
        A[:, [1, 3]] = 0
    if name == "junk column":
        A[:, [1, 3]] *= 1e-17
    if name == "duplicate column":
        A[:, 3], A[:, 4] = A[:, 1], -A[:, 2]
    if name == "zero row":
        A[2] = 0
    if name == "kink":
        # x on the bound with multiplier 0, in one variable and in all of them.
        B = A @ np.maximum(rng.normal(size=(n, N)), 0)
        B[:, 0] = 0
    if name == "nothing free":
        B = -np.abs(B)
        A = np.abs(A)
    return A, B


NAMES = [
    "zero right-hand side",
    "zero matrix",
    "zero column",
    "junk column",
    "duplicate column",
    "zero row",
    "kink",
    "nothing free",
]


@pytest.mark.parametrize(
    ("shape", "dtype"), [(TALL, "float64"), (WIDE, "float64"), (WIDE, "float32")], indirect=["dtype"]
)
@pytest.mark.parametrize("name", NAMES)
def test_finite(name, shape, dtype):
    A, B = (a.astype(dtype) for a in hard(name, shape, np.random.default_rng(0)))
    zero = np.zeros((), dtype)
    for g in gradients(A, B, np.zeros((shape[1], 1), dtype), zero, zero, np.ones(N, bool)):
        assert g.dtype == dtype and np.all(np.isfinite(g))


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("name", NAMES)
def test_second_derivative_is_finite(name, shape, x64):
    A, B = hard(name, shape, np.random.default_rng(0))
    for g in curvatures(A, B, np.zeros((shape[1], 1)), np.zeros(()), np.zeros(())):
        assert np.all(np.isfinite(g))


def test_residual_norm_has_derivative_zero_where_it_is_zero(x64):
    A = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    B = np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
    gradient = jax.jit(jax.grad(lambda B: jnp.sum(jaxnnls.lsq_linear(A, B, (0, jnp.inf)).residual_norm)))(B)
    np.testing.assert_allclose(gradient, [[0, 0], [0, 0], [0, 1]], atol=1e-14)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_bad_column_does_not_poison_the_gradient(shape, value, x64):
    rng = np.random.default_rng(1)
    A, B = rng.uniform(size=shape), rng.uniform(size=(shape[0], N))
    broken = B.copy()
    broken[1, 3] = value

    others = np.zeros((shape[1], 1)), np.zeros(()), np.zeros(()), np.arange(N) != 3
    for actual, expected in zip(gradients(A, broken, *others), gradients(A, B, *others)):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


def test_derivative_in_float32_and_half_precision():
    rng = np.random.default_rng(2)
    A, B = rng.uniform(size=TALL).astype("f"), rng.uniform(size=(TALL[0], N)).astype("f")
    gradient = jax.jit(jax.grad(lambda A, B: jnp.sum(jaxnnls.nnls(A, B).astype("f") ** 2)))
    half = gradient(jnp.asarray(A, jnp.bfloat16), jnp.asarray(B, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    full = gradient(
        jnp.asarray(half * 0 + jnp.asarray(A, jnp.bfloat16), jnp.float32), B.astype(jnp.bfloat16).astype("f")
    )
    np.testing.assert_allclose(half.astype("f"), full, atol=0.02 * np.abs(full).max())


def test_integers_have_no_derivative_but_do_not_stop_others():
    A, B = np.arange(1, 7).reshape(3, 2), np.ones((3, 2), "f")
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda B: jnp.sum(jaxnnls.nnls(A, B))))(B)))


def memory(function, *shapes):
    """Bytes of temporaries of the compiled function."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("shape", [(96, 24), (24, 96)])
def test_memory_of_the_gradient(shape, x64):
    m, n = shape

    def loss(A, B):
        sol = jaxnnls.lsq_linear(A, B, (0, jnp.inf), block_bytes=2**20)
        return jnp.sum(sol.x**2) + jnp.sum(sol.residual_norm)

    N = 8192
    columns = 8 * (m + n) * N  # bytes of B and x
    # Several re-layouts of B, x, their tangents and cotangents; one more array A-shaped or a factor per column
    # would be 8 min(m, n)^2 = 4,608 or 8 m n = 18,432 bytes each, against 960 for its part of B and x.
    assert memory(jax.grad(loss, (0, 1)), shape, (m, N)) < 6 * columns


def test_second_derivative_in_the_body_of_a_loop(x64):
    # Reverse mode drops the rule there unless the body is a checkpoint; what comes out must not pass for a number.
    A, b, V = jnp.array([[1.0], [2.0]]), jnp.array([1.0, 2.0]), jnp.array([[1.0], [0.5]])

    def product(wrap):
        def loss(A):
            return jnp.sum(jax.lax.map(wrap(lambda b: jnp.sum(jaxnnls.nnls(A, b) ** 2)), b[None]))

        return jax.jit(lambda A: jax.jvp(jax.grad(loss), (A,), (V,))[1])(A)

    np.testing.assert_allclose(product(jax.checkpoint), [[0], [1.2]], atol=1e-12)
    assert not np.any(np.isfinite(product(lambda f: f)))


@pytest.mark.parametrize(("shape", "options"), [((3, 5), {}), ((5, 3), {"smoothing": 1e-3})])
def test_no_columns_have_a_gradient_of_zero(shape, options):
    A, B = jnp.ones(shape) + jnp.eye(*shape), jnp.zeros((shape[0], 0))
    of_A, of_B = jax.grad(lambda A, B: jnp.sum(jaxnnls.nnls(A, B, **options)), argnums=(0, 1))(A, B)
    np.testing.assert_array_equal(of_A, np.zeros(shape))
    assert of_B.shape == B.shape


def test_columns_that_need_the_general_rule_among_others(x64):
    # More than one group of them: those with two equal columns in their free sets come first, and go back.
    rng = np.random.default_rng(0)
    A = rng.random((9, 5))
    A = np.column_stack([A, A[:, 0]])
    x = rng.random((6, 300)) * (rng.random((6, 300)) < 0.6)
    weight, B = rng.normal(size=x.shape), A @ x + 1e-3 * rng.normal(size=(9, 300))

    def loss(A, B, weight):
        return jnp.sum(weight * jnp.sin(jaxnnls.nnls(A, B)))

    def slope(A, B, weight):  # in a direction: for second derivatives
        return jnp.sum(jnp.cos(B) * jax.grad(loss, 1)(A, B, weight))

    assert 0 < np.count_nonzero(jaxnnls.nnls(A, B)[0]) < 300  # both kinds are there
    for f in (loss, slope):
        of_all = jax.grad(f, (0, 1))(A, B, weight)
        # A third of the columns three times, which count once: by the same programs.
        parts = []
        for i in range(3):
            of_A, of_B = jax.grad(f, (0, 1))(A, np.tile(B[:, i::3], 3), np.tile(weight[:, i::3], 3) / 3)
            parts.append((of_A, of_B.reshape(9, 3, 100).sum(axis=1)))
        np.testing.assert_allclose(of_all[0], sum(part[0] for part in parts), rtol=0, atol=1e-9 * abs(of_all[0]).max())
        for i, part in enumerate(parts):
            np.testing.assert_allclose(of_all[1][:, i::3], part[1], rtol=0, atol=1e-9 * abs(of_all[1]).max())


@pytest.mark.parametrize("shape", [(17, 6), (6, 17)])
def test_plain_columns_are_not_factorised(shape, x64, monkeypatch):
    # Fits and misfits. A cotangent of variables at their bounds is nothing that conjugate gradients could fail on.
    rng = np.random.default_rng(1)
    A = np.abs(problems.matrix(rng, *shape))
    fits = A @ np.maximum(rng.normal(size=(shape[1], N)), 0)
    B = np.hstack([fits, rng.normal(size=(shape[0], N))])
    weight = rng.normal(size=(shape[1], 2 * N))

    x = np.asarray(jaxnnls.nnls(A, B))
    expected = oracle.pullback(problems.Problem(A, B, 0 * x, 0 * x + np.inf), x, weight)
    monkeypatch.setattr("jaxnnls._face.pseudoinverse", lambda M: (jnp.nan * M, jnp.nan * M))
    slope = jax.jit(jax.grad(lambda A, B: jnp.sum(weight * jaxnnls.nnls(A, B)), (0, 1)))
    for value, same in zip(slope(A, B), expected):
        np.testing.assert_allclose(value, same, rtol=0, atol=1e-9 * abs(same).max())


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_cotangents_of_any_size(shape):
    # Of a mean over quiet spectra they were zero: their squares are nothing in float32.
    rng = np.random.default_rng(1)
    A = rng.random(shape, dtype="f")
    B = A @ rng.random((shape[1], N), dtype="f")
    weight = rng.normal(size=(shape[1], N)).astype("f")
    slope = jax.jit(jax.grad(lambda A, B, size: jnp.sum(size * weight * jaxnnls.nnls(A, B)), (0, 1)))
    expected = slope(A, B, np.float32(1))
    for size in (1e-30, 1e-20, 1e20, 1e30):
        for value, same in zip(slope(A, B, np.float32(size)), expected):
            np.testing.assert_allclose(value / np.float32(size), same, rtol=0, atol=1e-4 * abs(same).max())


@jax.jit
def both_ways(A, b, bounds, ridge, tangents, cotangent):
    """x of one column, how it moves with A, b and ridge, and their cotangents; one program for the tests below."""

    def solve(A, b, ridge):
        return jaxnnls.lsq_linear(A, b, bounds, ridge=ridge).x

    x, pullback = jax.vjp(solve, A, b, ridge)
    return x, jax.jvp(solve, (A, b, ridge), tangents)[1], pullback(cotangent)


def wide(rng, dtype=float):
    """A and b of 12 x 40, no bounds but x >= 0, a direction for them and ridge, and a cotangent of x."""
    A, b, dA, db, cotangent = (rng.normal(size=size) for size in ((12, 40), 12, (12, 40), 12, 40))
    A, b, bounds, dA, db, cotangent = jax.tree.map(
        lambda a: np.asarray(a, dtype), (np.abs(A), b, (np.zeros(40), np.full(40, np.inf)), dA, db, cotangent)
    )
    return A, b, bounds, (dA, db, np.zeros((), dtype)), cotangent


@pytest.mark.parametrize(
    ("ridge", "dtype", "tol"), [(1e-5, "float32", 1e-5), (1e-12, "float64", 1e-13)], indirect=["dtype"]
)
def test_small_ridge_of_a_wide_matrix_with_few_free_variables(ridge, dtype, tol):
    # B B' + ridge I is singular but for the ridge, and what its inverse leaves of a vector is divided by it: by 50 % in
    # float32 and by anything in float64 the gradient was wrong.
    A, b, bounds, tangents, cotangent = wide(np.random.default_rng(0), dtype)
    x, _, found = both_ways(A, b, bounds, np.asarray(ridge, dtype), tangents, cotangent)
    assert 0 < np.count_nonzero(x) < 12
    A, b, x, cotangent = (np.asarray(a, float).reshape(len(a), -1) for a in (A, b, x, cotangent))
    expected = oracle.pullback(problems.Problem(A, b, 0 * x, 0 * x + np.inf, ridge), x, cotangent)
    for value, same in zip(found, expected):
        np.testing.assert_allclose(value, same.reshape(value.shape), rtol=0, atol=tol * np.abs(same).max())


@pytest.mark.parametrize(
    ("ridge", "dtype", "tol"), [(1e-4, "float32", 1e-3), (1e-9, "float64", 1e-8)], indirect=["dtype"]
)
def test_small_ridge_of_a_wide_matrix_with_many_free_variables(ridge, dtype, tol):
    # x was at tol / ridge, and its derivatives with it: by 13 % of A_bar in float32, by more than all of ridge_bar.
    A, w, bounds, (dA, db, _), cotangent = wide(np.random.default_rng(20), dtype)
    F = A.T @ w > 0
    assert 12 < np.count_nonzero(F) < 40 and np.min(np.abs(A.T @ w)) > 0.1
    b = (A @ np.maximum(A.T @ w, 0) + ridge * w).astype(dtype)
    tangents = (dA, db, np.ones((), dtype))
    x, dx, cotangents = both_ways(A, b, bounds, np.asarray(ridge, dtype), tangents, cotangent)
    # x_F = B'w with (B B' + ridge I) w = b.
    B, dB, of_x = (a.astype(float) for a in (A[:, F], dA[:, F], cotangent[F]))
    M = B @ B.T + float(np.asarray(ridge, dtype)) * np.eye(12)
    w = np.linalg.solve(M, b.astype(float))
    p = np.linalg.solve(M, B @ of_x)
    (solution, change), of_A = np.zeros((2, 40)), np.zeros((12, 40))
    solution[F] = B.T @ w
    change[F] = dB.T @ w + B.T @ np.linalg.solve(M, db - dB @ solution[F] - B @ (dB.T @ w) - w)
    of_A[:, F] = np.outer(w, of_x - B.T @ p) - np.outer(p, solution[F])
    for value, same in zip((x, dx, *cotangents), (solution, change, of_A, p, -p @ w)):
        np.testing.assert_allclose(value, same, rtol=0, atol=tol * np.abs(same).max())


def test_what_rounding_makes_indefinite_is_not_taken_for_zero():
    # Its Cholesky factor is NaN.
    M = np.ones((1, 2, 2), "f") - np.diag([0, 1e-6]).astype("f")
    np.testing.assert_allclose(refined_times(M, np.full((2, 1), 3, "f")), np.full((2, 1), 1.5), rtol=1e-5)


def test_small_ridge_of_dependent_rows(x64):
    # (A A' + ridge I)^-1 has entries of 1 / ridge, and what rounding leaves of them is divided by it once more. In A u,
    # the cotangent of b, eps / ridge is left.
    ridge = np.asarray(1e-11)
    _, b, (_, upper), tangents, weight = wide(np.random.default_rng(0))
    A = np.random.default_rng(0).random((12, 40))
    A[:3] = A[3:6] + A[6:9]
    of_A, of_b, _ = both_ways(A, b, (-upper, upper), ridge, tangents, weight)[2]
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    x, Au = Vt.T @ (s / (s**2 + ridge) * (U.T @ b)), U @ (s / (s**2 + ridge) * (Vt @ weight))
    u = Vt.T @ (Vt @ weight / (s**2 + ridge)) + (weight - Vt.T @ (Vt @ weight)) / ridge
    expected = np.outer(b - A @ x, u) - np.outer(Au, x)
    np.testing.assert_allclose(of_A, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(of_b, Au, rtol=0, atol=1e-2 * np.abs(Au).max())


def test_a_ridge_that_comes_in(x64):
    # One-sided, and of an exact fit it was 0: dx_F = -dridge H_FF^+ x_F.
    rng = np.random.default_rng(0)
    A, _, bounds, (dA, db, _), cotangent = wide(rng)
    A *= 10 ** rng.uniform(-1, 1, 40)
    b = A @ (rng.random(40) + 1)
    x, dx, (_, _, slope) = both_ways(A, b, bounds, np.zeros(()), (0 * dA, 0 * db, np.ones(())), cotangent)
    F, expected = np.asarray(x > 0), np.zeros(40)
    assert 12 < np.count_nonzero(F) < 40
    expected[F] = -np.linalg.pinv(A[:, F].T @ A[:, F], rcond=1e-12) @ x[F]
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(slope, cotangent @ expected, rtol=1e-9)


def test_modes_agree_where_fewer_variables_are_free_than_rows_are_fitted(x64):
    # A kink, where b outside of the range of B = A_F has no part in x; the reverse mode gave it one.
    A, w, (_, upper), (dA, db, dridge), cotangent = wide(np.random.default_rng(0))
    lower, upper = -upper, A.T @ w - 1
    upper[:3] = np.inf
    x = np.minimum(A.T @ w, upper)  # of least norm
    found, dx, (_, of_b, _) = both_ways(A, A @ x, (lower, upper), np.zeros(()), (0 * dA, db, dridge), cotangent)
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)
    free = np.asarray(found < upper)  # one that should not be may be so by rounding
    assert np.count_nonzero(free) < 12
    pinv = np.linalg.pinv(A[:, free])
    expected = np.zeros(40)
    expected[free] = pinv @ db
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_b, pinv.T @ cotangent[free], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("distance", "tol"), [(1, 1e-12), (1e-3, 1e-7)])
def test_few_free_variables_of_a_wide_matrix(distance, tol, x64):
    # H_FF is regular, whatever the sizes of columns. (By A_F A_F' in the units of x, the derivative was wrong by 4e-8,
    # and throughout where columns are close to others, on which conjugate gradients fail.)
    rng = np.random.default_rng(0)
    A, b, _, tangents, cotangent = wide(rng)
    A[:, 4:8] = A[:, :4] + distance * rng.normal(size=(12, 4))
    size = 10.0 ** np.r_[rng.uniform(-5, 1, 8), rng.uniform(3, 5, 32)]
    upper, weight = np.where(np.arange(40) < 8, np.inf, 0), cotangent[:8]
    _, _, (of_A, of_b, _) = both_ways(A * size, b, (-upper, upper), np.zeros(()), tangents, cotangent * size)
    F = A[:, :8]
    x, u = np.linalg.solve(F.T @ F, F.T @ b), np.linalg.solve(F.T @ F, weight)
    expected = np.outer(b - F @ x, u) - np.outer(F @ u, x)
    for value, same in (((of_A * size)[:, :8], expected), (of_b, F @ u)):
        np.testing.assert_allclose(value, same, rtol=0, atol=tol * np.abs(same).max())


def test_variables_at_a_bound_do_not_move():
    # Also where conjugate gradients fail: free variables whose columns differ by next to nothing.
    t = np.linspace(0, 4, 80)[:, None]
    A = np.exp(-t / np.geomspace(0.1, 10, 12)).astype(np.float32)
    rng = np.random.default_rng(2)
    x = rng.random((12, 60)) * (rng.random((12, 60)) < 0.3)
    B = (A @ x + 1e-2 * rng.normal(size=(80, 60))).astype(np.float32)
    direction = rng.normal(size=A.shape).astype(np.float32)
    x, dx = jax.jvp(lambda A: jaxnnls.nnls(A, B), (A,), (direction,))
    assert np.count_nonzero(x == 0) > 300
    np.testing.assert_array_equal(dx[x == 0], 0)


@pytest.mark.parametrize("lanes", [1, 3])
def test_singular_matrices_among_others_under_vmap(x64, lanes):
    # XLA's minimum of numbers some of which are NaN is NaN for one or two lanes, and of the other numbers for three: as
    # it happens to be compiled, so neither fewer matrices nor smaller ones would do.
    n, rank = 140, 40
    L = np.random.default_rng(0).standard_normal((n, rank)) / np.sqrt(n)
    singular = np.broadcast_to(L @ L.T, (10, n, n))
    K, _ = jax.jit(jax.vmap(pseudoinverse))(np.stack([np.zeros_like(singular)] * (lanes - 1) + [singular]))
    np.testing.assert_allclose(K[-1], np.broadcast_to(np.linalg.pinv(L @ L.T), K[-1].shape), atol=1e-9)
