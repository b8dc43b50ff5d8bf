"""The derivative, by named checks: closed form, forward = reverse, central differences, second order; in blocks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import problems
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import jaxnnls

N = 7
SMALL = 7000  # bytes: the solver and the rule need several blocks, of which N is no multiple
TALL, WIDE, SQUARE = (8, 5), (4, 9), (5, 5)


class Theta(NamedTuple):
    """What a solution depends on."""

    A: jax.Array
    B: jax.Array
    lower: jax.Array
    upper: jax.Array
    ridge: jax.Array
    l1: jax.Array


def regular(shape, **options):
    return lambda rng: problems.full_rank(rng, *shape, N, A=problems.matrix(rng, *shape, 3), **options)


def wide(**options):
    return lambda rng: problems.fit(rng, *WIDE, N, A=problems.matrix(rng, *WIDE, 3), margin=0.05, **options)


# Multipliers and distances from bounds are such that the differences below see no kink.
CASES = {
    "tall": regular(TALL),
    "boxed": regular(TALL, bounded=True, fixed=0.1),
    "ridge l1": regular(TALL, ridge=0.3, l1=0.2),
    "wide fit": wide(),
    "wide misfit": lambda rng: problems.vertex(rng, *WIDE, N, condition=3),
    "wide ridge": wide(ridge=0.1, l1=0.01),
    "quadratic": regular(SQUARE, bounded=True),
    "wide ridge without l1": wide(ridge=0.1),
}


def theta_of(name):
    problem = CASES[name](np.random.default_rng(list(CASES).index(name)))
    A, B = problem.A, problem.B
    if name == "quadratic":
        A, B = A.T @ A, A.T @ B
    return Theta(A, B, problem.lower, problem.upper, np.asarray(problem.ridge), np.asarray(problem.l1))


def outputs(theta, quadratic):
    A, B, lower, upper, ridge, l1 = theta
    function = jaxnnls.box_qp if quadratic else jaxnnls.lsq_linear
    sol = function(A, B, (lower, upper), ridge=ridge, l1=l1, block_bytes=SMALL)
    return (sol.x, sol.dual) if quadratic else (sol.x, sol.dual, sol.residual_norm)


def loss(theta, quadratic):
    # Third derivatives do not vanish, and weights tell the entries apart.
    flat = jnp.concatenate([jnp.ravel(a) for a in outputs(theta, quadratic)])
    return jnp.sum(jnp.sin(flat + jnp.arange(flat.size)))


class Compiled(NamedTuple):
    """Jitted functions of a flat theta. Cases of one shape share them."""

    value: object
    jacobians: object  # the value, and its derivative in forward and in reverse mode
    curvature: object  # at many points, along a direction each: the gradient of the loss and its derivative


@functools.cache
def compiled(shape, quadratic):
    name = next(name for name in CASES if theta_of(name).A.shape == shape and (name == "quadratic") == quadratic)
    with jax.enable_x64(True):
        _, unravel = ravel_pytree(jax.tree.map(jnp.asarray, theta_of(name)))

    def value(flat):
        return ravel_pytree(outputs(unravel(flat), quadratic))[0]

    def jacobians(flat):
        # As `jax.jacfwd` and `jax.jacrev`, of one solve.
        out, pushforward = jax.linearize(value, flat)
        forward = jax.vmap(pushforward)(jnp.eye(flat.size)).T
        return out, forward, jax.vmap(jax.linear_transpose(pushforward, flat))(jnp.eye(out.size))[0]

    gradient = jax.grad(lambda flat: loss(unravel(flat), quadratic))
    return Compiled(
        value=jax.jit(jax.vmap(value)),
        jacobians=jax.jit(jacobians),
        curvature=jax.jit(jax.vmap(lambda flat, d: jax.jvp(gradient, (flat,), (d,)))),
    )


def functions(name):
    theta = theta_of(name)
    return compiled(theta.A.shape, name == "quadratic"), np.concatenate([np.ravel(a) for a in theta])


@functools.cache
def jacobians(name):
    with jax.enable_x64(True):
        f, flat = functions(name)
        return tuple(np.asarray(J) for J in f.jacobians(flat))


def jacobian(name):
    return jacobians(name)[2]


def differences(f, flat, directions, h=1e-4):
    """Central differences of fourth order along directions (k, p)."""
    steps = [f(flat + h * t * directions) for t in (-2, -1, 1, 2)]
    return np.asarray(8 * (steps[2] - steps[1]) - (steps[3] - steps[0])) / (12 * h)


def smooth(name):
    """The entries of theta with respect to which there are central differences, (p,) bool."""
    theta = theta_of(name)
    # Infinite bounds do not move; lower = upper cannot cross; below 0 there is neither ridge nor l1.
    loose = np.ravel(theta.lower < theta.upper)
    keep = [np.ones(theta.A.size + theta.B.size, bool)]
    keep += [loose & np.ravel(np.isfinite(bound)) for bound in (theta.lower, theta.upper)]
    return np.concatenate([*keep, [theta.ridge > 0, theta.l1 > 0]])


@pytest.mark.parametrize("name", CASES)
def test_forward_is_reverse(name, x64):
    _, forward, J = jacobians(name)
    assert np.all(np.isfinite(J))
    np.testing.assert_allclose(forward, J, rtol=0, atol=1e-10 * np.abs(J).max())


@pytest.mark.parametrize("name", CASES)
def test_jacobian_is_central_differences(name, x64):
    f, flat = functions(name)
    keep = smooth(name)
    # Also directions in which nothing moves, so that all cases of a shape have as many.
    expected = differences(f.value, flat, np.diag(keep.astype(float)))[keep].T
    J = jacobian(name)[:, keep]
    np.testing.assert_allclose(J, expected, rtol=0, atol=1e-6 * np.abs(J).max())
    # Relative to each row, too: no output hides behind another.
    size = np.linalg.norm(J, axis=1) + 1e-3 * np.abs(J).max()
    assert np.max(np.linalg.norm(J - expected, axis=1) / size) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_hessian(name, x64):
    f, flat = functions(name)
    keep = smooth(name)
    basis = np.eye(keep.size)[keep]
    directions = np.random.default_rng(0).normal(size=(4, len(basis))) @ basis / 8
    gradient, product = (np.asarray(a) for a in f.curvature(np.tile(flat, (4, 1)), directions))
    expected = differences(lambda points: np.asarray(f.curvature(points, directions)[0]), flat, directions)
    # At ridge = 0 the derivative with respect to ridge is one-sided, so it has none.
    size = np.abs(product[:, keep]).max()
    np.testing.assert_allclose(product[:, keep], expected[:, keep], rtol=0, atol=1e-4 * size)
    symmetric, symmetric_l1 = product @ directions.T, product[:, -1]
    np.testing.assert_allclose(symmetric, symmetric.T, rtol=0, atol=1e-9 * np.abs(symmetric).max())
    if theta_of(name).ridge > 0:
        # Also with l1 = 0, which another rule is for than for any above.
        l1 = np.zeros_like(directions)
        l1[:, -1] = 1
        product = np.asarray(f.curvature(np.tile(flat, (4, 1)), l1)[1])
        np.testing.assert_allclose(product[0] @ directions.T, symmetric_l1, rtol=0, atol=1e-9 * np.abs(product).max())
    # The gradient of the loss is that of its parts; the cotangent of Q is symmetric.
    parts = np.concatenate([np.ravel(a) for a in outputs(theta_of(name), name == "quadratic")])
    expected = np.cos(parts + np.arange(parts.size)) @ jacobian(name)
    np.testing.assert_allclose(gradient[0], expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    if name == "quadratic":
        Q_bar = gradient[0, : SQUARE[0] * SQUARE[1]].reshape(SQUARE)
        np.testing.assert_allclose(Q_bar, Q_bar.T, rtol=0, atol=1e-12 * np.abs(Q_bar).max())


@pytest.mark.parametrize("name", [name for name in CASES if name != "quadratic"])
def test_closed_form(name, x64):
    theta = theta_of(name)
    A, B, lower, upper, ridge, _ = theta
    m, n = A.shape
    X = jacobians(name)[0][: n * N].reshape(n, N)
    X_bar = np.random.default_rng(1).normal(size=X.shape)
    A_bar, B_bar = oracle.pullback(problems.Problem(A, B, lower, upper, ridge), X, X_bar)
    cotangent = X_bar.ravel() @ jacobian(name)[: X.size]
    np.testing.assert_allclose(cotangent[: m * n].reshape(m, n), A_bar, rtol=0, atol=1e-9 * np.abs(A_bar).max())
    actual = cotangent[m * n : m * n + B.size].reshape(B.shape)
    np.testing.assert_allclose(actual, B_bar, rtol=0, atol=1e-9 * np.abs(B_bar).max())


def test_bounds_that_move(x64):
    # x follows its bound; a fixed variable follows lower; infinite bounds have derivative 0.
    theta = theta_of("boxed")
    X = jacobians("boxed")[0][: theta.lower.size].reshape(theta.lower.shape)
    J = jacobian("boxed")[: X.size]
    start = theta.A.size + theta.B.size
    by_lower, by_upper = (J[:, start + i * X.size : start + (i + 1) * X.size] for i in (0, 1))
    at_lower, at_upper = np.ravel(theta.lower == X), np.ravel((theta.upper == X) & (theta.lower != X))
    np.testing.assert_allclose(by_lower[at_lower][:, at_lower], np.eye(np.sum(at_lower)), rtol=0, atol=1e-14)
    np.testing.assert_allclose(by_upper[at_upper][:, at_upper], np.eye(np.sum(at_upper)), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(by_upper[:, ~at_upper], 0)
    np.testing.assert_array_equal(by_lower[:, ~at_lower], 0)
    assert np.any(at_lower & np.ravel(theta.upper == X)) and np.any(np.isinf(theta.lower))


def test_vmap_over_matrices(x64):
    theta = theta_of("wide fit")
    A = np.stack([theta.A, theta.A * 1.1, theta.A[::-1]])

    def value(A):
        return loss(theta._replace(A=A), False)

    of_each = jax.jit(jax.vmap(jax.grad(value)))(A)
    of_all = jax.jit(jax.grad(lambda A: jnp.sum(jax.vmap(value)(A))))(A)
    flat = np.stack([np.concatenate([np.ravel(a) for a in theta._replace(A=A[k])]) for k in range(3)])
    for k in range(3):
        same = np.tile(flat[k], (4, 1))
        alone = functions("wide fit")[0].curvature(same, np.zeros_like(same))[0][0, : A[k].size]
        for together in (of_each, of_all):
            np.testing.assert_allclose(np.ravel(together[k]), alone, rtol=0, atol=1e-9 * np.abs(alone).max())


def test_gradient_of_vmap_is_the_gradient_of_each(x64):
    # Of more variables than the active-set method takes.
    rng = np.random.default_rng(5)
    A, B = rng.normal(size=(3, 30, 20)), rng.normal(size=(3, 30, 4))

    def norm(A, B):
        return jnp.sum(jaxnnls.nnls(A, B) ** 2)

    together = jax.jit(jax.grad(lambda A, B: jnp.sum(jax.vmap(norm)(A, B)), argnums=(0, 1)))(A, B)
    for a, b, *batch in zip(A, B, *together):
        x = np.stack([scipy.optimize.nnls(a, column)[0] for column in b.T], axis=1)
        expected = oracle.pullback(problems.Problem(a, b, 0 * x, 0 * x + np.inf), x, 2 * x)
        for value, same in zip(batch, expected):
            np.testing.assert_allclose(value, same, rtol=0, atol=1e-9 * np.abs(same).max())
