"""Every code block of the README is run, and its tables are held against the library."""

import inspect
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import jaxnnls

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BASH_LINES = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
FILE_JOBS = [line for line in BASH_LINES if line.startswith("python -m jaxnnls ")]
INSTALLS = [
    "pip install . && python -m jaxnnls",
    "pip install '.[test]' && python -m pytest",
    "pip install '.[docs]' && python -m tests.docs",
]
BENCHMARKS = [line for line in BASH_LINES if "python -m tests.benchmarks" in line]


def table(header):
    """The rows of the table with this header, each a list of cells."""
    body = README.split(f"| {header} |\n", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines()[1:]]


def test_every_block_is_one_that_is_run():
    assert {language for language, _ in BLOCKS} == {"math", "bash", "python", "text"}
    assert [language for language, _ in BLOCKS].count("math") == 1
    assert sorted(BASH_LINES) == sorted(INSTALLS + FILE_JOBS + BENCHMARKS)
    assert FILE_JOBS


def test_benchmark_commands_are_understood():
    assert BENCHMARKS
    for line in BENCHMARKS:
        module, *options = shlex.split(line.split("python -m ", 1)[1])
        module = "tests.benchmarks.__main__" if module == "tests.benchmarks" else module
        code = f"from {module} import arguments; arguments({options!r})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_python_blocks_print_what_the_readme_shows():
    blocks = [block for language, block in BLOCKS if language == "python"]
    shown = [
        block
        for (before, _), (language, block) in itertools.pairwise(BLOCKS)
        if (before, language) == ("python", "text")
    ]
    assert len(blocks) == len(shown) == sum(language == "text" for language, _ in BLOCKS)
    mark = "\N{BLACK SQUARE}\n"
    program = f"\nprint({mark!r}, end='')\n".join(blocks)
    # A process of its own: one of the blocks switches to float64.
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-W", "error", "-c", program], capture_output=True, encoding="utf-8", timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split(mark) == shown


@pytest.mark.parametrize("line", FILE_JOBS)
def test_file_jobs(line, tmp_path):
    rng = np.random.default_rng(0)
    A, B = rng.random((20, 5)), rng.standard_normal((20, 30))
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "B.npy", B)
    command = shlex.split(line)
    options = dict(zip(command[7::2], map(float, command[8::2])))
    run = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr

    X = np.load(tmp_path / "X.npy")
    lower, upper = options.get("--lower", 0.0), options.get("--upper", np.inf)
    gradient = A.T @ (A @ X - B) + options.get("--ridge", 0.0) * X + options.get("--l1", 0.0)
    assert X.shape == (5, 30) and X.dtype == np.float64
    np.testing.assert_allclose(X, np.clip(X - gradient, lower, upper), atol=1e-10)


def test_status_table_is_the_one_in_the_library():
    expected = [[str(status.value), f"`{status.name}`", status.advice] for status in jaxnnls.Status]
    assert table("value | Status | advice") == expected


def test_option_table_is_complete():
    named = [name for names, _ in table("option | meaning") for name in re.findall(r"`(\w+)`", names)]
    for function, missing in ((jaxnnls.lsq_linear, set()), (jaxnnls.box_qp, set()), (jaxnnls.nnls, {"bounds"})):
        assert set(inspect.signature(function).parameters) - set("ABQq") == set(named) - missing
    for name in jaxnnls.__all__:
        assert name in README


def test_modules_exist():
    section = README.split("## Where things are", 1)[1]
    modules = set(re.findall(r"\b_\w+", section))
    assert len(modules) > 5
    for module in modules:
        assert (ROOT / "jaxnnls" / f"{module}.py").is_file(), module


def test_version_is_the_one_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == jaxnnls.__version__
    assert f"## [{jaxnnls.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
