"""`python -m tests.benchmarks.scaling --plot FILE.png`: time and memory against N, n and block_bytes."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxnnls

from .measure import timed
from .report import aligned, machine, plain, seconds

MIB = 2**20
DEFAULT = 2**25
VARIABLES, COLUMNS = 32, 2**13


class Case(NamedTuple):
    """A random problem with four equations per variable, half of the variables positive at the solution."""

    n: int = VARIABLES
    N: int = COLUMNS
    block_bytes: int = DEFAULT


class Point(NamedTuple):
    """What it takes."""

    first: float  # seconds, with compilation
    steady: float  # seconds, median
    temporary: float  # MiB beside arguments and result
    worst: float  # optimality


SWEEPS: dict[str, list[Case]] = {
    "N": [Case(N=2**k) for k in range(7, 18)],
    "n": [Case(n=2**k, N=2**10) for k in range(2, 9)],
    "block_bytes": [Case(N=2**15, block_bytes=2**k) for k in range(16, 28, 2)],
}
LABELS = {"N": "columns N", "n": "variables n", "block_bytes": "block_bytes (MiB)"}


def measure(case: Case, repeat: int) -> Point:
    """Solve one case, after it has been compiled, `repeat` times."""
    rng = np.random.default_rng(0)
    A = rng.random((4 * case.n, case.n), dtype=np.float32)
    X = np.maximum(rng.standard_normal((case.n, case.N), dtype=np.float32), 0)
    B = A @ X + 0.1 * rng.standard_normal((4 * case.n, case.N), dtype=np.float32)

    def solve(A: jax.Array, B: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = jaxnnls.lsq_linear(A, B, (0, jnp.inf), block_bytes=case.block_bytes)
        return solution.x, solution.optimality

    jax.clear_caches()
    data = jnp.asarray(A), jnp.asarray(B)
    temporary: Any = jax.jit(lambda A, B: jaxnnls.nnls(A, B, block_bytes=case.block_bytes)).lower(*data).compile()
    memory = temporary.memory_analysis()
    compiled = jax.jit(solve)
    first, (_, optimality) = timed(lambda: compiled(*data))
    steady = statistics.median(timed(lambda: compiled(*data))[0] for _ in range(repeat))
    return Point(first, steady, np.nan if memory is None else memory.temp_size_in_bytes / MIB, float(optimality.max()))


def position(name: str, case: Case) -> float:
    """Where a case stands on the axis of its sweep."""
    value: float = getattr(case, name)
    return value / MIB if name == "block_bytes" else value


def draw(path: str, results: dict[str, list[Point]]) -> None:
    """Time above, memory below, a column a sweep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
    panels = figure.subplots(2, len(results), sharex="col", sharey="row")
    for (upper, lower), (name, points) in zip(panels.T, results.items()):
        x = np.array([position(name, case) for case in SWEEPS[name]])
        y = np.array([point.steady for point in points])
        upper.loglog(x, y, "o-", color="#d62728", label="measured")
        if name == "N":
            upper.loglog(x, y[-1] * x / x[-1], ":", color="0.4", label="proportional to N")
            upper.legend(fontsize=8)
        lower.loglog(x, [point.temporary for point in points], "s-", color="#1f77b4", label="temporaries")
        budget = [case.block_bytes / MIB for case in SWEEPS[name]]
        lower.loglog(x, budget, "--", color="0.4", label="block_bytes")
        lower.legend(fontsize=8)
        fixed = SWEEPS[name][0]._asdict() | {name: None}
        upper.set_title(", ".join(f"{k} = {v}" for k, v in fixed.items() if v and k != "block_bytes"), fontsize=9)
        lower.set_xlabel(LABELS[name])
        for panel in (upper, lower):
            panel.grid(True, color="0.92")
    panels[0, 0].set_ylabel("seconds a solve")
    panels[1, 0].set_ylabel("MiB")
    figure.savefig(path)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, metavar="R", help="calls after the first; default: 5")
    parser.add_argument("--plot", metavar="FILE.png", help="write a picture")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every sweep, printing a table of each."""
    options = arguments(argv)
    about = machine()
    print(f"{about['cpu']}, {about['cpu_count']} CPUs; JAX {about['jax']} on {about['device']}; float32, A (4 n, n)\n")
    results = {}
    for name, cases in SWEEPS.items():
        points = []
        for case in cases:
            points.append(measure(case, options.repeat))
            print(f"{name}: {case} {points[-1]}", file=sys.stderr, flush=True)
        results[name] = points
        rows = [["n", "N", "block_bytes, MiB", "first", "steady", "a column", "MiB temporary", "worst optimality"]]
        for case, point in zip(cases, points):
            cells = [str(case.n), str(case.N), plain(case.block_bytes / MIB), seconds(point.first)]
            cells += [seconds(point.steady), seconds(point.steady / case.N), plain(point.temporary)]
            rows.append([*cells, f"{point.worst:.0e}"])
        print(aligned(rows) + "\n", flush=True)
    if options.plot:
        draw(options.plot, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
