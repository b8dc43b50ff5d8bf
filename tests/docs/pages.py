"""The pages: Markdown and notebooks by nbconvert, docstrings by pdoc, all in pdoc's frame, mathematics as MathML.

Browsers typeset MathML themselves: the pages need no network and no JavaScript, and bad TeX is found here.
"""

import inspect
import logging
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import math_core
import nbformat
import pdoc
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pdoc import render_helpers

import jaxnnls

from . import check
from .check import BrokenError

ROOT = Path(__file__).parents[2]
REFERENCE = "jaxnnls.html"
TEX = math_core.LatexToMathML(fancy_error=False)


def typeset(tex: str, display: bool) -> str:
    """MathML; what is displayed can be scrolled where it is wider than the page."""
    try:
        html = TEX.convert_with_local_state(tex.strip(), displaystyle=display)
    except math_core.LatexError as error:
        raise BrokenError([f"TeX: {error} in: {tex.strip()}"]) from None
    return f'<span class="formula">{html}</span>' if display else html


class Renderer(IPythonRenderer):
    """Markdown of the README and of notebooks, with mathematics and with links into the documentation."""

    def inline_math(self, body: str) -> str:
        """TeX between single dollars."""
        return typeset(body, display=False)

    def block_math(self, body: str) -> str:
        """TeX between double dollars."""
        return typeset(body, display=True)

    def latex_environment(self, name: str, body: str) -> str:
        """TeX without dollars."""
        return typeset(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def block_code(self, code: str, info: str | None = None) -> str:
        """Code, or TeX as GitHub has it."""
        return typeset(code, display=True) if info == "math" else super().block_code(code, info)

    def codespan(self, text: str) -> str:
        """Code; a public name, or a call of it, leads to the reference, and a notebook to its page."""
        html = super().codespan(text)
        if notebook := re.fullmatch(r"(?:notebooks/)?(\w+)\.ipynb", text):
            return f'<a href="{notebook[1]}.html">{html}</a>'
        if name := re.match(r"(?:jaxnnls\.(\w+(?:\.\w+)*)|(\w+))(?:\(|$)", text):
            qualname = name[1] or name[2]
            qualname = f"Status.{qualname}" if qualname in jaxnnls.Status.__members__ else qualname
            if name[1] or qualname.startswith("Status.") or qualname in jaxnnls.__all__:
                return f'<a href="{REFERENCE}#{qualname}">{html}</a>'
        return html

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link; one to a notebook leads to its page."""
        return super().link(text, re.sub(r"^(?:[^:#]*/)?([^:#/]+)\.ipynb(?=#|$)", r"\1.html", url), title)


class Exporter(HTMLExporter):
    """Notebooks and Markdown without a page around them."""

    def __init__(self) -> None:
        super().__init__(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)

    def markdown2html(self, context: Any, source: str) -> str:
        """The filter of nbconvert's templates."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = Renderer(escape=False, attachments=attachments, embed_images=True, path=str(ROOT))
        return MarkdownWithMath(renderer).render(source)

    markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg  # type: ignore[attr-defined]

    def html(self, notebook: NotebookNode) -> str:
        """The body of a page; its code is coloured by pdoc's style sheet."""
        html, _ = self.from_notebook_node(notebook)
        return re.sub(r'<div class="highlight[^"]*">', '<div class="pdoc-code codehilite">', html)


def read_notebook(path: Path) -> NotebookNode:
    """A notebook that has been run, its pictures described by their titles."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "python"}  # needs no IPython
    heading = path.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.*)", cell.source, re.MULTILINE) or [heading])[-1]
        elif cell.cell_type == "code":
            if cell.source and not cell.execution_count:
                raise BrokenError([f"{path.name}: has not been run: {cell.source.splitlines()[0]}"])
            cell.metadata.setdefault("alt", "; ".join(re.findall(r'title[=(]"([^"]+)"', cell.source)) or heading)
    return notebook


def reference(uses: dict[str, list[str]]) -> pdoc.doc.Module:
    """The public names, as pdoc sees them, with what it cannot know."""
    module = pdoc.doc.Module(jaxnnls)
    members = sorted(module.members.items(), key=lambda member: check.position(module, member[0]))
    module.members = dict(members)
    table = "\n| status | meaning, and what to do |\n|---|---|\n"
    for status in jaxnnls.Status:
        member = module.get(f"Status.{status.name}")
        member.docstring, member.default_value_str = status.advice, str(status.value)
        table += f"| `{member.qualname}` | {status.advice} |\n"
    before, heading, after = module.docstring.partition("## When a solve fails\n")
    text, _, rest = after.partition("\n## ")
    module.docstring = f"{before}{heading}{text}{table}\n## {rest}"
    solution = module.get("Solution")
    solution.members.pop("__init__", None)  # only solves make one
    for name, (kind, text) in check.entries(solution.docstring, "Attributes").items():
        member = solution.members[name]
        member.docstring, member.annotation_str = text, f": {kind}"
    solution.docstring = re.sub(r"^Attributes\n-+\n.*?\n(?=\S[^\n]*\n-+$)", "", solution.docstring, flags=re.M | re.S)
    for name, notebooks in uses.items():
        module.get(name).docstring += f"\n\nUsed in {', '.join(notebooks)}."
    return module


def configure_pdoc(pages: Iterable[tuple[str, str]]) -> None:
    """pdoc's environment, with our mathematics and readable signatures."""

    def format_signature(signature: inspect.Signature, colon: bool) -> str:
        # Types and shapes of parameters are in the docstrings; ArrayLike alone would be a union of nine.
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        return render_helpers.format_signature(signature.replace(parameters=bare), colon=False)

    @render_helpers.pass_context
    def to_markdown(context: Any, docstring: str) -> str:
        # Markdown would take TeX for its own: it travels through in hexadecimal digits between private characters.
        markdown = render_helpers.to_markdown_with_context(context, docstring)
        markdown = re.sub(r"\$\$(.+?)\$\$", lambda m: f"\ue000{m[1].encode().hex()}\ue002", markdown, flags=re.DOTALL)
        return re.sub(r"\\\\\( (.+?) \\\\\)", lambda m: f"\ue000{m[1].encode().hex()}\ue001", markdown)

    class Html(str):
        toc_html: str | None

    def to_html(markdown: str) -> str:
        html = render_helpers.to_html(markdown)
        unnamed = re.sub(r'<h6 id="[^"]*">', "<h6>", html)  # every docstring has Parameters
        formula = re.compile("\ue000([0-9a-f]+)([\ue001\ue002])")
        typed = Html(formula.sub(lambda m: typeset(bytes.fromhex(m[1]).decode(), m[2] == "\ue002"), unnamed))
        typed.toc_html = html.toc_html
        return typed

    pdoc.render.configure(
        docformat="numpy", search=False, show_source=False, template_directory=Path(__file__).parent / "templates"
    )
    pdoc.render.env.filters.update(format_signature=format_signature, to_markdown=to_markdown, to_html=to_html)
    pdoc.render.env.globals.update(pages=list(pages), version=jaxnnls.__version__)


def build(readme: Path = ROOT / "README.md", notebooks: Path = ROOT / "notebooks") -> dict[str, str]:
    """The pages by name; raises `BrokenError` with all there is to say if anything is wrong, a warning included."""
    module = pdoc.doc.Module(jaxnnls)
    check.documented(module)
    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(f"nbconvert: {record.getMessage()}")  # type: ignore[method-assign]
    log = logging.getLogger("traitlets")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pages = _pages(readme, notebooks)
    finally:
        log.removeHandler(handler)
    warned += [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in caught]
    if complaints := warned + check.links(pages) + check.references(module, pages[REFERENCE]):
        raise BrokenError(complaints)
    return pages


def _pages(readme: Path, notebooks: Path) -> dict[str, str]:
    sources = {f"{path.stem}.html": read_notebook(path) for path in sorted(notebooks.glob("*.ipynb"))}
    if not sources:
        raise BrokenError([f"no notebook in {notebooks}"])
    text = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(readme.read_text(encoding="utf-8"))])
    exporter = Exporter()
    bodies = {name: exporter.html(source) for name, source in {"index.html": text, **sources}.items()}
    titles = {name: check.title(name, body) for name, body in bodies.items()}
    uses: dict[str, list[str]] = {}  # by public name, links to the notebooks with it
    for name, source in sources.items():
        code = "\n".join(cell.source for cell in source.cells if cell.cell_type == "code")
        for used in sorted(set(re.findall(r"\bjaxnnls\.(\w+)", code)) & set(jaxnnls.__all__)):
            uses.setdefault(used, []).append(f"[{titles[name]}]({name})")

    first, *others = titles.items()
    configure_pdoc([first, (REFERENCE, "Reference"), *others])
    module = reference(uses)
    page = pdoc.render.html_module(module, {module.modulename: module})
    dot = r'(?:</span><span class="o">)?\.(?:</span><span class="n">)?'
    pages = {REFERENCE: re.sub(f"jaxlib{dot}_jax{dot}Array", "Array", page)}  # where jax.Array is from
    template = pdoc.render.env.get_template("page.html.jinja2")
    for name, body in bodies.items():
        headings = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body)
        pages[name] = template.render(page=name, title=titles[name], body=body, headings=headings)
    return pages
