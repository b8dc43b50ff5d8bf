"""`python -m tests.benchmarks.files`: `python -m jaxnnls` on files of many columns, beside SciPy in a pool."""

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .peers import load
from .quality import judge
from .report import aligned, machine, plain
from .workloads import MAKERS, Floats, Workload, finish

JOBS = {"decay": 1_000_000, "mel": 100_000}
JUDGED = 2000  # columns
CHUNK = 64  # columns that a process of the pool takes at a time


class Throughput(NamedTuple):
    """One job by one solver."""

    per_second: float  # columns
    seconds: float  # of all columns, for SciPy extrapolated from a sample
    optimality: float  # the worst of the columns that are judged


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(name: str, N: int) -> Workload:
    """N columns: those of the workload again and again, each time a little louder or softer."""
    workload = finish(MAKERS[name](), np.dtype(np.float32), 1.0)
    many = workload.tiled(-(-N // workload.units))
    return replace(many, B=many.B[:, :N])


def by_command(workload: Workload, folder: Path) -> Throughput:
    """From files to a file, start of the interpreter and compilation included."""
    paths = [folder / f"{name}.npy" for name in "ABX"]
    for path, array in zip(paths, (workload.A, workload.B)):
        np.save(path, array)
    command = [sys.executable, "-m", "jaxnnls", str(paths[0]), str(paths[1]), "-o", str(paths[2])]
    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    print(done.stdout.strip(), done.stderr.strip(), sep="\n", file=sys.stderr)
    if done.returncode not in (0, 12):  # 12: the precision of float32 did not do for some columns
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}")
    some = workload.sample(JUDGED)
    worst = judge(workload.take(some), np.load(paths[2], mmap_mode="r")[:, some]).optimality.max()
    return Throughput(workload.units / elapsed, elapsed, float(worst))


_matrix: Any = None


def _set_matrix(A: Floats) -> None:
    global _matrix
    _matrix = A


def _solve_chunk(columns: Floats) -> Floats:
    nnls = load("scipy.optimize").nnls
    return np.array([nnls(_matrix, b)[0] for b in columns])


def by_pool(workload: Workload, budget: float) -> Throughput:
    """`scipy.optimize.nnls` in a process a processor, for as many columns as the budget of seconds allows."""
    A, columns = workload.A.astype(np.float64), np.ascontiguousarray(workload.B.T, np.float64)
    columns = columns[np.random.default_rng(0).permutation(len(columns))]
    chunks = [columns[i : i + CHUNK] for i in range(0, len(columns), CHUNK)]
    found: list[Floats] = []
    with multiprocessing.get_context("spawn").Pool(cores(), _set_matrix, (A,)) as pool:
        pool.map(_solve_chunk, chunks[: 2 * cores()])  # imports
        start = time.perf_counter()
        for part in pool.imap(_solve_chunk, chunks):
            found.append(part)
            elapsed = time.perf_counter() - start
            if elapsed > budget:
                break
        pool.terminate()
    X = np.concatenate(found)[:JUDGED].T
    part = replace(workload, B=columns[: X.shape[1]].T)
    rate = sum(map(len, found)) / elapsed
    return Throughput(rate, workload.units / rate, float(judge(part, X).optimality.max()))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.files", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, metavar="FRACTION", help="of the columns, to try it out")
    parser.add_argument("--budget", type=float, default=20.0, metavar="SECONDS", help="for SciPy; default: 20")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every job with both."""
    options = arguments(argv)
    about = machine()
    print(f"{about['cpu']}, {cores()} processors; JAX {about['jax']}; float32\n")
    header = ["job", "columns", "`python -m jaxnnls`", "columns/s", "worst optimality", "MiB resident"]
    rows = [[*header, "SciPy in a pool", "columns/s", "worst optimality", "ratio"]]
    for name, N in JOBS.items():
        workload = make(name, max(1, round(options.scale * N)))
        with tempfile.TemporaryDirectory() as folder:
            ours = by_command(workload, Path(folder))
        resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
        theirs = by_pool(workload, options.budget)
        cells = [name, f"{workload.units:,}", f"{ours.seconds:.1f} s", plain(ours.per_second)]
        cells += [f"{ours.optimality:.0e}", plain(resident), f"~ {theirs.seconds:.0f} s", plain(theirs.per_second)]
        rows.append([*cells, f"{theirs.optimality:.0e}", plain(ours.per_second / theirs.per_second)])
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
