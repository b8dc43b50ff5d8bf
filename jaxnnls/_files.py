"""Solving .npy files: blocks of columns in, blocks of columns out, and an output that is whole or not there."""

import contextlib
import errno
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxnnls._api import lsq_linear
from jaxnnls._problem import DEFAULT_BLOCK_BYTES, Arguments, check

COLUMN_BYTES = 2**23  # of b and x in one block: large enough to keep the solver busy, small enough to show progress


class InputError(Exception):
    """What the user gave cannot be solved; the message is one line for people."""


class Request(NamedTuple):
    """What the command line asks for."""

    matrix: Path
    columns: Path
    output: Path
    lower: float
    upper: float
    ridge: float
    l1: float
    tol: float | None


class Report(NamedTuple):
    """How it went: one status and one optimality per column."""

    status: NDArray[np.int32]
    optimality: NDArray[np.float64]
    seconds: float


class Progress:
    """A line on stderr that says how many of `total` columns are done, if stderr is a terminal."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.start = time.perf_counter()
        self.shown = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Rewrite the line for so many columns done."""
        rate = done / max(time.perf_counter() - self.start, 1e-9)
        left = f"{(self.total - done) / rate:.0f} s left" if done else "compiling"
        self._print(f"{done / self.total:4.0%}  {done}/{self.total} columns  {rate:.0f}/s  {left}")

    def close(self) -> None:
        """Clear the line, for the summary to take its place."""
        self._print("")

    def _print(self, line: str) -> None:
        if self.shown:
            print(f"\r{line:<70}\r", end="", file=sys.stderr, flush=True)


def read_array(path: Path) -> NDArray[Any]:
    """Open a .npy file of real numbers as a memory map, or raise `InputError`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a damaged header raises nearly anything, as NumPy evaluates it as Python
        raise InputError(f"{path} is not a readable .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path} is an archive of several arrays; expected a .npy file with one.")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InputError(f"expected real numbers of at most 64 bits in {path}, got dtype {array.dtype}.")
    return array


def precision(dtype: np.dtype[Any]) -> contextlib.AbstractContextManager[Any]:
    """64-bit JAX for the extent of a `with`, if that is what the dtype needs."""
    return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()


@contextlib.contextmanager
def written_whole(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """An array that becomes the file at the end of the `with`, and leaves nothing behind if that is not reached.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    shape : tuple of int
    dtype : numpy.dtype

    Yields
    ------
    array : numpy.memmap
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # in its folder, where a rename is atomic
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        _reserve(temporary)
        yield array
        array.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(path: Path) -> None:
    """Ask for the disk space now: later, a full disk would kill the process as it writes to the map."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # anything else: a file system that cannot promise


def solve_files(request: Request) -> Report:
    """Solve for every column of one file and write the solutions to another.

    Parameters
    ----------
    request : Request

    Returns
    -------
    report : Report

    Raises
    ------
    InputError
        For files and numbers that make no problem. No output is written then.
    """
    matrix, columns = read_array(request.matrix), read_array(request.columns)
    dtype = np.result_type(matrix.dtype, columns.dtype)
    dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
    with precision(dtype):
        _check(request, matrix, columns, dtype)

    n, shape = matrix.shape[1], (matrix.shape[1], *columns.shape[1:])
    if columns.ndim == 1:
        columns = columns[:, None]
    total = columns.shape[1]
    width = max(1, min(total, COLUMN_BYTES // (max(1, sum(matrix.shape)) * dtype.itemsize)))
    status, optimality = np.zeros(total, np.int32), np.zeros(total)
    bounds = (request.lower, request.upper)
    start = time.perf_counter()
    output = written_whole(request.output, shape, dtype)
    with precision(dtype), output as x, contextlib.closing(Progress(total)) as progress:
        A = jnp.asarray(matrix, dtype)
        x = x.reshape(n, total)
        for i in range(0, total, width):
            progress.show(i)
            block = np.asarray(columns[:, i : i + width], dtype)
            k = block.shape[1]
            block = np.pad(block, ((0, 0), (0, width - k)), mode="edge")  # one shape: compiled once
            solution = lsq_linear(A, block, bounds, ridge=request.ridge, l1=request.l1, tol=request.tol)
            x[:, i : i + k] = solution.x[:, :k]
            status[i : i + k], optimality[i : i + k] = solution.status[:k], solution.optimality[:k]
    return Report(status, optimality, time.perf_counter() - start)


def _check(request: Request, matrix: NDArray[Any], columns: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if matrix.ndim != 2:
        raise InputError(f"expected two axes in {request.matrix}, got shape {matrix.shape}.")
    if columns.ndim not in (1, 2):
        raise InputError(f"expected one or two axes in {request.columns}, got shape {columns.shape}.")
    if not request.output.parent.is_dir():
        raise InputError(f"cannot write {request.output}: there is no folder {request.output.parent}.")
    if request.output.is_dir():
        raise InputError(f"cannot write {request.output}: it is a folder.")
    # Stand-ins without data: the library's own checks look at shapes, dtypes and the numbers.
    A, B = (np.broadcast_to(np.zeros((), dtype), array.shape) for array in (matrix, columns))
    _, _, _, lower, upper, ridge, l1, tol = request
    try:
        check(Arguments(A, B, lower, upper, None, ridge, l1, tol, None, None), False, DEFAULT_BLOCK_BYTES)
    except ValueError as error:
        raise InputError(str(error)) from error
