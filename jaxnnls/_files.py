"""Solving .npy files: blocks of columns in, blocks of columns out, and an output that is whole or not there.

Beside the output X.npy there are, until it is whole, X.npy.part and X.npy.journal. A block is written to the part
before the journal has it, so what the journal has is done, however the process ended.
"""

import contextlib
import itertools
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxnnls._journal import Journal, Report
from jaxnnls._npy import Header, InputError, column_reader, column_writer, create, read_array, read_header
from jaxnnls._problem import DEFAULT_BLOCK_BYTES, Arguments, check
from jaxnnls._stream import lsq_linear_blocks

COLUMN_BYTES = 2**23  # of b and x in one block: large enough to keep the solver busy, small enough to show progress


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
    resume: bool


class Progress:
    """A line on stderr that says how many of `total` columns are done, if stderr is a terminal."""

    def __init__(self, done: int, total: int) -> None:
        self.before, self.total = done, total
        self.start = time.perf_counter()
        self.shown = sys.stderr.isatty()
        self.show(done)

    def show(self, done: int) -> None:
        """Rewrite the line for so many columns done."""
        rate = (done - self.before) / max(time.perf_counter() - self.start, 1e-9)
        left = f"{(self.total - done) / rate:.0f} s left" if rate else "compiling"
        self._print(f"{done / max(self.total, 1):4.0%}  {done}/{self.total} columns  {rate:.0f}/s  {left}")

    def close(self) -> None:
        """Clear the line, for the summary to take its place."""
        self._print("")

    def _print(self, line: str) -> None:
        if self.shown:
            print(f"\r{line:<70}\r", end="", file=sys.stderr, flush=True)


def precision(dtype: np.dtype[Any]) -> contextlib.AbstractContextManager[Any]:
    """64-bit JAX for the extent of a `with`, if that is what the dtype needs."""
    return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()


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

    What is raised after a block was finished carries a note that says how many columns are kept.
    """
    request = request._replace(output=Path(os.path.realpath(request.output)))  # a link stays a link
    matrix, columns = read_array(request.matrix), read_header(request.columns)
    dtype = np.result_type(matrix.dtype, columns.dtype)
    dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
    part, log = (request.output.with_name(f"{request.output.name}.{end}") for end in ("part", "journal"))
    with precision(dtype):
        _check(request, matrix, columns, dtype)
    for path, name in itertools.product((request.matrix, request.columns), (request.output, part, log)):
        if name.exists() and name.samefile(path):
            raise InputError(f"cannot write {request.output}: {path}, which is read, would be lost.")
    total = columns.columns
    width = max(1, min(total, COLUMN_BYTES // (max(1, sum(matrix.shape)) * dtype.itemsize)))
    shape = (matrix.shape[1], *columns.shape[1:])
    job = _describe(request, dtype, width)

    def changed() -> bool:
        try:
            return _describe(request, dtype, width) != job
        except OSError:
            return True

    with contextlib.closing(Journal(log)) as journal:
        report = journal.resume(job) if request.resume and part.exists() else None
        if report is not None:
            target = read_header(part)
            if (target.shape, target.dtype, target.transposed) != (shape, dtype, False) or report.columns > total:
                raise InputError(f"cannot resume: {part} is damaged; without --resume all columns are solved again.")
        try:
            if report is None:
                journal.clear()  # first: it must not say that something is done in a part that is new
                target = create(part, shape, dtype)
                report = journal.begin(job)
            report = _solve_columns(request, matrix, columns, target, journal, report, width)
            if changed():
                raise InputError(f"{request.matrix} or {request.columns} has changed while it was solved.")
        except BaseException as error:
            kept = journal.resume(job) or Report()
            if kept.columns and not changed():
                error.add_note(f"{kept.columns} of {total} columns are kept: --resume goes on from there.")
            else:
                part.unlink(missing_ok=True)
                journal.remove()
            raise
        os.replace(part, request.output)
        journal.remove()
    return report


def _solve_columns(
    request: Request, matrix: NDArray[Any], source: Header, target: Header, journal: Journal, report: Report, width: int
) -> Report:
    """Solve what is not done yet, block after block."""
    total = source.columns
    spans = [(i, min(i + width, total)) for i in range(report.columns, total, width)]
    with (
        precision(target.dtype),
        column_reader(source) as read,
        column_writer(target) as write,
        contextlib.closing(Progress(report.columns, total)) as progress,
    ):
        blocks = (np.asarray(read(*span), target.dtype) for span in spans)
        solutions = lsq_linear_blocks(
            jnp.asarray(matrix, target.dtype),
            blocks,
            (request.lower, request.upper),
            width=width,
            ridge=request.ridge,
            l1=request.l1,
            tol=request.tol,
        )
        for (start, stop), solution in zip(spans, solutions):
            write(start, np.asarray(solution.x))
            report = report.extended(solution)
            journal.append(report)
            progress.show(stop)
    return report


def _describe(request: Request, dtype: np.dtype[Any], width: int) -> dict[str, Any]:
    """All that the solution depends on, for JSON."""

    def stamp(path: Path) -> dict[str, int]:
        stat = path.stat()
        return {"bytes": stat.st_size, "modified": stat.st_mtime_ns}

    options = {f"--{name}": getattr(request, name) for name in ("lower", "upper", "ridge", "l1", "tol")}
    return {
        "the file of A": stamp(request.matrix),
        "the file of B": stamp(request.columns),
        **options,
        "the dtype": str(dtype),
        "the width of blocks": width,
        "the version of jaxnnls": version("jaxnnls"),
        "the version of JAX": jax.__version__,
        "the kind of device": jax.devices()[0].device_kind,
    }


def _check(request: Request, matrix: NDArray[Any], columns: Header, dtype: np.dtype[Any]) -> None:
    if matrix.ndim != 2:
        raise InputError(f"expected two axes in {request.matrix}, got shape {matrix.shape}.")
    if len(columns.shape) not in (1, 2):
        raise InputError(f"expected one or two axes in {request.columns}, got shape {columns.shape}.")
    if not request.output.parent.is_dir():
        raise InputError(f"cannot write {request.output}: there is no folder {request.output.parent}.")
    if request.output.exists() and not request.output.is_file():
        what = "folder" if request.output.is_dir() else "device"
        raise InputError(f"cannot write {request.output}: it is a {what}.")
    # Stand-ins without data: the library's own checks look at shapes, dtypes and the numbers.
    A, B = (np.broadcast_to(np.zeros((), dtype), array.shape) for array in (matrix, columns))
    given = request
    arguments = Arguments(A, B, given.lower, given.upper, None, given.ridge, given.l1, given.tol, None, None)
    try:
        check(arguments, False, DEFAULT_BLOCK_BYTES)
    except ValueError as error:
        raise InputError(str(error)) from error
