"""Results for people and for programs: Markdown tables, and everything as JSON."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxnnls

from .details import MORE, Details
from .measure import Row
from .peers import PEERS
from .quality import SOLVED
from .workloads import Workload

# What changes the speed of XLA, and of LAPACK, which JAX calls on CPUs and which is SciPy's OpenBLAS.
ENVIRONMENT = ("XLA_FLAGS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass
class Result:
    """One workload, done: the shapes of its arrays, but not the data."""

    name: str
    note: str
    kind: str
    matrix: tuple[int, ...]
    columns: tuple[int, ...]
    dtype: str
    condition: float
    reference: str
    rows: list[Row]
    details: Details

    @classmethod
    def of(cls, workload: Workload, rows: list[Row], details: Details) -> "Result":
        """Summarised."""
        return cls(
            workload.name,
            workload.note,
            workload.kind,
            workload.A.shape,
            workload.B.shape,
            str(workload.A.dtype),
            workload.condition(),
            workload.reference,
            rows,
            details,
        )


def machine() -> dict[str, Any]:
    """What ran this: hardware, versions, and how busy it was at the start."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "jaxnnls": jaxnnls.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "peers": {peer.distribution: peer.version for peer in PEERS if peer.installed},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header, the first column is text, the others are numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if i else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])


def seconds(t: float) -> str:
    """To three digits, in the unit that suits."""
    if not math.isfinite(t):
        return "-"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (math.inf, 1.0, "s")):
        if abs(t) < 0.9995 * limit:
            value = t * factor
            return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f} {unit}"
    raise AssertionError(t)


def plain(value: float) -> str:
    """Ratios to two digits or to the integer, - for NaN."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def small(value: float) -> str:
    """One digit and the exponent, - for NaN."""
    return "-" if math.isnan(value) else f"{value:.0e}" if value else "0"


LEGEND = (
    "first: with compilation. ~ extrapolated from a sample of the columns, whose accuracy is shown."
    " optimality: 0 at a solution, see README; * worst column above {limit:.0e}, not solved."
    " excess: of the objective above the best of all peers, relative to ||B||²/2 (gram: to its size)."
)


def legend(dtype: np.dtype[Any]) -> str:
    """What the columns mean."""
    return LEGEND.format(limit=SOLVED[dtype.itemsize])


def table(result: Result) -> str:
    """A heading and a row a peer."""
    condition = f"{result.condition:.0e}" if math.isfinite(result.condition) else "inf (A is wide)"
    matrix, columns = (" x ".join(map(str, s)) for s in (result.matrix, result.columns))
    letters = ("Q", "q", "Q") if result.kind == "gram" else ("A", "B", "A'A")
    residual = result.name == "mel"
    base = {"scipy.optimize.nnls": "SciPy", "librosa.util.nnls": "librosa"}[result.reference]
    header = ["peer", "first", "steady", f"{base}'s time / its", "worst optimality", "median", "excess"]
    rows = [header + ["worst residual"] * residual]
    for row in result.rows:
        if row.note:
            rows.append([row.peer, row.note] + ["-"] * (len(rows[0]) - 2))
            continue
        about = "~ " if row.sampled else ""
        cells = [row.peer, about + seconds(row.first), about + seconds(row.steady), plain(row.ratio)]
        cells += [small(row.worst) + ("" if row.solved else "*"), small(row.median), small(row.excess)]
        rows.append(cells + [small(row.residual)] * residual)
    heading = (
        f"### {result.name}: {result.note}\n\n{letters[0]} {matrix}, {letters[1]} {columns}, {result.dtype},"
        f" condition of {letters[2]} with unit columns {condition}\n\n"
    )
    return heading + aligned(rows)


def detail_table(results: Sequence[Result]) -> str:
    """A row a workload: what this package's solve costs beside other things."""
    header = ["jaxnnls", "N", "solve", "value and gradient", "/ solve", "of sum((x - 1)^2)"]
    header += ["first call of the gradient", "floor", "solve / floor"]
    header += [f"a column's cost, {MORE} N / N", "eager, extra", "eager, first call"]
    header += ["its first gradient", "other N", "MiB temporary"]
    header += [f"at {MORE} N", "block_bytes"]
    rows = [header]
    for result in results:
        d = result.details
        if d.note:
            rows.append([f"{d.workload}: {d.note}"] + ["-"] * (len(header) - 1))
            continue
        cells = [d.workload, str(d.columns), seconds(d.solve), seconds(d.gradient), plain(d.gradient_ratio)]
        cells += [
            plain(d.shifted_ratio),
            seconds(d.gradient_first),
            seconds(d.floor),
            plain(d.floors),
            plain(d.growth),
            seconds(d.eager_extra),
            seconds(d.eager_first),
            seconds(d.eager_gradient_first),
            seconds(d.eager_other),
        ]
        rows.append([*cells, plain(d.temporaries), plain(d.temporaries_more), plain(d.block)])
    return aligned(rows)


def write_json(path: str, results: Sequence[Result], about: dict[str, Any], options: dict[str, Any]) -> None:
    """Everything, NaN and infinity as null."""
    data = {"machine": about, "options": options, "results": [dataclasses.asdict(r) for r in results]}
    Path(path).write_text(json.dumps(_finite(data), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
