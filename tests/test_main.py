"""The command line: what it prints, what it writes, and how it exits."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize
from jobs import N_COLUMNS, N_VARIABLES, WIDTH, Job, M, expect_error, make_job, scipy_nnls

import jaxnnls
from jaxnnls import Solution, Status, _demo, _stream
from jaxnnls.__main__ import main

pytestmark = pytest.mark.usefixtures("small_blocks")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jaxnnls", *argv], capture_output=True, text=True, timeout=120)


def test_without_arguments_inverts_a_spectrogram() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in done.stdout.splitlines()[1:])
    assert "128 x 1025" in rows["problem"]
    frames = re.search(r"(\d+) frames", rows["problem"])
    assert frames and rows["status"] == f"{frames[1]} CONVERGED"
    for call in ("first call", "second call"):
        assert float(rows[call].split(" s")[0]) > 0
    assert 0 < float(rows["relative residual"]) < 1e-4
    assert 0 <= float(rows["worst optimality"]) < 1e-5
    assert 0.1 < float(rows["spectral convergence"]) < 0.8
    assert float(rows["gradient check"].split()[0]) <= _demo.GRADIENT_LIMIT
    assert rows["gradient check"].endswith("passed")
    assert len({line.index(value) for line, value in zip(done.stdout.splitlines()[1:], rows.values())}) == 1  # aligned


@pytest.mark.parametrize(
    ("status", "gradient", "expected"),
    [(0, 1.0, 0), (0, 1.1, 1), (0, np.nan, 1), (Status.PRECISION, 1.0, 1)],
)
def test_without_arguments_exit_status_tells_of_failure(
    status: int, gradient: float, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def solve(A: np.ndarray, B: np.ndarray) -> _demo.TimedSolution:
        x, column = np.zeros((A.shape[1], B.shape[1]), np.float32), np.zeros(B.shape[1], np.float32)
        statuses = np.zeros(B.shape[1], np.int32)
        statuses[3] = status
        return _demo.TimedSolution(Solution(x, x, column, column, statuses, statuses, x), 1.0)

    monkeypatch.setattr(_demo, "timed_solve", solve)
    monkeypatch.setattr(_demo, "check_gradient", lambda A, B, rng: _demo.GradientCheck(gradient, 1.0))
    assert main([]) == expected
    assert ("FAILED" in capsys.readouterr().out) == (gradient != 1.0)


def test_mel_filters_have_unit_area_and_the_pluck_its_pitch() -> None:
    A = _demo.mel_basis(40)
    assert A.shape == (40, 1 + _demo.FFT_SIZE // 2)
    np.testing.assert_allclose(A.sum(axis=1) * _demo.SAMPLE_RATE / _demo.FFT_SIZE, 1.0, rtol=0.15)
    first_note = _demo.plucked_strings(np.random.default_rng(1))[: int(_demo.NOTE_SECONDS * _demo.SAMPLE_RATE)]
    lags = np.arange(60, 160)
    similarity = [np.dot(first_note[:-lag], first_note[lag:]) for lag in lags]
    assert abs(lags[np.argmax(similarity)] - _demo.SAMPLE_RATE / _demo.NOTES_HZ[0]) <= 1


def test_as_a_process(job: Job) -> None:
    done = run(*job.argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"{N_COLUMNS} columns in \d+\.\d s, worst optimality \d\.\de-\d+, status: {N_COLUMNS} CONVERGED\n", done.stdout
    )
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)
    failed = run(*job.files)
    assert failed.returncode == 2
    assert failed.stderr.startswith("jaxnnls: error: ") and failed.stderr.count("\n") == 1
    assert failed.stdout == ""


@pytest.mark.parametrize(
    ("dtype", "atol"), [(np.float64, 1e-12), (np.int16, 1e-12), (">f8", 1e-12), (np.float32, 1e-5)]
)
def test_agrees_with_scipy_and_keeps_the_dtype(dtype: Any, atol: float, tmp_path: Path) -> None:
    job = make_job(tmp_path, np.dtype(dtype))
    before = jax.config.jax_enable_x64
    assert main(job.argv) == 0
    assert jax.config.jax_enable_x64 == before
    X = np.load(job.output)
    assert X.dtype == (np.float32 if dtype is np.float32 else np.float64)
    np.testing.assert_allclose(X, scipy_nnls(job.A, job.B), rtol=atol, atol=atol)
    assert job.leftovers() == {"X.npy"}


def test_several_blocks_of_one_width(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = _stream.lsq_linear

    def spy(A: Any, B: np.ndarray, *args: Any, **options: Any) -> Solution:
        seen.append(B.shape)
        return real(A, B, *args, **options)

    monkeypatch.setattr(_stream, "lsq_linear", spy)
    assert main(job.argv) == 0
    assert seen == [(M, WIDTH)] * 3
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)


def test_one_dimension(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path, columns=())
    assert main(job.argv) == 0
    x = np.load(job.output)
    assert x.shape == (N_VARIABLES,)
    np.testing.assert_allclose(x, scipy.optimize.nnls(job.A, job.B)[0], rtol=1e-12, atol=1e-12)
    assert capsys.readouterr().out.startswith("1 columns in ")


def test_no_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path, columns=(0,))
    assert main(job.argv) == 0
    assert np.load(job.output).shape == (N_VARIABLES, 0)
    assert capsys.readouterr().out.startswith("0 columns in ")


@pytest.mark.parametrize("lower", [["--lower", "-inf"], ["--lower=-inf"], ["--lower", "-2e-1"]])
def test_bounds_and_ridge(lower: list[str], job: Job) -> None:
    assert main([*job.argv, *lower, "--upper", "0.3", "--ridge", "0.5"]) == 0
    augmented = np.vstack([job.A, np.sqrt(0.5) * np.eye(N_VARIABLES)])
    bounds = (float(lower[-1].split("=")[-1]), 0.3)
    X = np.load(job.output)
    assert X.max() == 0.3
    for b, x in zip(job.B.T, X.T):
        right = np.concatenate([b, np.zeros(N_VARIABLES)])
        expected = scipy.optimize.lsq_linear(augmented, right, bounds, method="bvls", tol=1e-15).x
        np.testing.assert_allclose(x, expected, atol=1e-10)


def test_l1_and_tol(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    tols = []
    real = _stream.lsq_linear

    def spy(*args: Any, tol: float | None, **options: Any) -> Solution:
        tols.append(tol)
        return real(*args, tol=None, **options)  # a number would compile anew

    monkeypatch.setattr(_stream, "lsq_linear", spy)
    assert main([*job.argv, "--l1", "2.5", "--tol", "1e-9"]) == 0
    assert set(tols) == {1e-9}
    moved = job.B - 2.5 * job.A @ np.linalg.solve(job.A.T @ job.A, np.ones((N_VARIABLES, 1)))  # A'moved = A'B - l1
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, moved), atol=1e-11)


def test_a_column_with_nan_is_told_and_harms_no_other(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    B = job.B.copy()
    B[3, 5] = np.nan
    np.save(job.files[1], B)
    assert main(job.argv) == 10 + Status.NONFINITE == 13
    X = np.load(job.output)
    assert np.isnan(X[:, 5]).all()
    others = np.arange(N_COLUMNS) != 5
    np.testing.assert_allclose(X[:, others], scipy_nnls(job.A, job.B)[:, others], rtol=1e-12, atol=1e-12)
    captured = capsys.readouterr()
    assert f"status: {N_COLUMNS - 1} CONVERGED, 1 NONFINITE" in captured.out
    assert "nan" not in captured.out
    assert captured.err == f"jaxnnls: NONFINITE (1 column, first 5): {Status.NONFINITE.advice}\n"


def _save(path: str, array: Any) -> None:
    np.save(path, array, allow_pickle=True)


BAD_FILES = {
    "missing": (lambda job: Path(job.files[1]).unlink(), "cannot read .*B.npy: No such file"),
    "folder": (lambda job: (Path(job.files[1]).unlink(), Path(job.files[1]).mkdir()), "cannot read .*B.npy"),
    "text": (lambda job: Path(job.files[1]).write_text("1 2 3\n4 5 6\n"), "B.npy is not a readable .npy file"),
    "empty": (lambda job: Path(job.files[0]).write_bytes(b""), "A.npy is not a readable .npy file"),
    "truncated": (
        lambda job: Path(job.files[1]).write_bytes(Path(job.files[1]).read_bytes()[:-8]),
        "B.npy is not a readable .npy file",
    ),
    "damaged header": (
        lambda job: Path(job.files[1]).write_bytes(Path(job.files[1]).read_bytes().replace(b"descr", b"\n(((")),
        "B.npy is not a readable .npy file",
    ),
    "archive": (
        lambda job: (np.savez(job.files[0] + ".npz", job.A), Path(job.files[0] + ".npz").replace(job.files[0])),
        "A.npy is an archive",
    ),
    "objects": (lambda job: _save(job.files[1], np.array([1, "a"], dtype=object)), "B.npy is not a readable .npy file"),
    "strings": (lambda job: _save(job.files[1], np.array(["a", "b"])), "real numbers.*B.npy, got dtype <U1"),
    "complex": (lambda job: _save(job.files[1], job.B * 1j), "real numbers.*B.npy, got dtype complex128"),
    "fields": (lambda job: _save(job.files[0], np.zeros(3, [("a", float)])), "real numbers.*A.npy"),
    "rank of A": (lambda job: _save(job.files[0], job.A[0]), r"two axes in .*A.npy, got shape \(5,\)"),
    "rank of B": (lambda job: _save(job.files[1], job.B[None]), r"axes in .*B.npy, got shape \(1, 12, 10\)"),
    "scalar B": (lambda job: _save(job.files[1], 1.0), r"axes in .*B.npy, got shape \(\)"),
    "sizes": (lambda job: _save(job.files[1], job.B.T), r"to go with A of shape \(12, 5\), got shape \(10, 12\)"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = BAD_FILES[name]
    damage(job)
    expect_error(job.argv, message, job, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lower", "1", "--upper", "0.5"], "lower <= upper"),
        (["--lower", "inf"], "lower < inf"),
        (["--ridge", "-1"], "ridge >= 0, got -1.0"),
        (["--ridge", "inf"], "--ridge: expected a finite number, got 'inf'"),
        (["--l1", "-1e-3"], "l1 >= 0, got -0.001"),
        (["--l1", "1", "--lower", "-1"], "lower >= 0 where l1 > 0"),
        (["--tol", "-1"], "tol >= 0"),
        (["--upper", "many"], "--upper: expected a number, got 'many'"),
        (["--upper", "nan"], "--upper: expected a number, got 'nan'"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_options(options: list[str], message: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    expect_error([*job.argv, *options], message, job, capsys)


def test_bad_output(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_error([*job.files], "arguments are required: -o", job, capsys)
    expect_error([job.files[0], "-o", str(job.output)], "arguments are required: B.npy", job, capsys)
    expect_error([*job.files, "-o", str(tmp_path / "none" / "X.npy")], "no folder .*none", job, capsys)
    expect_error([*job.files, "-o", str(tmp_path)], "is a folder", job, capsys)


def test_output_that_would_be_a_loss(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    expect_error([*job.files, "-o", os.devnull], "it is a device", job, capsys)
    expect_error([*job.files, "-o", job.files[1]], "which is read, would be lost", job, capsys)
    part = job.output.with_name("X.npy.part")
    os.replace(job.files[1], part)
    expect_error([job.files[0], str(part), "-o", str(job.output)], "which is read, would be lost", job, capsys)
    os.replace(part, job.files[1])
    target = job.output.with_name("elsewhere.npy")
    target.touch()
    job.output.symlink_to(target)
    assert main(job.argv) == 0
    assert job.output.is_symlink() and job.leftovers() == {"X.npy", "elsewhere.npy"}
    np.testing.assert_allclose(np.load(target), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process from there")
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_is_that_of_a_few_blocks(order: Any, tmp_path: Path) -> None:
    # The peak of this process alone; that of getrusage begins with what the test itself has.
    code = (
        "import pathlib, re; from jaxnnls.__main__ import main; assert main() == 0;"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    rng = np.random.default_rng(0)
    A = rng.random((2000, 4), dtype=np.float32)
    np.save(tmp_path / "A.npy", A)
    peaks = []
    for N in (6_000, 28_000):  # both of them many blocks: what is compared has the same in flight
        np.save(tmp_path / "B.npy", np.asarray(A @ rng.random((4, N), dtype=np.float32), order=order))
        argv = [str(tmp_path / name) for name in ("A.npy", "B.npy")]
        command = [sys.executable, "-c", code, *argv, "-o", str(tmp_path / "X.npy")]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(1024 * int(run.stdout.splitlines()[-1]))
    assert (tmp_path / "B.npy").stat().st_size > 2e8
    # Of 176 MB that B has grown. Where it is flat, from one run to the next peaks differ by up to 60 MB.
    assert peaks[1] - peaks[0] < 8e7


def test_columns_in_fortran_order(job: Job) -> None:
    np.save(job.files[1], np.asfortranarray(job.B))
    assert main(job.argv) == 0
    np.testing.assert_allclose(np.load(job.output), scipy_nnls(job.A, job.B), rtol=1e-12, atol=1e-12)


def test_other_errors_leave_nothing_behind(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Solution:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_stream, "lsq_linear", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        main(job.argv)
    assert job.leftovers() == set()


def test_progress_only_for_a_terminal(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(job.argv) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(job.argv) == 0
    lines = [line.strip() for line in capsys.readouterr().err.split("\r") if line]
    assert lines[0].startswith("0%  0/10 columns") and lines[2].startswith("80%  8/10 columns")
    assert re.search(r"\d+/s  \d+ s left$", lines[1])
    assert lines[3].startswith("100%") and lines[4:] == [""]  # the line is cleared


def test_help_documents_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{status.value} {status.name}" in text for status in Status if status)
    assert "python -m jaxnnls" in text and jaxnnls.__name__ in text
