"""What is solved: audio, spectra and random matrices, all made here from a seed, and a file of the user's."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLE_RATE, FFT_SIZE = 22050, 2048

Floats = NDArray[Any]
Kind = Literal["nnls", "gram", "vmap"]


@dataclass(frozen=True)
class Workload:
    """A batch of problems that share a matrix, or, for "vmap", a batch of such batches.

    Attributes
    ----------
    name, note : str
    A : ndarray, shape (m, n), for "gram" Q of shape (n, n), for "vmap" (units, m, n)
    B : ndarray, shape (m, N), for "gram" q of shape (n, N), for "vmap" (units, m, N)
    kind : {"nnls", "gram", "vmap"}
    reference : str
        Label of the peer whose time the others' are compared to.
    """

    name: str
    note: str
    A: Floats
    B: Floats
    kind: Kind = "nnls"
    reference: str = "scipy.optimize.nnls"

    @property
    def units(self) -> int:
        """How many columns, or how many matrices: what a sample is taken of."""
        return self.B.shape[0 if self.kind == "vmap" else -1]

    def take(self, indices: NDArray[np.intp]) -> "Workload":
        """Some of the units."""
        if self.kind == "vmap":
            return replace(self, A=self.A[indices], B=self.B[indices])
        return replace(self, B=np.ascontiguousarray(self.B[:, indices]))

    def sample(self, count: int) -> NDArray[np.intp]:
        """Indices of `count` units, evenly spread."""
        return np.linspace(0, self.units - 1, min(max(count, 1), self.units)).round().astype(np.intp)

    def tiled(self, times: int) -> "Workload":
        """More of the same, each column a little louder or softer."""
        more = self.take(np.tile(np.arange(self.units), times))
        shape = (*more.B.shape[:-2], 1, more.B.shape[-1])
        gain = np.random.default_rng(0).uniform(0.9, 1.1, shape).astype(self.B.dtype)
        return replace(more, B=more.B * gain)

    def condition(self) -> float:
        """The largest condition number of A'A (of Q) with unit columns, inf where A is wide."""
        A = self.A.astype(np.float64)
        if self.kind == "gram":
            s = np.sqrt(np.diagonal(A))
            values = np.abs(np.linalg.eigvalsh(A / (s * s[:, None])))
            return float(values.max() / values.min())
        if A.shape[-2] < A.shape[-1]:
            return float("inf")
        s = np.linalg.norm(A, axis=-2, keepdims=True)
        return float(np.max(np.linalg.cond(A / np.where(s > 0, s, 1)) ** 2))


@functools.cache
def magnitudes(seconds: float, hop: int) -> Floats:
    """The magnitude spectrogram of decaying harmonic notes with clicks and noise, shape (bins, frames)."""
    rng = np.random.default_rng(1)
    samples = int(seconds * SAMPLE_RATE)
    signal = 1e-3 * rng.standard_normal(samples + 2 * SAMPLE_RATE)
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    for _ in range(int(4 * seconds)):
        pitch = 440 * 2 ** ((rng.integers(40, 85) - 69) / 12)
        h = np.arange(1, min(20, SAMPLE_RATE / 2 / pitch))[:, None]
        partials = np.sin(2 * np.pi * (h * pitch * t + rng.uniform(size=h.shape))) * np.exp(-(1 + h / 2) * t) / h
        start = rng.integers(samples)
        signal[start : start + t.size] += rng.uniform(0.1, 0.5) * partials.sum(0)
    for start in rng.integers(samples, size=int(2 * seconds)):
        click = rng.standard_normal(1000) * np.exp(-np.arange(1000) / 100)
        signal[start : start + 1000] += rng.uniform(0.05, 0.2) * click
    signal = np.pad(signal[:samples], FFT_SIZE // 2)
    frames = np.lib.stride_tricks.sliding_window_view(signal, FFT_SIZE)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(FFT_SIZE + 1)[:-1])).T


def learn_dictionary(S: Floats, K: int, iterations: int = 80) -> Floats:
    """W of the non-negative factorisation S = W H, by multiplicative updates in float32, shape (bins, K)."""
    rng = np.random.default_rng(2)
    S = S.astype(np.float32)
    W, H = (rng.uniform(0.1, 1, shape).astype(np.float32) for shape in ((S.shape[0], K), (K, S.shape[1])))
    tiny = np.float32(1e-9)
    for _ in range(iterations):
        H *= (W.T @ S) / (W.T @ W @ H + tiny)
        W *= (S @ H.T) / (W @ (H @ H.T) + tiny)
        gain = W.max(0)
        W, H = W / gain, H * gain[:, None]
    return W


def random() -> Workload:
    rng = np.random.default_rng(0)
    A = np.abs(rng.standard_normal((1025, 64)))
    x = rng.uniform(0, 1, (64, 1000)) * (rng.uniform(size=(64, 1000)) < 0.3)
    return Workload("random", "|normal| A, sparse x, noise", A, A @ x + 0.1 * rng.standard_normal((1025, 1000)))


def nmf(K: int) -> Workload:
    S = magnitudes(10, 256)
    return Workload(f"nmf{K}", f"a spectrogram on a learnt dictionary of {K}", learn_dictionary(S, K), S)


