"""`python -m tests.fuzz --minutes 5` solves random problems until the time is up; a failure prints how to rerun it."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does

import cases
import checks
import checks_quadratic
import oracle

import jaxnnls
from jaxnnls import Status

PER_SHAPE = 100
SHAPES_PER_CACHE = 25  # a compiled solve keeps some 300 memory maps, of 65530 that Linux allows a process
SECONDS = 10  # between lines of progress
LINES = 10  # of failures of one kind


def arguments(argv):
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the shapes and problems; default: 0")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--x64", action="store_true", help="only float64; default: both")
    which.add_argument("--f32", action="store_true", help="only float32")
    parser.add_argument("--box-qp", action="store_true", help="their normal equations, by box_qp")
    parser.add_argument("--case", metavar="DTYPE,M,N,COLUMNS,SEED", help="only this one, as printed with a failure")
    options = parser.parse_args(argv)
    options.dtypes = ["float64"] if options.x64 else ["float32"] if options.f32 else ["float32", "float64"]
    if options.case:
        try:
            dtype, *numbers = options.case.split(",")
            options.case = (np.dtype(dtype), *(int(number) for number in numbers))
        except (TypeError, ValueError):
            parser.error(f"--case: not {options.case}")
        if options.case[0].name not in ("float32", "float64") or len(options.case) != 5:
            parser.error("--case: expected DTYPE,M,N,COLUMNS,SEED")
    return options


def shapes(seed):
    """Shapes (m, n, N) without end: of ten, nine have up to 12 in every dimension, one up to 40."""
    rng = np.random.default_rng(seed)
    while True:
        most = 40 if rng.random() < 0.1 else 12
        yield tuple(int(k) for k in rng.integers(0, most, 3, endpoint=True))


def pairs(options):
    """Each shape with each dtype; `itertools.product` would first look for the last shape."""
    return ((shape, dtype) for shape in shapes(options.seed) for dtype in options.dtypes)


def solve(problem, dtype, function=jaxnnls.lsq_linear):
    args, options = problem.astype(dtype)
    with jax.enable_x64(dtype == "f8"):
        return jax.tree.map(np.asarray, function(*args, **options))


def run(box_qp, dtype, m, n, N, seed):
    """One case: the recipe, the problem, the solution, and what is wrong with it."""
    rng = np.random.default_rng(seed)
    recipe = cases.draw(rng, n, N)
    problem = cases.build(recipe, m, dtype)
    if box_qp:
        program = checks_quadratic.normal_equations(problem, dtype)
        solution = solve(program, dtype, jaxnnls.box_qp)
        wrong = checks_quadratic.violations(program, solution, dtype)
        return recipe, program, solution, wrong
    solution = solve(problem, dtype)
    wrong = checks.violations(problem, solution, dtype)
    other, back = cases.otherwise(rng, problem, dtype)
    wrong += checks.disagreements(problem, solution, *back(solve(other, dtype)), dtype)
    return recipe, problem, solution, wrong


def rerun(box_qp, case):
    """Print a case and what is wrong with it."""
    recipe, problem, solution, wrong = run(box_qp, *case)
    np.set_printoptions(precision=17, linewidth=120, threshold=10**6)
    print(recipe)
    for name, value in zip(problem._fields[:4], problem):
        print(f"{name} =\n{value!r}")
    print(f"x =\n{solution.x!r}\noptimality = {solution.optimality}\nstatus = {solution.status}")
    print("\n".join(wrong) or "nothing is wrong")
    return bool(wrong)


class Tally:
    """What has been seen so far."""

    def __init__(self, box_qp):
        self.box_qp = box_qp
        self.begin = time.perf_counter()
        self.cases = 0
        self.statuses, self.worst, self.failures = Counter(), {}, Counter()

    def add(self, case, problem, solution, wrong):
        """Count a case, and say at once what is wrong with it."""
        self.cases += 1
        dtype = case[0].name
        if len(solution.x) and wrong != ["shapes"]:
            x = solution.x.astype(float)
            if self.box_qp:
                measured, _ = checks_quadratic.optimality(problem, x)
            else:
                measured, _ = oracle.optimality(checks.without_junk(problem), x)
            for status, optimality in zip(solution.status.tolist(), measured):
                key = dtype, Status(status).name
                self.statuses[key] += 1
                self.worst[key] = max(self.worst.get(key, 0.0), optimality)
        for line in wrong:
            kind = dtype, line.split(" (")[0].split(":")[0]
            self.failures[kind] += 1
            if self.failures[kind] <= LINES:
                which = "--box-qp " if self.box_qp else ""
                print(f"FAILED {line}: python -m tests.fuzz {which}--case {','.join(map(str, case))}", flush=True)

    def progress(self):
        """One line."""
        seconds = time.perf_counter() - self.begin
        print(f"[{seconds:6.1f} s] {self.cases} cases, {sum(self.failures.values())} failures", flush=True)

    def report(self):
        """The end: counts, worst optimality, failures by kind."""
        self.progress()
        for (dtype, status), count in sorted(self.statuses.items()):
            worst = self.worst[dtype, status]
            print(f"{dtype} {status:10} {count:8} columns, worst optimality {worst:.1e}")
        for (dtype, kind), count in self.failures.most_common():
            print(f"{dtype} {count:5} x {kind}")


def main(argv=None):
    """Fuzz until the time is up. Exit status 1 if anything was wrong."""
    options = arguments(argv)
    if options.case:
        return int(rerun(options.box_qp, options.case))
    tally, end = Tally(options.box_qp), time.perf_counter() + 60 * options.minutes
    said = time.perf_counter()
    for number, (shape, dtype) in enumerate(pairs(options)):
        if number % SHAPES_PER_CACHE == SHAPES_PER_CACHE - 1:
            jax.clear_caches()
        for seed in range(PER_SHAPE):
            if time.perf_counter() > end:
                tally.report()
                return int(bool(tally.failures))
            case = (np.dtype(dtype), *shape, (options.seed * 10**6 + number) * PER_SHAPE + seed)
            _, problem, solution, wrong = run(options.box_qp, *case)
            tally.add(case, problem, solution, wrong)
            if time.perf_counter() > said + SECONDS:
                said = time.perf_counter()
                tally.progress()
    return 0


if __name__ == "__main__":
    sys.exit(main())
