"""The command line: `python -m jaxnnls` shows the library at work, `python -m jaxnnls A.npy B.npy -o X.npy` solves."""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxnnls import _demo
from jaxnnls._files import Request, solve_files
from jaxnnls._journal import Report
from jaxnnls._npy import InputError
from jaxnnls._solution import Status, failures

_DESCRIPTION = """\
Without arguments: invert a synthetic mel spectrogram and print times, residuals and a gradient check.
With files: for every column b of B.npy, the x within bounds that minimises
    1/2 ||A x - b||^2 + ridge/2 ||x||^2 + l1 sum(x),
the one of least norm where there are several, written to X.npy."""

_EPILOG = """\
B.npy is read in blocks of columns and may be larger than the memory. float32 files are solved in float32, float64
and integer files in float64. X.npy has shape (n,) or (n, N), and is written whole or not at all: until then there are
X.npy.part and X.npy.journal, and after an interruption, even by a kill, --resume goes on from the last block in them.

exit status:
  0      every column converged
  1      without files: a column failed, or the gradient check did
  2      bad input; one line on stderr says what
  10+s   X.npy is written, but columns failed; s is the largest status that occurred: """ + ", ".join(
    f"{status.value} {status.name}" for status in Status if status
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and no usage, from `main`, as for everything else that is wrong with the input."""
        raise InputError(message)


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def _finite(text: str) -> float:
    value = _bound(text)
    if math.isinf(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxnnls",
        usage="python -m jaxnnls [A.npy B.npy -o X.npy [options]]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("matrix", metavar="A.npy", type=Path, help="the matrix, shape (m, n)")
    parser.add_argument("columns", metavar="B.npy", type=Path, help="right-hand sides, shape (m,) or (m, N)")
    parser.add_argument("-o", "--output", metavar="X.npy", type=Path, required=True, help="where the solutions go")
    parser.add_argument("--lower", type=_bound, default=0.0, help="lower bound of x, 0 by default; may be -inf")
    parser.add_argument("--upper", type=_bound, default=math.inf, help="upper bound of x, inf by default")
    parser.add_argument("--ridge", type=_finite, default=0.0, help="weight of 1/2 ||x||^2, 0 by default")
    parser.add_argument("--l1", type=_finite, default=0.0, help="weight of sum(x), 0 by default; needs lower >= 0")
    parser.add_argument("--tol", type=_finite, help="on the optimality; by default what the dtype allows")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run of this command stopped")
    return parser


def _join_negative(argv: Sequence[str]) -> list[str]:
    """`--lower -inf` as `--lower=-inf`: argparse takes -inf and -1e-3 for options."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--lower", "--upper", "--ridge", "--l1", "--tol") and argument[:1] == "-":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _print_report(report: Report, seconds: float) -> None:
    counts = ", ".join(f"{count} {status.name}" for status, (count, _) in report.outcomes.items()) or "none"
    worst = "-" if report.worst is None else f"{report.worst:.1e}"
    print(f"{report.columns} columns in {seconds:.1f} s, worst optimality {worst}, status: {counts}")
    for line in failures(report.outcomes):
        print("jaxnnls:", line, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    exit_status : int
        As `--help` has it.
    """
    argv = sys.argv[1:] if argv is None else argv
    start = time.perf_counter()
    try:
        if not argv:
            return _demo.run()
        report = solve_files(Request(**vars(_parser().parse_args(_join_negative(argv)))))
    except (InputError, OSError, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        what = "interrupted." if stopped else f"error: {str(error).rstrip('.')}."
        print("jaxnnls:", " ".join(" ".join([what, *getattr(error, "__notes__", [])]).split()), file=sys.stderr)
        return 130 if stopped else 2
    _print_report(report, time.perf_counter() - start)
    return 10 + max(report.outcomes) if any(report.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
