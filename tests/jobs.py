"""Files of small problems for the command line, and what its tests have in common."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.optimize

from jaxnnls.__main__ import main

M, N_VARIABLES, N_COLUMNS, WIDTH = 12, 5, 10, 4


class Job(NamedTuple):
    """A problem, and the files of it."""

    A: np.ndarray
    B: np.ndarray
    files: tuple[str, str]
    output: Path

    @property
    def argv(self) -> list[str]:
        """The command that solves it."""
        return [*self.files, "-o", str(self.output)]

    def leftovers(self) -> set[str]:
        """What is in the folder besides the input."""
        return {p.name for p in self.output.parent.iterdir()} - {Path(f).name for f in self.files}


def make_job(folder: Path, dtype: Any = np.float64, columns: tuple[int, ...] = (N_COLUMNS,)) -> Job:
    rng = np.random.default_rng(7)
    A = rng.standard_normal((M, N_VARIABLES))
    B = rng.standard_normal((M, *columns)) * 3
    if np.issubdtype(dtype, np.integer):
        A, B = 20 * A, 20 * B
    A, B = A.astype(dtype), B.astype(dtype)
    files = (str(folder / "A.npy"), str(folder / "B.npy"))
    for file, array in zip(files, (A, B)):
        np.save(file, array)
    return Job(A, B, files, folder / "X.npy")


def scipy_nnls(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    return np.stack([scipy.optimize.nnls(A.astype(float), b)[0] for b in B.T.astype(float)], axis=1)


def expect_error(argv: list[str], message: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    before = job.leftovers()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxnnls: error: ") and captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert job.leftovers() == before
