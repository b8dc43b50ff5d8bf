"""Every row of the README's migration table is run: the call of today, ours, and how close the results are."""

import warnings

import jax
import jax.numpy as jnp
import librosa
import librosax
import numpy as np
import optax
import pytest
import scipy.optimize
from test_readme import table

import jaxnnls

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it is no longer maintained
    import jaxopt
    from jaxopt.projection import projection_box

ROWS = table("today | here | what changes")

# What is called today, and how close to ours its result has to be, relative to the largest entry; None: it fits less.
TODAY = {
    "scipy.optimize.nnls": 1e-5,
    "scipy.optimize.lsq_linear": 1e-5,
    "librosa.util.nnls": None,
    "optax.nnls": 1e-3,
    "jaxopt.BoxCDQP": 1e-4,
    "jaxopt.ProjectedGradient": 1e-3,
    "np.linalg.lstsq": None,
    "librosax.feature.inverse.mel_to_stft": None,
    "jaxnnls.solve_nnls": 1e-4,
}


@pytest.fixture(scope="module")
def names():
    """What the cells of the table speak of."""
    rng = np.random.default_rng(0)
    A = rng.uniform(size=(20, 6))
    B = A @ np.maximum(rng.normal(0.3, 0.5, size=(6, 5)), 0) + 0.1 * rng.normal(size=(20, 5))
    t = np.arange(1280) / 8000
    signal = sum(np.sin(2 * np.pi * 220 * k * t) * np.exp(-3 * k * t) / k for k in range(1, 9)).astype("f4")
    return {
        **{"np": np, "jax": jax, "jnp": jnp, "scipy": scipy, "librosa": librosa, "librosax": librosax},
        **{"optax": optax, "jaxopt": jaxopt, "projection_box": projection_box, "jaxnnls": jaxnnls},
        **{"A": A, "B": B, "n": 6, "Q": A.T @ A, "c": -A.T @ B[:, 0], "lower": np.zeros(6)},
        "upper": np.full(6, 0.5),
        "M": librosa.feature.melspectrogram(y=signal, sr=8000, n_fft=256, hop_length=128, n_mels=128),
        "basis": librosa.filters.mel(sr=8000, n_fft=256, n_mels=128),
    }


def test_rows_are_those_that_are_run():
    assert len(ROWS) == len(TODAY)
    for row, name in zip(ROWS, TODAY):
        assert name + "(" in row[0] and row[1].startswith(("`jaxnnls.", "`jnp.sqrt(jaxnnls.")) and row[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=[*TODAY])
def test_row(row, names):
    tolerance = TODAY[next(name for name in TODAY if name + "(" in row[0])]
    theirs, ours = (np.asarray(eval(cell.strip("`"), dict(names)), float) for cell in row[:2])
    assert theirs.shape == ours.shape and np.max(ours) > 0
    if tolerance is not None:
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.max(ours))
        return
    matrix, right = (names["A"], names["B"]) if "(A, B)" in row[0] else (names["basis"], names["M"])
    power = 2 if "sqrt" in row[1] else 1
    misfits = [np.linalg.norm(matrix @ x**power - right) for x in (theirs, ours)]
    assert misfits[1] < misfits[0]
