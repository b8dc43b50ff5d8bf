"""Jobs that are interrupted: what is kept of them, and what `--resume` makes of it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jobs import N_COLUMNS, N_VARIABLES, WIDTH, Job, expect_error, make_job, scipy_nnls

from jaxnnls import Solution, _files, _stream
from jaxnnls.__main__ import main

pytestmark = pytest.mark.usefixtures("small_blocks")


def fail_in_block(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Raise instead of solving this block, from 1; the list grows by the width of each that was asked for."""
    real = _stream.lsq_linear
    seen: list[int] = []

    def solve(A: Any, B: np.ndarray, *args: Any, **options: Any) -> Solution:
        seen.append(B.shape[1])
        if len(seen) == number:
            raise error
        return real(A, B, *args, **options)

    monkeypatch.setattr(_stream, "lsq_linear", solve)
    return seen


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [(KeyboardInterrupt(), 130, "interrupted."), (OSError(5, "Input/output error"), 2, "error: .*Input/output error.")],
)
def test_interruption_keeps_what_is_done(
    error: BaseException,
    expected: int,
    said: str,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(job.argv) == 0
    whole = job.output.read_bytes()
    job.output.write_text("the old one")
    with monkeypatch.context() as patch:
        fail_in_block(3, error, patch)
        assert main(job.argv) == expected
    assert job.output.read_text() == "the old one"
    assert job.leftovers() == {"X.npy", "X.npy.part", "X.npy.journal"}
    assert re.fullmatch(
        rf"jaxnnls: {said} {2 * WIDTH} of {N_COLUMNS} columns are kept: --resume goes on from there.\n",
        capsys.readouterr().err,
    )
    solved = fail_in_block(0, error, monkeypatch)
    assert main([*job.argv, "--resume"]) == 0
    assert solved == [WIDTH]
    assert job.leftovers() == {"X.npy"}
    assert job.output.read_bytes() == whole
    assert f"{N_COLUMNS} columns in" in capsys.readouterr().out


def test_resume_after_a_kill(tmp_path: Path) -> None:
    job = make_job(tmp_path, columns=(20_000,))
    code = f"from jaxnnls import _files, __main__ as m; _files.COLUMN_BYTES = {20 * _files.COLUMN_BYTES}; m.main()"
    journal = job.output.with_name("X.npy.journal")
    with subprocess.Popen([sys.executable, "-c", code, *job.argv], stderr=subprocess.DEVNULL) as process:
        while not (journal.exists() and journal.read_text().count("\n") > 2):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    lines = journal.read_text().splitlines()
    done = json.loads(lines[-1])[0]
    assert 0 < done < 20_000 and not job.output.exists()
    journal.write_text("\n".join(lines) + '\n[99, "torn')
    kept = np.load(job.output.with_name("X.npy.part"))[:, :done]
    np.testing.assert_allclose(kept, scipy_nnls(job.A, job.B[:, :done]), rtol=1e-12, atol=1e-12)
    assert subprocess.run([sys.executable, "-c", code, *job.argv, "--resume"], capture_output=True).returncode == 0
    X = np.load(job.output)
    np.testing.assert_array_equal(X[:, :done], kept)
    some = np.random.default_rng(0).integers(20_000, size=100)
    np.testing.assert_allclose(X[:, some], scipy_nnls(job.A, job.B[:, some]), rtol=1e-12, atol=1e-12)


def test_resume_refuses_another_job(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*job.argv, "--resume"]) == 0  # nothing to resume
    job.output.unlink()
    with monkeypatch.context() as patch:
        fail_in_block(3, KeyboardInterrupt(), patch)
        main(job.argv)
    capsys.readouterr()
    expect_error([*job.argv, "--resume", "--ridge", "1"], "--ridge is 1.0 now and was 0.0", job, capsys)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="abacus")])
        expect_error([*job.argv, "--resume"], "the kind of device is abacus now and was ", job, capsys)
    np.save(job.files[1], job.B + 1)
    expect_error([*job.argv, "--resume"], "the file of B has changed", job, capsys)
    np.save(job.files[1], job.B[:, :7])
    expect_error([*job.argv, "--resume"], "the file of B has changed", job, capsys)
    assert main(job.argv) == 0
    assert np.load(job.output).shape == (N_VARIABLES, 7) and job.leftovers() == {"X.npy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 200), "B.npy has become shorter"),
        (lambda path: path.touch(), "has changed while it was solved"),
    ],
)
def test_input_that_changes_on_the_way(
    change: Any, message: str, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = _stream.lsq_linear

    def solve(*args: Any, **options: Any) -> Solution:
        change(Path(job.files[1]))
        return real(*args, **options)

    monkeypatch.setattr(_stream, "lsq_linear", solve)
    assert main(job.argv) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "kept" not in error
    assert job.leftovers() == set()


def interrupted(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Begin a job, stop it after its first block or two, and return the path of its journal."""
    with monkeypatch.context() as patch:
        fail_in_block(3, KeyboardInterrupt(), patch)
        assert main(job.argv) == 130
    capsys.readouterr()
    return job.output.with_name("X.npy.journal")


def test_part_that_is_new_has_nothing_done(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(job, monkeypatch, capsys)
    code = (
        "import os; from jaxnnls import _files, __main__ as m; make = _files.create\n"
        "_files.create = lambda *args: (make(*args), os._exit(9)); m.main()"
    )
    assert subprocess.run([sys.executable, "-c", code, *job.argv], check=False).returncode == 9
    assert main([*job.argv, "--resume"]) == 0
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)


def test_one_job_at_a_time(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    real = _stream.lsq_linear

    def solve(*args: Any, **options: Any) -> Solution:
        with monkeypatch.context() as patch:
            patch.setattr(_stream, "lsq_linear", real)
            expect_error([*job.argv, "--ridge", "5"], "another job is writing .*X.npy", job, capsys)
        return real(*args, **options)

    monkeypatch.setattr(_stream, "lsq_linear", solve)
    assert main(job.argv) == 0
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)


def test_torn_line_does_not_count(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = interrupted(job, monkeypatch, capsys)
    for _ in range(2):
        with journal.open("a") as file:
            file.write("[8, [[0, [8, [")
        with monkeypatch.context() as patch:
            fail_in_block(1, KeyboardInterrupt(), patch)
            assert main([*job.argv, "--resume"]) == 130
    assert main([*job.argv, "--resume"]) == 0
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("damage", ["first", "last", "count", "binary", "part"])
def test_resume_refuses_damage(
    damage: str, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = interrupted(job, monkeypatch, capsys)
    lines = journal.read_bytes().splitlines()
    if damage == "part":
        np.save(job.output.with_name("part.npy"), np.zeros((N_VARIABLES, N_COLUMNS), np.float32))
        os.replace(job.output.with_name("part.npy"), job.output.with_name("X.npy.part"))
    else:
        bad = {"first": [b"{", *lines[1:]], "last": [*lines, b"[99]"], "count": [*lines, b"[99, [], null]"]}
        journal.write_bytes(b"\n".join(bad.get(damage, [b"\xff\xfe"])) + b"\n")
    expect_error([*job.argv, "--resume"], "is damaged; without --resume", job, capsys)
    assert main(job.argv) == 0
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)
