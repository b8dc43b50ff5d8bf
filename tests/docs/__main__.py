"""`pip install '.[docs]' && python -m tests.docs`, from the root of the checkout."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .check import BrokenError
from .pages import build


def main(argv: Sequence[str] | None = None) -> int:
    """Build the documentation; 1 and no page if anything is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("build/docs"), help="folder; default: %(default)s")
    output = parser.parse_args(argv).output
    try:
        pages = build()
    except BrokenError as broken:
        print(broken, file=sys.stderr)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        (output / name).write_text(page, encoding="utf-8")
    print(f"{len(pages)} pages; open {output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
