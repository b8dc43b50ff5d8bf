"""What would be wrong with the documentation: each finding is a sentence, and a build with any of them fails."""

import enum
import importlib
import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from urllib.parse import unquote

import pdoc

# Named in docstrings without being a dependency, so that it may not be there to look into.
OPTIONAL = ("librosa",)


class BrokenError(Exception):
    """The documentation is not fit to be shown, for these reasons."""

    def __init__(self, complaints: Iterable[str]) -> None:
        self.complaints = list(complaints)
        super().__init__("\n".join(self.complaints))


def entries(docstring: str, heading: str) -> dict[str, tuple[str, str]]:
    """Type and text of each name in a section of a NumPy-style docstring."""
    section = re.search(rf"^{heading}\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", docstring, re.MULTILINE | re.DOTALL)
    found = {}
    for names, kind, text in re.findall(
        r"^(\S.*?)(?: : (.*))?\n((?:(?:[ ].*)?\n)*)", section[1] + "\n" if section else "", re.MULTILINE
    ):
        found.update({name.strip().lstrip("*"): (kind, inspect.cleandoc(text)) for name in names.split(",")})
    return found


def documented(module: pdoc.doc.Module) -> None:
    """Every public name has a docstring, with a line for each parameter or field."""
    complaints = []
    for member in module.members.values():
        # The members of an enumeration are described by what it says of them.
        own = [m for m in getattr(member, "own_members", []) if not m.name.startswith("_")]
        own = [m for m in own if not isinstance(getattr(member.obj, m.name, None), enum.Enum)]
        complaints += [f"{m.fullname}: no docstring" for m in (member, *own) if not m.docstring]
        if member.kind == "function":
            names, said = set(member.signature.parameters), entries(member.docstring, "Parameters")
        else:
            names, said = set(getattr(member.obj, "_fields", ())), entries(member.docstring, "Attributes")
        missing = sorted(names - {name for name, (_, text) in said.items() if text})
        complaints += [f"{member.fullname}: {name} is not documented" for name in missing]
        complaints += [f"{member.fullname}: documents {name}, which is not there" for name in set(said) - names]
    if complaints:
        raise BrokenError(complaints)


def position(module: pdoc.doc.Module, name: str) -> int:
    """Where the package docstring first speaks of a public name: the order of the reference."""
    if not (found := re.search(rf"(?:`|jaxnnls\.){name}\b", module.docstring)):
        raise BrokenError([f"{module.fullname}: the docstring of the package does not name {name}"])
    return found.start()


def title(name: str, body: str) -> str:
    """The heading of a page."""
    if not (found := re.search(r"<h1[^>]*>(.*?)(?:<a class=|</h1>)", body)):
        raise BrokenError([f"{name}: no heading of the first level"])
    return found[1]


def references(module: pdoc.doc.Module, page: str) -> list[str]:
    """Names in backticks that pdoc could not link must be those of something else that exists."""
    parameters = {name for m in module.members.values() if m.kind == "function" for name in m.signature.parameters}
    names = set(re.findall(r"<code>([A-Za-z_][\w.]*)(?:\(\))?</code>", page)) - parameters
    return [f"reference: `{name}` is the name of nothing that exists" for name in sorted(names) if not _exists(name)]


def _exists(name: str) -> bool:
    """Whether a name can be imported, or is that of a module of ours."""
    first, *rest = name.split(".")
    if not rest and importlib.util.find_spec(f"jaxnnls.{first}"):
        return True
    if not importlib.util.find_spec(first):
        return first in OPTIONAL
    found = importlib.import_module(first)
    for part in rest:
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except (AttributeError, ModuleNotFoundError):
                return False
        found = getattr(found, part)
    return True


class _Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids[value] += 1
            elif name == "href" and tag == "a":
                self.targets.append(value or "")
            elif name in ("href", "src"):
                self.loaded.append(value or "")


def links(pages: Mapping[str, str]) -> list[str]:
    """Every link leads somewhere, and nothing is fetched from elsewhere: the pages can be read offline."""
    parsed = {name: _Links(page) for name, page in pages.items()}
    complaints = []
    for name, page in parsed.items():
        complaints += [f"{name}: two elements are called {id}" for id, count in page.ids.items() if count > 1]
        complaints += [
            f"{name}: {source[:80]} is not part of the page" for source in page.loaded if not source.startswith("data:")
        ]
        for target in page.targets:
            if not re.match(r"https?://", target):
                file, _, anchor = target.partition("#")
                if (file or name) not in parsed:
                    complaints.append(f"{name}: link to {target}: there is no such page")
                elif anchor and unquote(anchor) not in parsed[file or name].ids:
                    complaints.append(f"{name}: link to {target}: there is no such place")
    return complaints
