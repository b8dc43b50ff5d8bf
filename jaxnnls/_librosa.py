"""librosa with this solver inside."""

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxnnls._api import nnls


@contextlib.contextmanager
def in_librosa(**options: Any) -> Iterator[None]:
    """Within this context librosa's functions that invert mel spectrograms use `nnls`.

    These are `librosa.feature.inverse.mel_to_stft`, `librosa.feature.inverse.mel_to_audio` and
    `librosa.feature.inverse.mfcc_to_audio`, and whatever calls `librosa.util.nnls` by this name. They take and return
    NumPy arrays, so nothing can be differentiated through them: for that, use `nnls` itself. All is computed in
    float64. librosa is not a dependency and must be installed; the context changes its modules, so it counts for all
    threads.

    Parameters
    ----------
    **options
        For `nnls`: ridge, l1, tol, max_steps, block_bytes.

    Examples
    --------
    >>> import jaxnnls
    >>> with jaxnnls.in_librosa():  # doctest: +SKIP
    ...     audio = librosa.feature.inverse.mel_to_audio(mel, sr=22050)
    """
    inspect.signature(nnls).bind(None, None, **options)  # a TypeError here rather than from within librosa
    # It is found where it is defined, where it is offered, and where `inverse` has imported it to.
    names = ["librosa.util._nnls", "librosa.util", "librosa.feature.inverse"]
    modules: list[Any] = [importlib.import_module(name) for name in names]
    before = [module.nnls for module in modules]

    def solve(A: NDArray[Any], B: NDArray[Any], **kwargs: Any) -> NDArray[Any]:
        # A power spectrum spans 80 dB and more: in float32 the least norm of quiet frames is out of reach. librosa
        # writes into the result, which it cannot with an array of JAX.
        with jax.enable_x64(True):
            x = nnls(A.astype(np.float64), B.astype(np.float64), **options, **kwargs)
        dtype = np.result_type(A, B)
        return np.array(x, dtype if np.issubdtype(dtype, np.inexact) else np.float64)

    try:
        for module in modules:
            module.nnls = solve
        yield
    finally:
        for module, original in zip(modules, before):
            module.nnls = original
