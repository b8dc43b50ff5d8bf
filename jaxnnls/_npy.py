"""Columns of .npy files, read and written where they lie: no more than a block of them is ever in memory."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class InputError(Exception):
    """What the user gave cannot be solved; the message is one line for people."""


class Header(NamedTuple):
    """What a .npy file holds, and where."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int  # of the data, bytes
    transposed: bool  # whether columns are contiguous, not rows

    @property
    def columns(self) -> int:
        """How many columns the array has, one if it has one axis."""
        return self.shape[1] if len(self.shape) > 1 else 1


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


def read_header(path: Path) -> Header:
    """What a .npy file of real numbers holds, or `InputError`."""
    array = read_array(path)
    assert isinstance(array, np.memmap)
    flags = array.flags
    return Header(path, array.dtype, array.shape, array.offset, flags.f_contiguous and not flags.c_contiguous)


@contextlib.contextmanager
def column_reader(header: Header) -> Iterator[Callable[[int, int], NDArray[Any]]]:
    """A function of start and stop that reads these columns, (m, stop - start).

    A memory map would do the same, but the pages that it has touched count as memory of the process, and a row-major
    file is touched all over by every block.
    """
    m, N, size = header.shape[0], header.columns, header.dtype.itemsize

    with header.path.open("rb", buffering=0) as file:

        def fill(part: NDArray[Any], position: int) -> None:
            view = memoryview(part.view(np.uint8).reshape(-1))  # type: ignore[arg-type] # NumPy's stubs for 3.11
            file.seek(header.offset + position * size)
            while view:
                count = file.readinto(view)
                if not count:
                    raise InputError(f"{header.path} has become shorter while it was read.")
                view = view[count:]

        def read(start: int, stop: int) -> NDArray[Any]:
            if header.transposed:
                block = np.empty((stop - start, m), header.dtype)
                if block.size:
                    fill(block, start * m)
                return block.T
            block = np.empty((m, stop - start), header.dtype)
            if block.size and stop - start == N:
                fill(block, 0)
            elif block.size:
                for i, row in enumerate(block):
                    fill(row, i * N + start)
            return block

        yield read


def create(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Header:
    """A new .npy file, row-major, with its disk space reserved if the file system can promise that."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                path.unlink()
                raise  # anything else: a file system that cannot promise
    return read_header(path)


@contextlib.contextmanager
def column_writer(header: Header) -> Iterator[Callable[[int, NDArray[Any]], None]]:
    """A function of start and X (n, k) that writes X as the columns from start on."""
    N, size = header.columns, header.dtype.itemsize
    with header.path.open("r+b", buffering=0) as file:

        def write(start: int, X: NDArray[Any]) -> None:
            rows = np.ascontiguousarray(X, header.dtype)
            for i, row in enumerate(rows if X.shape[1] < N else rows.reshape(1, -1)):
                file.seek(header.offset + (i * N + start) * size)
                view = memoryview(row.view(np.uint8))
                while view:
                    view = view[file.write(view) :]

        yield write
