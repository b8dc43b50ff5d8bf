"""`pip install '.[bench]' && python -m tests.benchmarks`, from the root of the checkout."""

import argparse
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from . import plot, report
from .details import examine
from .measure import measure
from .peers import PEERS
from .workloads import MAKERS, finish, from_file

FILE = "file"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"of {', '.join(MAKERS)}, {FILE}; default: all")
    parser.add_argument("--npz", metavar="FILE", help="with arrays A and B, becomes the workload 'file'")
    parser.add_argument("--x64", action="store_true", help="everything in float64")
    parser.add_argument("--scale", type=float, default=1.0, metavar="FRACTION", help="of the columns, to try it out")
    parser.add_argument("--repeat", type=int, default=5, metavar="R", help="calls after the first; default: 5")
    parser.add_argument("--budget", type=float, default=30.0, metavar="SECONDS", help="per peer; default: 30")
    parser.add_argument("--json", metavar="FILE", help="write everything")
    parser.add_argument("--plot", metavar="FILE.png", help="write a picture")
    options = parser.parse_args(argv)
    known = [*MAKERS, *([FILE] if options.npz else [])]
    options.only = options.only.split(",") if options.only else known
    unknown = [name for name in options.only if name not in known]
    if unknown:
        parser.error(f"--only: no {', '.join(unknown)}; there are {', '.join(known)}")
    if not 0 < options.scale <= 1 or options.repeat < 1 or options.budget <= 0:
        parser.error("expected 0 < --scale <= 1, --repeat >= 1 and --budget > 0")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Solve every workload with every peer, printing a table after each."""
    options = arguments(argv)
    jax.config.update("jax_enable_x64", options.x64)
    # GPUs would otherwise multiply with ten bits, which no solver that leaves this to JAX could be accurate with.
    jax.config.update("jax_default_matmul_precision", "highest")
    dtype = np.dtype(np.float64 if options.x64 else np.float32)
    begin = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {line}", file=sys.stderr, flush=True)

    about = report.machine()
    versions = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    load = "" if about["load"] is None else f", load {about['load']:.1f}"
    print(f"{about['cpu']}, {about['cpu_count']} CPUs{load}; JAX {about['jax']} on {about['device']}; {versions}\n")
    print(report.legend(dtype) + "\n", flush=True)
    results: list[report.Result] = []

    def run(name: str) -> report.Result:
        def say_of_this(line: str) -> None:
            say(f"{name}: {line}")

        say_of_this("making it")
        made = from_file(options.npz) if name == FILE else MAKERS[name]()
        workload = finish(made, dtype, options.scale)
        rows = measure(workload, PEERS, options.repeat, options.budget, say_of_this)
        affordable = workload.take(workload.sample(rows[0].columns or workload.units))  # the first row is ours
        details = examine(affordable, options.repeat, options.budget, say_of_this)
        return report.Result.of(workload, rows, details)

    for name in options.only:
        results.append(run(name))
        print(report.table(results[-1]) + "\n", flush=True)
        if options.json:  # after each: an interrupted run leaves what it has
            report.write_json(options.json, results, about, vars(options))
    print("### jaxnnls in detail\n\n" + report.detail_table(results), flush=True)
    if options.plot:
        say("drawing")
        plot.draw(options.plot, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
