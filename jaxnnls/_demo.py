"""The job of `python -m jaxnnls` without arguments: invert a mel spectrogram, and say how well and how fast."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxnnls
from jaxnnls._solution import Solution, tally

SAMPLE_RATE = 22050
FFT_SIZE = 2048
HOP = 512
NOTES_HZ = (196.0, 246.94, 293.66, 392.0)
NOTE_SECONDS = 0.9
SOME = slice(10, 14)  # frames of which the derivative is checked
GRADIENT_LIMIT = 2e-2  # float32 differences of a piecewise smooth function: a wrong rule is off by far more

Floats = NDArray[Any]


class TimedSolution(NamedTuple):
    """A solution, and the seconds until it was there."""

    solution: Solution
    seconds: float


class GradientCheck(NamedTuple):
    """A directional derivative, computed in two ways."""

    automatic: float
    central_difference: float

    @property
    def deviation(self) -> float:
        """Relative to the central difference."""
        return abs(self.automatic - self.central_difference) / abs(self.central_difference)


def plucked_strings(rng: np.random.Generator) -> Floats:
    """Notes of a plucked string, one after another, by Karplus and Strong (1983).

    A delay line of one period starts out as white noise, and each sample is the mean of the two that were one period
    before, which takes the high partials first. Here a whole period is computed at a time, and the ends of the period
    are joined to each other.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    signal : ndarray, shape (samples,)
        With white noise 50 dB below full scale, as a room has it. Without any, the high bands of a decayed
        note are below the rounding errors of the low ones in float32.
    """
    samples = int(NOTE_SECONDS * SAMPLE_RATE)
    notes = []
    for frequency in NOTES_HZ:
        period = rng.uniform(-1.0, 1.0, round(SAMPLE_RATE / frequency))
        periods = []
        for _ in range(samples // period.size + 1):
            periods.append(period)
            period = 0.996 * (period + np.roll(period, 1)) / 2
        notes.append(np.concatenate(periods)[:samples])
    signal = np.concatenate(notes)
    return signal + 10 ** (-50 / 20) * rng.standard_normal(signal.size)


def magnitude_spectrogram(signal: Floats) -> Floats:
    """Magnitudes of the Fourier transform of Hann-windowed frames.

    Parameters
    ----------
    signal : ndarray, shape (samples,)

    Returns
    -------
    S : ndarray of float32, shape (1 + FFT_SIZE // 2, frames)
    """
    frames = np.lib.stride_tricks.sliding_window_view(signal, FFT_SIZE)[::HOP]
    window = np.hanning(FFT_SIZE + 1)[:-1]  # the periodic window: its last sample would be the next period's first
    return np.abs(np.fft.rfft(frames * window)).T.astype(np.float32)


def mel_basis(bands: int = 128) -> Floats:
    """Triangular filters of equal area on Slaney's mel scale: linear up to 1 kHz, logarithmic above.

    Parameters
    ----------
    bands : int

    Returns
    -------
    A : ndarray of float32, shape (bands, 1 + FFT_SIZE // 2)
    """
    hz_per_mel, corner_hz, log_step = 200 / 3, 1000.0, np.log(6.4) / 27
    corner = corner_hz / hz_per_mel
    top = corner + np.log(SAMPLE_RATE / 2 / corner_hz) / log_step
    mel = np.linspace(0.0, top, bands + 2)
    edges = np.where(mel < corner, hz_per_mel * mel, corner_hz * np.exp(log_step * (mel - corner)))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return (np.maximum(triangles, 0.0) * 2 / (right - left)).astype(np.float32)


def check_gradient(A: Floats, B: Floats, rng: np.random.Generator) -> GradientCheck:
    """Compare the derivative of sum(x**2), of some columns, along a random direction with a central difference.

    This loss has a continuous derivative even where the set of free variables changes, so a step that is large enough
    for float32 still gives the derivative to three digits. It is of all columns, so that what `timed_solve` has
    compiled is used again.

    Parameters
    ----------
    A : ndarray, shape (m, n)
    B : ndarray, shape (m, N)
    rng : numpy.random.Generator

    Returns
    -------
    check : GradientCheck
    """

    def loss(B: jax.Array) -> jax.Array:
        return jnp.sum(jaxnnls.lsq_linear(A, B, bounds=(0.0, jnp.inf)).x[:, SOME] ** 2)

    step = 3e-3
    direction = (B * rng.standard_normal(B.shape)).astype(B.dtype)  # relative to B: its bands differ by powers of ten
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(B)), np.float64)
    above, below = (float(loss(jnp.asarray(B + sign * direction))) for sign in (step, -step))
    return GradientCheck(float(np.sum(gradient * direction)), (above - below) / (2 * step))


def timed_solve(A: Floats, B: Floats) -> TimedSolution:
    """The non-negative solution, waited for."""
    start = time.perf_counter()
    solution = jax.block_until_ready(jaxnnls.lsq_linear(A, B, bounds=(0.0, jnp.inf)))
    return TimedSolution(solution, time.perf_counter() - start)


def run() -> int:
    """Print what one inversion gives.

    Returns
    -------
    exit_status : int
        0, or 1 if a column failed or the derivative is wrong.
    """
    rng = np.random.default_rng(0)
    S = magnitude_spectrogram(plucked_strings(rng))
    A = mel_basis()
    B = A @ S

    solution, first = timed_solve(A, B)
    solution, second = timed_solve(A, B)
    gradient = check_gradient(A, B, rng)

    converged = bool(np.all(solution.success))
    gradient_holds = gradient.deviation <= GRADIENT_LIMIT  # false for NaN
    counts = ", ".join(f"{count} {status.name}" for status, (count, _) in tally(np.asarray(solution.status)).items())
    residual = np.linalg.norm(solution.residual_norm) / np.linalg.norm(B)
    convergence = np.linalg.norm(S - solution.x) / np.linalg.norm(S)
    rows = {
        "problem": f"mel inversion, A {A.shape[0]} x {A.shape[1]}, {B.shape[1]} frames, {solution.x.dtype}",
        "device": str(jax.devices()[0]),
        "first call": f"{first:.2f} s, with compilation",
        "second call": f"{second:.2f} s",
        "status": counts,
        "relative residual": f"{residual:.1e}",
        "worst optimality": f"{np.max(solution.optimality):.1e}",
        "spectral convergence": f"{convergence:.3f}",
        "gradient check": (
            f"{gradient.deviation:.1e} from a central difference, limit {GRADIENT_LIMIT:.0e}:"
            f" {'passed' if gradient_holds else 'FAILED'}"
        ),
    }
    print(f"jaxnnls {jaxnnls.__version__}")
    for name, value in rows.items():
        print(f"  {name:<22}{value}")
    return 0 if converged and gradient_holds else 1
