"""What a job has finished, on disk beside its output: a line for the job, and a line for each block of columns."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxnnls._npy import InputError
from jaxnnls._solution import Outcome, Solution, Status, tally


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
    """A file of JSON lines. A line that a killed process has not finished does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, job: dict[str, Any]) -> Report:
        """Start over, with nothing done."""
        self.path.write_text(json.dumps(job) + "\n")
        return Report()

    def append(self, report: Report) -> None:
        """All columns up to those of the report are written."""
        with self.path.open("a") as file:
            file.write(json.dumps([report.columns, list(report.outcomes.items()), report.worst]) + "\n")

    def resume(self, job: dict[str, Any]) -> Report | None:
        """The last report of this job; None if there is no journal, `InputError` if it is of another job."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        lines = text[: text.rfind("\n") + 1].splitlines()
        if not lines:
            return None
        begun = json.loads(lines[0])
        for name, value in json.loads(json.dumps(job)).items():
            if begun.get(name) != value:
                was = "has changed" if isinstance(value, dict) else f"is {value} now and was {begun.get(name)}"
                raise InputError(f"cannot resume: {name} {was}; without --resume all columns are solved again.")
        if len(lines) == 1:
            return Report()
        columns, outcomes, worst = json.loads(lines[-1])
        return Report(columns, {Status(s): Outcome(count, tuple(first)) for s, (count, first) in outcomes}, worst)

    def remove(self) -> None:
        """The job is done."""
        self.path.unlink(missing_ok=True)
