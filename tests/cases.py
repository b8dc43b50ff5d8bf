"""Random problems of every kind, and the same ones in other words: for `test_properties` and `fuzz`.

A `Recipe` says what a problem is made of and has the seed for its numbers. Problems of one shape share a compilation:
each entry of x has its own bounds, and ridge and l1 are traced.
"""

from typing import NamedTuple

import numpy as np
from problems import Problem

# A column of A, given those to its left.
COLUMNS = {
    "normal": lambda rng, left: rng.normal(size=len(left)),
    "positive": lambda rng, left: rng.uniform(size=len(left)),
    "integer": lambda rng, left: rng.integers(-2, 3, len(left)),
    "zero": lambda rng, left: np.zeros(len(left)),
    "junk": lambda rng, left: 1e-17 * rng.normal(size=len(left)),
    "small": lambda rng, left: 10 ** rng.uniform(-5, -1) * rng.normal(size=len(left)),
    "large": lambda rng, left: 10 ** rng.uniform(1, 5) * rng.normal(size=len(left)),
    "duplicate": lambda rng, left: one_of(rng, left),
    "multiple": lambda rng, left: rng.choice([-3, -1, 0.3, 10]) * one_of(rng, left),
    "sum": lambda rng, left: one_of(rng, left) + one_of(rng, left),
    "near": lambda rng, left: one_of(rng, left) + 10 ** rng.uniform(-9, -2) * rng.normal(size=len(left)),
}

# The bounds of one entry of x; "mixed" takes another of them for each entry.
BOXES = {
    "x >= 0": lambda rng: (0, np.inf),
    "free": lambda rng: (-np.inf, np.inf),
    "box": lambda rng: (-rng.uniform(0, 1), rng.uniform(0, 1)),
    "unit": lambda rng: (0, 1),
    "from below": lambda rng: (rng.normal(), np.inf),
    "from above": lambda rng: (-np.inf, rng.normal()),
    "off zero": lambda rng: rng.choice([-1, 1]) * 3 + np.array([-1, 1]) * rng.uniform(0, 1),
    "narrow": lambda rng: rng.normal() + np.array([0, 1e-4]),
    "wide": lambda rng: (-1e4, 1e4),
    "fixed": lambda rng: np.repeat(rng.normal(), 2),
    "fixed at 0": lambda rng: (0, 0),
}
MIXED = "mixed"

# A column of B, given A and a feasible x.
TARGETS = {
    "normal": lambda rng, A, x: rng.normal(size=len(A)),
    "fit": lambda rng, A, x: A @ x,
    "nearly fit": lambda rng, A, x: A @ x + 10 ** rng.uniform(-9, -2) * rng.normal(size=len(A)),
    "integer": lambda rng, A, x: rng.integers(-3, 4, len(A)),
    "against": lambda rng, A, x: -np.abs(A).sum(1),
    "orthogonal": lambda rng, A, x: A @ x + (b := rng.normal(size=len(A))) - A @ np.linalg.lstsq(A, b, 1e-10)[0],
    "zero": lambda rng, A, x: np.zeros(len(A)),
    "small": lambda rng, A, x: 1e-6 * rng.normal(size=len(A)),
    "large": lambda rng, A, x: 1e6 * rng.normal(size=len(A)),
}
WEIGHTS = [0.0, 1e-8, 1e-3, 0.1, 10.0]


class Recipe(NamedTuple):
    """What a problem is made of; its repr makes it again."""

    columns: list[str]  # n of COLUMNS
    boxes: list[str]  # N of BOXES or MIXED
    targets: list[str]  # N of TARGETS
    zero_rows: bool
    ridge: float
    l1: float
    seed: int


def one_of(rng, left):
    """One of the columns of a matrix, or of normal numbers where it has none."""
    return left[:, rng.integers(left.shape[1])] if left.shape[1] else rng.normal(size=len(left))


def draw(rng, n, N):
    """A random recipe: half of the matrices have columns of one kind, half are mixed."""
    kinds = [*COLUMNS] if rng.random() < 0.5 else rng.choice([*COLUMNS], 2)
    columns = [str(rng.choice(kinds)) for _ in range(n)]
    boxes = [str(a) for a in rng.choice([MIXED, MIXED, *BOXES], N)]
    targets = [str(a) for a in rng.choice([*TARGETS], N)]
    ridge, l1 = (float(rng.choice(WEIGHTS)) if rng.random() < 0.3 else 0.0 for _ in range(2))
    return Recipe(columns, boxes, targets, bool(rng.random() < 0.1), ridge, l1, int(rng.integers(2**31)))


def build(recipe, m, dtype):
    """The problem of a recipe with m equations, as the solver sees it in a dtype. Arrays in float64."""
    rng = np.random.default_rng(recipe.seed)
    A = np.zeros((m, 0))
    for kind in recipe.columns:
        A = np.column_stack([A, COLUMNS[kind](rng, A)])
    A = A[:, rng.permutation(A.shape[1])]
    if recipe.zero_rows:
        A[rng.random(m) < 0.3] = 0
    shape = (A.shape[1], len(recipe.boxes))
    lower, upper, B = np.zeros(shape), np.zeros(shape), np.zeros((m, shape[1]))
    for k, (box, target) in enumerate(zip(recipe.boxes, recipe.targets)):
        for j in range(shape[0]):
            lower[j, k], upper[j, k] = BOXES[str(rng.choice([*BOXES])) if box == MIXED else box](rng)
        if recipe.l1:
            lower[:, k] = np.maximum(lower[:, k], 0)
            upper[:, k] = np.maximum(upper[:, k], lower[:, k])
        B[:, k] = TARGETS[target](rng, A, np.clip(rng.normal(size=shape[0]), lower[:, k], upper[:, k]))
    return Problem(A, B, lower, upper, recipe.ridge, recipe.l1).rounded(dtype)


def otherwise(rng, problem, dtype):
    """The same problem in other words: everything permuted, other units for A and B, one of several columns NaN.

    Returns it, and what takes a solution of it back, with NaN in the column that is.
    """
    (m, n), N = problem.A.shape, problem.lower.shape[1]
    rows, variables, columns = (rng.permutation(k) for k in (m, n, N))
    a, c = 2.0 ** rng.integers(-20, 20, 2)
    grid = np.ix_(variables, columns)
    B = c * problem.B[np.ix_(rows, columns)]
    if N > 1 and m:
        B[rng.integers(m), 0] = np.nan
    other = Problem(
        a * problem.A[np.ix_(rows, variables)],
        B,
        problem.lower[grid] * (c / a),
        problem.upper[grid] * (c / a),
        problem.ridge * a * a,
        problem.l1 * a * c,
    )

    def back(solution):
        x = np.zeros((n, N))
        x[grid] = solution.x.astype(float) * (a / c)
        status = np.zeros(N, int)
        status[columns] = solution.status
        return x, status

    return other.rounded(dtype), back