def chroma() -> Workload:
    rng = np.random.default_rng(0)
    partial = np.arange(1, 11)
    centres = 3.0 * (np.arange(84)[:, None] + 12 * np.log2(partial)) + 2
    shapes = np.exp(-0.5 * (np.arange(256)[:, None, None] - centres) ** 2)
    A = shapes @ 0.7 ** (partial - 1.0)
    x = np.zeros((84, 862))
    for column in x.T:
        notes = rng.integers(1, 7)
        column[rng.choice(84, notes, replace=False)] = rng.uniform(0.1, 1, notes)
    return Workload("chroma", "notes out of log-frequency spectra", A, A @ x + 0.01 * rng.uniform(size=(256, 862)))


def decay(K: int, N: int) -> Workload:
    rng = np.random.default_rng(0)
    echo_ms = np.linspace(10, 480, 48)[:, None]
    A = np.exp(-echo_ms / np.geomspace(10, 2000, K))
    constants = np.exp(rng.uniform(np.log(10), np.log(2000), (3, N)))
    weights = rng.uniform(0.2, 1, (3, N)) * (np.arange(3)[:, None] < rng.integers(1, 4, N))
    B = sum(w * np.exp(-echo_ms / T) for w, T in zip(weights, constants))
    noise = 1e-3 * np.linalg.norm(B, axis=0) / np.sqrt(48)
    name, note = "decay" if K == 12 else f"decay{K}", f"sums of exponential decays by {K} of them"
    return Workload(name, note, A, B + noise * rng.standard_normal((48, N)))


def mel_bands(bands: int, fft_size: int) -> Floats:
    """Triangles of equal area on Slaney's scale, linear up to 1 kHz and logarithmic above, shape (bands, bins)."""
    top = 15 + 27 * np.log(SAMPLE_RATE / 2 / 1000) / np.log(6.4)
    band = np.linspace(0, top, bands + 2)
    edges = np.where(band < 15, band * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (band - 15)))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hz = np.fft.rfftfreq(fft_size, 1 / SAMPLE_RATE)
    return np.maximum(np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)), 0) * 2 / (high - low)


def mel() -> Workload:
    A = mel_bands(128, FFT_SIZE)
    return Workload("mel", "magnitudes out of mel bands", A, A @ magnitudes(30, 512), reference="librosa.util.nnls")


def misfit() -> Workload:
    rng = np.random.default_rng(0)
    return Workload("misfit", "mel bands of no magnitudes", mel_bands(256, 1024), rng.uniform(size=(256, 200)))


def small() -> Workload:
    rng = np.random.default_rng(0)
    return Workload("small", "normal A and B", rng.standard_normal((8, 6)), rng.standard_normal((8, 100_000)))


def gram() -> Workload:
    """A galaxy: an image explained by Gaussian profiles, which are collinear, and a regularised grid of pixels."""
    rng = np.random.default_rng(0)
    side, grid = 40, 20
    at = np.arange(side)[:, None]
    line = np.exp(-0.5 * ((at - np.linspace(0, side - 1, grid)) / 1.5) ** 2)
    pixels = np.kron(line, line)
    radius = np.hypot(at - side / 2, at.T - side / 2).reshape(-1, 1)
    profiles = np.exp(-0.5 * (radius / np.geomspace(0.5, side, 60)) ** 2)
    D = np.hstack([pixels, profiles])
    image = pixels @ (rng.uniform(0, 1, 400) * (rng.uniform(size=400) < 0.1)) + profiles[:, ::9].sum(1)
    image += 0.02 * rng.standard_normal(image.size)
    steps = np.diff(np.eye(grid), axis=0)
    along = np.kron(np.eye(grid), steps.T @ steps)
    across = np.kron(steps.T @ steps, np.eye(grid))
    Q = D.T @ D
    Q[:400, :400] += 1e-2 * (along + across)
    Q += 1e-8 * np.mean(np.diagonal(Q)) * np.eye(len(Q))
    return Workload("gram", "one image on a pixel grid and profiles", Q, (D.T @ image)[:, None], "gram")


def vmap() -> Workload:
    rng = np.random.default_rng(0)
    A, B = np.abs(rng.standard_normal((256, 40, 16))), rng.standard_normal((256, 40, 8))
    return Workload("vmap", "a matrix each, through jax.vmap", A, A @ np.maximum(A.swapaxes(1, 2) @ B, 0) + B, "vmap")


MAKERS: dict[str, Callable[[], Workload]] = {
    "random": random,
    "nmf32": functools.partial(nmf, 32),
    "nmf128": functools.partial(nmf, 128),
    "chroma": chroma,
    "decay": functools.partial(decay, 12, 20_000),
    "decay40": functools.partial(decay, 40, 2000),
    "mel": mel,
    "misfit": misfit,
    "small": small,
    "gram": gram,
    "vmap": vmap,
}


def from_file(path: str) -> Workload:
    """The arrays A and B of an npz file as the workload "file"."""
    with np.load(path) as file:
        A, B = file["A"], file["B"]
    return Workload("file", path, A, B.reshape(len(A), -1))


def finish(workload: Workload, dtype: np.dtype[Any], scale: float) -> Workload:
    """The workload in a dtype, with a fraction of its columns, at least one.

    Parameters
    ----------
    workload : Workload
    dtype : numpy.dtype
    scale : float

    Returns
    -------
    workload : Workload
    """
    chosen = workload.take(workload.sample(round(scale * workload.units)))

    def cast(a: ArrayLike) -> Floats:
        return np.ascontiguousarray(a, dtype)

    return replace(chosen, A=cast(chosen.A), B=cast(chosen.B))
