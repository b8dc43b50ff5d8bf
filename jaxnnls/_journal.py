"""What a job has finished, on disk beside its output: a line for the job, and a line for each block of columns."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxnnls._npy import InputError
from jaxnnls._solution import Outcome, Solution, Status, tally

try:
    import fcntl
except ImportError:  # no locks on Windows
    fcntl = None  # type: ignore[assignment]

_AGAIN = "without --resume all columns are solved again."


class Report(NamedTuple):
    """How the columns up to `columns` went."""

    columns: int = 0
    outcomes: dict[Status, Outcome] = {}  # noqa: RUF012, never changed
    worst: float | None = None  # the largest optimality, None if there is none

    def extended(self, solution: Solution) -> "Report":
        """The report with the columns that follow."""
        outcomes = dict(self.outcomes)
        for status, (count, first) in tally(np.asarray(solution.status)).items():
            before = outcomes.get(status, Outcome(0, (first[0] + self.columns,)))
            outcomes[status] = Outcome(before.columns + count, before.first)
        known: NDArray[Any] = np.asarray(solution.optimality)
        known = known[~np.isnan(known)]
        worst = max([w for w in (self.worst, *known.max(initial=0, keepdims=True)[: known.size]) if w is not None],
                    default=None)  # fmt: skip
        return Report(
            self.columns + np.size(solution.status),
            dict(sorted(outcomes.items())),
            None if worst is None else float(worst),
        )


class Journal:
    """A file of JSON lines, which one job at a time may have open.

    A line that a killed process has not finished does not count.
    """

    def __init__(self, path: Path) -> None:
        """Open it, empty if it is new, or raise `InputError` if another job has it open."""
        self.path = path
        self.file = path.open("a+b", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise InputError(f"another job is writing {path.with_suffix('')}.") from error

    def clear(self) -> None:
        """Nothing is done."""
        self.file.truncate(0)

    def begin(self, job: dict[str, Any]) -> Report:
        """Start over: the part is there, and nothing in it is done."""
        self.clear()
        self._write(job)
        return Report()

    def append(self, report: Report) -> None:
        """All columns up to those of the report are written."""
        self._write([report.columns, list(report.outcomes.items()), report.worst])

    def _write(self, entry: Any) -> None:
        self.file.write((json.dumps(entry) + "\n").encode())

    def resume(self, job: dict[str, Any]) -> Report | None:
        """The last report of this job; None if there is none, `InputError` if it is of another job or damaged."""
        self.file.seek(0)
        text = self.file.read()
        end = text.rfind(b"\n") + 1
        self.file.truncate(end)  # what follows is not finished
        if not end:
            return None
        lines = text[:end].splitlines()
        try:
            begun, last = json.loads(lines[0]), json.loads(lines[-1])
            changed = [name for name, value in json.loads(json.dumps(job)).items() if begun[name] != value]
            report = Report() if len(lines) == 1 else _report(last)
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"cannot resume: {self.path} is damaged; {_AGAIN}") from error
        for name in changed:
            was = "has changed" if isinstance(job[name], dict) else f"is {job[name]} now and was {begun[name]}"
            raise InputError(f"cannot resume: {name} {was}; {_AGAIN}")
        return report

    def close(self) -> None:
        """Leave it to a later job."""
        self.file.close()

    def remove(self) -> None:
        """Nothing is left to go on with."""
        self.close()
        self.path.unlink(missing_ok=True)


def _report(entry: Any) -> Report:
    columns, outcomes, worst = entry
    known = {Status(s): Outcome(count, tuple(first)) for s, (count, first) in outcomes}
    if columns != sum(outcome.columns for outcome in known.values()):
        raise ValueError(f"{columns} columns, but {known}")
    return Report(columns, known, worst)
