"""Properties of random problems, few shapes and many examples of each: `python -m tests.fuzz` takes more of both.

Compilation is most of the time, so everything of one shape and dtype is one test.
"""

import itertools

import cases
import checks
import jax
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import Problem

import jaxnnls

# (m, n, N): nothing and one in float64 only; wide, tall, and the most that the issue asked for.
TINY = [(0, 5, 2), (1, 1, 3)]
SHAPES = [(3, 12, 4), (12, 4, 4), (12, 12, 3)]
EXAMPLES = 100


def recipes(n, N):
    """Recipes for problems of n variables and N columns; simpler kinds are first, which failures shrink to."""
    kinds = st.lists(st.sampled_from([*cases.COLUMNS]), min_size=n, max_size=n)
    few = st.lists(st.sampled_from([*cases.COLUMNS]), min_size=1, max_size=2).flatmap(
        lambda some: st.lists(st.sampled_from(some), min_size=n, max_size=n)
    )
    boxes = st.lists(st.sampled_from([*cases.BOXES, cases.MIXED]), min_size=N, max_size=N)
    targets = st.lists(st.sampled_from([*cases.TARGETS]), min_size=N, max_size=N)
    weight = st.just(0.0) | st.sampled_from(cases.WEIGHTS)
    seed = st.integers(0, 2**31 - 1)
    return st.builds(cases.Recipe, kinds | few, boxes, targets, st.booleans(), weight, weight, seed)


def solve(problem, dtype):
    args, options = problem.astype(dtype)
    return jax.tree.map(np.asarray, jaxnnls.lsq_linear(*args, **options))


@pytest.mark.parametrize(
    ("shape", "dtype"), [*itertools.product(SHAPES, ["f4", "f8"]), *itertools.product(TINY, ["f8"])], ids=str
)
def test_properties(shape, dtype):
    (m, n, N), dtype = shape, np.dtype(dtype)
    total = converged = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(recipes(n, N))
    def check(recipe):
        nonlocal total, converged
        problem = cases.build(recipe, m, dtype)
        solution = solve(problem, dtype)
        wrong = checks.violations(problem, solution, dtype)
        assert not wrong, wrong
        other, back = cases.otherwise(np.random.default_rng(recipe.seed), problem, dtype)
        wrong = checks.disagreements(problem, solution, *back(solve(other, dtype)), dtype)
        assert not wrong, wrong
        total += N
        converged += np.count_nonzero(solution.success)

    with jax.enable_x64(dtype == "f8"):
        check()
    # PRECISION is honest, but not the rule.
    assert converged >= 0.9 * total


@pytest.fixture(scope="module")
def solved():
    """A problem with active bounds, a zero column and two minimisers of different norm, and its solution."""
    A = np.array([[1.0, 1, 0, 2], [0, 0, 0, 1], [1, 1, 0, -1]])
    B = np.array([[1.0, -2, 3], [2, 1, 1], [0, 1, -1]])
    problem = Problem(A, B, np.zeros((4, 3)), np.ones((4, 3)))
    with jax.enable_x64(True):
        return problem, solve(problem, np.dtype("f8"))


def moved(solution, problem, x):
    """A solution with another x of which everything else that is said is true."""
    dual, residual = oracle.gradient(problem, x), np.linalg.norm(problem.A @ x - problem.B, axis=0)
    mask = np.where(x == problem.lower, -1, np.where(x == problem.upper, 1, 0)).astype(np.int32)
    optimality = oracle.optimality(problem, x)[0]
    return solution._replace(x=x, dual=dual, residual_norm=residual, optimality=optimality, active_mask=mask)


# What is done to the solution, and what must be said of it.
MUTATIONS = {
    "shape": (lambda s, p: s._replace(x=s.x[:-1]), "shapes"),
    "dtype": (lambda s, p: s._replace(dual=s.dual.astype("f4")), "dtypes"),
    "nan": (lambda s, p: s._replace(x=s.x * np.nan), "not finite"),
    "unbounded": (lambda s, p: s._replace(status=s.status + 5), "status"),
    "nit": (lambda s, p: s._replace(nit=s.nit - 1000), "negative nit"),
    "outside": (lambda s, p: moved(s, p, s.x - 1e-15), "infeasible"),
    "mask": (lambda s, p: s._replace(active_mask=-s.active_mask), "active_mask"),
    "dual": (lambda s, p: s._replace(dual=s.dual + 1e-13), "dual is not"),
    "residual": (lambda s, p: s._replace(residual_norm=s.residual_norm + 1e-13), "residual_norm"),
    "reported": (lambda s, p: s._replace(optimality=s.optimality + 1e-13), "optimality is not what it says"),
    "claimed": (lambda s, p: moved(s, p, np.clip(s.x + 1e-9, 0, 1)), "success, but not optimal"),
    "said": (lambda s, p: s._replace(optimality=s.optimality + 1), "success, but optimality says otherwise"),
    "near a bound": (lambda s, p: moved(s, p, np.clip(s.x, 1e-14, 1 - 1e-14)), "not at its bound"),
    "zero column": (lambda s, p: moved(s, p, s.x + np.eye(4)[:, 2:3]), "a column of zeros"),
    "worse than SciPy": (lambda s, p: moved(s, p, np.clip(s.x + 1e-5, 0, 1)), "objective above"),
    "gap": (lambda s, p: moved(s, p, np.clip(s.x + 1e-5, 0, 1)), "duality gap"),
    "long": (
        lambda s, p: moved(s, p, np.clip(s.x + 1e-2 * np.array([[1], [-1], [0], [0]]), 0, 1)),
        "not of least norm",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_violations_are_found(name, solved):
    problem, solution = solved
    mutate, what = MUTATIONS[name]
    assert checks.violations(problem, solution, np.dtype("f8")) == []
    found = checks.violations(problem, mutate(solution, problem), np.dtype("f8"))
    assert any(line.startswith(what) or what in line for line in found), found


def test_disagreements_are_found(solved):
    problem, solution = solved
    assert checks.disagreements(problem, solution, solution.x, solution.status, np.dtype("f8")) == []
    assert len(checks.disagreements(problem, solution, solution.x + 0.1, solution.status, np.dtype("f8"))) == 3
    assert len(checks.disagreements(problem, solution, solution.x, solution.status + 3, np.dtype("f8"))) == 3
