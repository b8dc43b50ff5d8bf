"""Small instances that broke released solvers, or could, and what is known of their solutions.

Long lists of numbers are in `regressions.json`. Instances of one group share a compilation: they are padded with
columns of zeros, which take no part, and with rows of zeros, which add nothing.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import checks
import jax
import numpy as np
import oracle
import pytest
from problems import Problem

import jaxnnls
from jaxnnls import Status

NUMBERS = json.loads(Path(__file__).with_name("regressions.json").read_text())
SCIPY = "https://github.com/scipy/scipy"


class Instance(NamedTuple):
    """One problem; x >= 0 unless it says otherwise."""

    group: tuple[int, int]  # the shape that it is padded to
    where: str  # it was reported
    A: Any
    b: Any
    x: Any  # the solution of least norm; a dict has the indices of what is not 0
    lower: Any = 0.0
    upper: Any = np.inf
    unique: bool = True  # or x is one of several minimisers
    single: bool = True  # whether it is worth solving in float32


def uniform(skip):
    """The next 20 x 6 uniform numbers and 20 more, after some of the generator of seed 0."""
    numbers = np.random.default_rng(0).random(skip + 140)[skip:]
    return numbers[:120].reshape(20, 6), numbers[120:]


def zero_column():
    A, b = uniform(0)
    A[:, 3] = 0
    return A, b


def duplicate_column():
    A, _ = uniform(140)
    A[:, 5] = A[:, 2]
    return A, A @ [1, 0, 2, 0, 0, 0]


def negative():
    A, b = uniform(400)
    return A, -b


def normal_with_zero_rows():
    rng = np.random.RandomState(42)  # the generator of the report
    A = rng.randn(5, 12)
    A[:2] = 0
    return A, rng.randn(5)


def monotone():
    """Rates k / n that do not fall, weighted by sqrt(n): the increments are x >= 0."""
    # fmt: off
    n = np.array([
        3, 2, 0, 1, 1, 1, 3, 8, 14, 16, 29, 23, 41, 47, 53, 57, 67, 76, 103, 89, 97, 94, 85, 95, 78, 78, 78, 77, 73,
        50, 50, 56, 68, 98, 95, 112, 134, 145, 158, 172, 213, 234, 222, 215, 216, 216, 206, 183, 135, 156, 110, 92,
        63, 60, 52, 29, 20, 16, 12, 5, 5, 5, 1, 2, 3, 0, 2,
    ])
    k = np.array([
        *[0] * 20, 1, 0, 2, 1, 4, 8, 8, 17, 21, 28, 38, 67, 66, 95, 136, 150, 188, 195, 256, 238, 285, 339, 297,
        317, 322, 285, 240, 266, 225, 213, 154, 143, 120, 84, 60, 33, 34, 24, 16, 8, 7, 5, 0, 4, 0, 0, 0,
    ])
    # fmt: on
    A = n[:, None] * np.tril(np.ones((67, 67)))
    weight = np.sqrt(n)
    (empty,) = np.nonzero(n == 0)
    A[empty, empty], A[empty, empty + 1], weight[empty] = 1, -1, 1
    return weight[:, None] * A, weight * k * 0.7205812007860187


def decay():
    """48 echoes, 10 ms apart, of 40 relaxation times: numerically of rank 20."""
    times = np.geomspace(0.01, 2, 40)
    return np.exp(-np.arange(1, 49)[:, None] * 0.01 / times), NUMBERS["t2_decay_b"]


TALL, WIDE = (20, 6), (8, 12)
INSTANCES = {
    # Another solver returned negative coefficients.
    "accord_1262": Instance(
        WIDE,
        "https://github.com/accord-net/framework/issues/1262",
        [
            [100, 100, 100, 100, 100, 100, 100, 100, 100, 90.21557],
            [9.77911, 21.00867, 32.23827, 43.46789, 54.69751, 65.92713, 77.15675, 88.38637, 99.61599, 100],
            [0.41829, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0.43252, 1.40921, 3.64756, 7.14734, 11.90852, 17.9311, 25.21507, 33.76044, 43.5672, 49.28959],
            [0, 0, 0.13574, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0.18435, 0.55609, 1.30722, 2.57937, 4.51417, 7.25327, 10.93832, 14.17372],
            [0, 0, 0, 0, 0, 0.20961, 0.47841, 0.95583, 1.73064, 2.62308],
            [0, 0, 0, 0, 0, 0, 0, 0, 0.17781, 0.32428],
        ],
        [8599.21773, 3471.55286, 0, 0, 0, 0, 0, 0],
        {2: 38.40628711513671, 3: 47.89733186812607},
    ),
    # A 32-bit build went wrong.
    "scipy_22791": Instance(
        WIDE,
        f"{SCIPY}/issues/22791",
        *normal_with_zero_rows(),
        {2: 1.05617285377528, 7: 0.23123048048164074, 11: 0.26128651057007213},
        unique=False,
    ),
    "julia_readme": Instance(
        TALL,
        "https://github.com/JuliaLinearAlgebra/NonNegLeastSquares.jl#readme",
        [
            [-0.24, -0.82, 1.35, 0.36, 0.35],
            [-0.53, -0.2, -0.76, 0.98, -0.54],
            [0.22, 1.25, -1.6, -1.37, -1.94],
            [-0.51, -0.56, -0.08, 0.96, 0.46],
            [0.48, -2.25, 0.38, 0.06, -1.29],
        ],
        [-1.6, 0.19, 0.17, 0.31, -1.27],
        [2.2010415984526666, 1.1900992422914414, 0, 1.5500134521944764, 0],
    ),
    "optax_docstring": Instance(
        TALL,
        "https://optax.readthedocs.io/en/latest/api/utilities.html#optax.nnls",
        [[1, 2], [3, 4]],
        [5, 6],
        [0, 1.7],
    ),
    # SciPy 1.15 returned [0.82399855, 0.39428778] and a residual of 0.
    "scipy_25389": Instance(TALL, f"{SCIPY}/issues/25389", [[3, 2], [1, 1]], [3, 2], [0, 1.6]),
    "scipy_21021": Instance(
        TALL,
        f"{SCIPY}/issues/21021",
        [
            [0.2508259992635229, -0.24031300195203256],
            [0.510647748500133, 0.2872936081767836],
            [0.8196387904102849, -0.03520620107046682],
            [0.030739759120097084, -0.07768656359879388],
        ],
        [24.456141951303913, 28.047143273432333, 41.10526799545987, -1.2078282698324068],
        [54.304795320227115, 0],
    ),
    # BVLS failed to converge.
    "scipy_12709": Instance(
        TALL,
        f"{SCIPY}/pull/12709",
        [[49, 41, -32], [-19, -32, -8], [-13, 10, 69]],
        [-41, -90, 47],
        [54, -43.890552584670225, 26],
        [31, -44, 26],
        [54, -32, 28],
    ),
    # x_2 = 0 and its multiplier is 0.
    "degenerate_kink": Instance(TALL, "made for this library", [[1, 1], [0, 1]], [1, 0], [1, 0]),
    "zero_column": Instance(
        TALL,
        "made for this library",
        *zero_column(),
        [0, 0.16448845132989567, 0.269982885538906, 0, 0.2648351700159711, 0.2096182025425917],
    ),
    # Any x_2 + x_5 = 2 fits.
    "duplicate_column": Instance(TALL, "made for this library", *duplicate_column(), {0: 1, 2: 1, 5: 1}),
    # A'b < 0.
    "negative": Instance(TALL, "made for this library", *negative(), {}),
    # An endless loop.
    "scipy_20168": Instance(
        (67, 67),
        f"{SCIPY}/issues/20168",
        *monotone(),
        {
            **{20: 0.003889242101535018, 22: 0.007606268390107375, 24: 0.025457371599948393, 25: 0.03695288209159067},
            **{27: 0.08518359183451107, 28: 0.04820112640020339, 29: 0.19623499002227454, 30: 0.14411624015720398},
            **{31: 0.17114513406243106, 34: 0.26955503653872154, 38: 0.010893241091870197, 47: 0.04816705827288666},
            **{48: 0.011238724891048404, 51: 0.05516260345607781, 56: 0.027753339088587563},
        },
        single=False,
    ),
    # An exception; norms of the columns from 0.5 to 2e13.
    "scipy_20302": Instance(
        (89, 5),
        f"{SCIPY}/issues/20302",
        NUMBERS["scipy_20302_A"],
        np.ones(89),
        {0: 0.6112431519913456, 1: 8.222628294746363},
        single=False,
    ),
    # What DECAES.jl solves for each voxel, with noise.
    "t2_decay": Instance(
        (48, 40),
        "https://github.com/jondeuce/DECAES.jl",
        *decay(),
        {5: 131.86075293038425, 6: 45.86633441895793, 15: 638.6233220667137, 16: 366.78055723954475}
        | {39: 0.6397363034415667},
    ),
}


def padded(instance):
    """A, b, lower, upper, x in float64, of the shape of the group."""
    M, N = instance.group
    A, b = np.asarray(instance.A, float), np.asarray(instance.b, float)
    m, n = A.shape
    x, lower, upper = np.zeros(N), np.zeros(N), np.full(N, np.inf)
    if isinstance(instance.x, dict):
        x[list(instance.x)] = list(instance.x.values())
    else:
        x[:n] = instance.x
    lower[:n], upper[:n] = instance.lower, instance.upper
    return np.pad(A, ((0, M - m), (0, N - n))), np.pad(b, (0, M - m)), lower, upper, x


def solved(name, dtype):
    A, b, lower, upper, x = (np.asarray(a, dtype)[:, None] for a in padded(INSTANCES[name]))
    A = A[:, 0]
    problem = Problem(*(a.astype(float) for a in (A, b, lower, upper)), X=x.astype(float))
    return problem, jax.tree.map(np.asarray, jaxnnls.lsq_linear(A, b, (lower, upper)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for dtype in ("float32", "float64")
        for name in INSTANCES
        if INSTANCES[name].single or "64" in dtype
    ],
)
def test_instance(name, dtype):
    dtype = np.dtype(dtype)
    with jax.enable_x64(dtype == "f8"):
        problem, solution = solved(name, dtype)
    assert checks.violations(problem, solution, dtype) == []
    x, known = solution.x.astype(float), problem.X
    size = np.linalg.norm(problem.B, axis=0) ** 2
    excess = (oracle.objective(problem, x) - oracle.objective(problem, known)) / size
    if dtype == "f8":
        np.testing.assert_array_equal(solution.status, Status.CONVERGED)
        assert excess <= 1e-14
        assert np.linalg.norm(x) <= np.linalg.norm(known) * (1 + 1e-9)
        if not INSTANCES[name].unique:
            return
        # The solution is known to rounding times the condition of its columns.
        A = problem.A[:, known[:, 0] != problem.lower[:, 0]]
        condition = np.linalg.cond(A / np.linalg.norm(A, axis=0)) if A.size and name != "duplicate_column" else 1
        np.testing.assert_allclose(x, known, rtol=0, atol=1e-12 * condition**2 * max(np.abs(known).max(), 1))
    else:
        # The data have been rounded, and with them the known x.
        assert np.isin(solution.status, (Status.CONVERGED, Status.PRECISION))
        assert excess <= 1e-5


def test_gram_of_condition_1e9(x64):
    # As in https://github.com/PyAutoLabs/PyAutoArray/pull/279, where an interior-point method ran out of steps and its
    # derivative was NaN. x and the multipliers were chosen first.
    Q = np.zeros((40, 40))
    for i, row in enumerate(NUMBERS["gram_40_Q_lower"]):
        Q[i, : i + 1] = Q[: i + 1, i] = row
    q, x, dual = (np.array(NUMBERS[f"gram_40_{name}"]) for name in ("q", "x", "dual"))
    solution = jaxnnls.box_qp(Q, q)
    assert solution.status == Status.CONVERGED
    np.testing.assert_array_equal(solution.active_mask, np.where(x > 0, 0, -1))
    np.testing.assert_allclose(solution.x, x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(solution.dual, dual, rtol=0, atol=1e-9)


def test_mel_with_a_junk_column():
    dtype = np.dtype("f4")
    # librosa.filters.mel(sr=44100, n_fft=2048, n_mels=128): rounding leaves a last column of norm 7.7e-18, and
    # https://librosa.org/doc/latest/generated/librosa.util.nnls.html stops at its starting point.
    top = 15 + 27 * np.log(22.05) / np.log(6.4)
    band = np.linspace(0, top, 130)
    edges = np.where(band < 15, band * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (band - 15)))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hz = np.fft.rfftfreq(2048, 1 / 44100)
    A = np.maximum(np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)), 0) * 2 / (high - low)
    assert 0 < np.linalg.norm(A[:, 1024]) < 1e-16
    A, B = A.astype(dtype), np.array(NUMBERS["mel_B"]).T.astype(dtype)
    solution = jaxnnls.lsq_linear(A, B, (0, np.inf))
    np.testing.assert_array_equal(solution.status, Status.CONVERGED)
    x, A = np.asarray(solution.x, float), A.astype(float)
    np.testing.assert_array_equal(x[[0, 1024]], 0)
    eps = np.finfo(dtype).eps
    # It can be fitted, and x = max(0, A'w) with w from its positive entries: of least norm, by duality.
    assert np.all(np.linalg.norm(A @ x - B, axis=0) <= 100 * eps * np.linalg.norm(B, axis=0))
    for k in range(2):
        free = x[:, k] > 0
        w = np.linalg.lstsq(A[:, free].T, x[free, k])[0]
        np.testing.assert_allclose(np.maximum(A.T @ w, 0)[:-1], x[:-1, k], rtol=0, atol=1e4 * eps * x.max())
