"""The documentation builds, and what is wrong with it keeps it from building."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
from docs import pages
from docs.check import BrokenError

import jaxnnls

NOTEBOOKS = sorted((pages.ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def checkout(tmp_path):
    """A README that can be spoilt, and the first notebook."""
    shutil.copy(pages.ROOT / "README.md", tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS[0], tmp_path / "notebooks")
    return tmp_path


def built(checkout):
    return pages.build(checkout / "README.md", checkout / "notebooks")


def rejected(checkout):
    """What the build has to say."""
    with pytest.raises(BrokenError) as error:
        built(checkout)
    return str(error.value)


def spoil(monkeypatch, documented, old, new):
    assert old in documented.__doc__
    monkeypatch.setattr(documented, "__doc__", documented.__doc__.replace(old, new, 1))


def test_pages(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "tests.docs", str(tmp_path / "docs")]
    subprocess.run(command, cwd=pages.ROOT, check=True, timeout=300)
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "docs").iterdir()}
    assert set(written) == {"index.html", "jaxnnls.html", *(f"{path.stem}.html" for path in NOTEBOOKS)}
    for name, page in written.items():
        assert "<math" in page and "$$" not in page and ":math:" not in page
        assert all(f'href="{other}"' in page for other in written), name
    reference = written["jaxnnls.html"]
    for name in jaxnnls.__all__:
        assert f'<section id="{name}">' in reference
    for status in jaxnnls.Status:
        assert f'<a href="#Status.{status.name}">' in reference
        assert reference.count(status.advice.replace("'", "&#39;")) + reference.count(status.advice) >= 2
    assert 'href="jaxnnls.html#nnls"' in written[f"{NOTEBOOKS[0].stem}.html"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("## Files", "## Files\n\nSee [that](#nowhere).", "index.html: link to #nowhere: there is no such place"),
        ("## Files", "## Files\n\nSee [that](other.md).", "index.html: link to other.md: there is no such page"),
        ("## Files", "## Files\n\n`jaxnnls.nnsl(A, B)`", "index.html: link to jaxnnls.html#nnsl"),
        (
            "## Files",
            "## Files\n\n`notebooks/99_gone.ipynb`",
            "index.html: link to 99_gone.html: there is no such page",
        ),
        ("## Files", "## Files\n\n[it](notebooks/99_gone.ipynb)", "link to 99_gone.html: there is no such page"),
        ("tests/benchmarks/cpu.png", "tests/benchmarks/gone.png", "gone.png is not part of the page"),
        ("tests/benchmarks/cpu.png", "https://example.org/cpu.png", "cpu.png is not part of the page"),
        ("## Files", "## Solve", "index.html: two elements are called Solve"),
        (r"\tfrac12", r"\tfrak12", r'Unknown command "\tfrak"'),
        ("# jaxnnls\n", "", "index.html: no heading of the first level"),
    ],
)
def test_readme_with(old, new, complaint, checkout):
    readme = checkout / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert old in text
    readme.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert complaint in rejected(checkout)


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("nnls", "`lsq_linear`", "`lsq_linaer`", "reference: `lsq_linaer` is the name of nothing"),
        ("nnls", "`jax.vmap`", "`jax.vamp`", "reference: `jax.vamp` is the name of nothing"),
        ("box_qp", r"\tfrac12", r"\tfrac{12", "TeX: "),
        ("lsq_linear", r"\operatorname{clip}", r"\clip", r'Unknown command "\clip"'),
        ("lsq_linear", "max_steps : int", "maxsteps : int", "jaxnnls.lsq_linear: max_steps is not documented"),
        ("lsq_linear", "max_steps : int", "maxsteps : int", "documents maxsteps, which is not there"),
        ("Solution", "    nit : ", "    steps : ", "jaxnnls.Solution: nit is not documented"),
    ],
)
def test_docstring_with(name, old, new, complaint, checkout, monkeypatch):
    spoil(monkeypatch, getattr(jaxnnls, name), old, new)
    assert complaint in rejected(checkout)


def test_public_name_without_docstring(checkout, monkeypatch):
    monkeypatch.setattr(jaxnnls.raise_if_failed, "__doc__", None)
    monkeypatch.setattr(jaxnnls.Solution, "failed", property(lambda self: self.status != 0), raising=False)
    complaints = rejected(checkout)
    assert "jaxnnls.raise_if_failed: no docstring" in complaints
    assert "jaxnnls.Solution.failed: no docstring" in complaints


def test_public_name_that_the_package_docstring_leaves_out(checkout, monkeypatch):
    spoil(monkeypatch, jaxnnls, "`in_librosa` puts", "Something puts")
    assert "the docstring of the package does not name in_librosa" in rejected(checkout)


def test_no_notebook(checkout):
    (checkout / "notebooks" / NOTEBOOKS[0].name).unlink()
    assert "no notebook in " in rejected(checkout)


def test_notebook_that_was_not_run(checkout):
    path = checkout / "notebooks" / NOTEBOOKS[0].name
    notebook = json.loads(path.read_text(encoding="utf-8"))
    next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")["execution_count"] = None
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert f"{path.name}: has not been run: import time" in rejected(checkout)


def test_warnings(checkout, monkeypatch):
    def read(path, reader=pages.read_notebook):
        warnings.warn("of Python", stacklevel=2)
        notebook = reader(path)
        for cell in notebook.cells:
            cell.metadata.pop("alt", None)  # nbconvert logs a warning of pictures without a description
        return notebook

    monkeypatch.setattr(pages, "read_notebook", read)
    complaints = rejected(checkout)
    assert "of Python" in complaints
    assert "nbconvert: Alternative text is missing" in complaints


def test_complaints_are_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    from docs import __main__ as command

    spoil(monkeypatch, jaxnnls.nnls, "`jax.vmap`", "`jax.vamp`")
    assert command.main([str(tmp_path / "docs")]) == 1
    assert capsys.readouterr().err == "reference: `jax.vamp` is the name of nothing that exists\n"
    assert not (tmp_path / "docs").exists()
