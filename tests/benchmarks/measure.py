"""Seconds and quality of every peer on a workload, within a budget of time."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from .peers import OURS, SCIPY, Call, Peer
from .quality import Quality, judge, solved
from .workloads import Floats, Workload

PART_OF_BUDGET = 1 / 3  # that one run may take: the first run and a repetition, and the probes before

Say = Callable[[str], None]


@dataclass
class Row:
    """A peer's results; NaN where there are none.

    Attributes
    ----------
    peer, short : str
    note : str
        Why there are no results: "not installed", or the exception's name.
    first, steady : float
        Seconds of the first call, with compilation, and the median of the others. Where only a sample of the columns
        was solved, scaled up to all.
    fastest : float
        Like steady, of the fastest.
    columns, repeats : int
        How many columns (matrices, for "vmap") were solved, and how many times after the first.
    sampled : bool
        Whether these columns are not all.
    worst, median : float
        Optimality over the columns.
    excess : float
        How far the objective is above the best of all peers, relative to the objective of x = 0, for
        "gram", which lacks a constant, to the size of the best.
    residual : float
        The largest ||A x - b|| / ||b||.
    solved : bool
    ratio : float
        The reference's time / this time.
    """

    peer: str
    short: str
    note: str = ""
    first: float = np.nan
    steady: float = np.nan
    fastest: float = np.nan
    columns: int = 0
    repeats: int = 0
    sampled: bool = False
    worst: float = np.nan
    median: float = np.nan
    excess: float = np.nan
    residual: float = np.nan
    solved: bool = False
    ratio: float = np.nan


@dataclass
class Trial:
    """A peer at work on the columns that the budget allows."""

    peer: Peer
    note: str = ""
    indices: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    repeats: int = 0
    call: Call | None = None
    X: Any = None
    first: float = np.nan
    seconds: list[float] = field(default_factory=list)


def timed(call: Call) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def affordable(peer: Peer, workload: Workload, budget: float) -> tuple[int, float]:
    """How many units one run may have, and the seconds that all of them would take.

    Small samples overstate the cost of a batched solver, so samples grow while they cost next to nothing.
    """
    size = min(peer.probe, workload.units)
    while True:
        call = peer.prepare(workload.take(workload.sample(size)))
        runs = [timed(call)[0]]
        if peer.compiled:
            runs = [timed(call)[0]]
        limit = PART_OF_BUDGET * budget
        while min(runs) * workload.units > limit * size and sum(runs) < limit and len(runs) < 3:
            runs.append(timed(call)[0])  # the machine may have stalled
        per_unit = min(runs) / size
        allowed = int(limit / per_unit)
        if allowed >= workload.units or allowed < 32 * size:
            return min(max(allowed, size), workload.units), per_unit * workload.units
        size = min(8 * size, workload.units)


def start(peer: Peer, workload: Workload, repeat: int, budget: float, say: Say) -> Trial:
    """Find out what the budget allows, and make the first call."""
    trial = Trial(peer)
    if not peer.installed:
        trial.note = "not installed"
        return trial
    say(peer.label)
    try:
        units, estimate = affordable(peer, workload, budget)
        trial.indices = workload.sample(units)
        trial.call = peer.prepare(workload.take(trial.indices))
        if peer.compiled:
            jax.clear_caches()
        trial.first, trial.X = timed(trial.call)
        run = estimate * units / workload.units
        trial.repeats = int(np.clip(2 * PART_OF_BUDGET * budget / run - 1, 1, repeat))
    except Exception as error:  # one peer's failure is a result like others
        trial.note = type(error).__name__
        say(f"{peer.label}: {error!r}")
    return trial


def repeat_in_turn(trials: Sequence[Trial]) -> None:
    """Repeat the calls, one peer after the other, so that whatever else the machine does hits all of them."""
    for turn in range(max((trial.repeats for trial in trials), default=0)):
        for trial in trials:
            if trial.call is not None and not trial.note and turn < trial.repeats:
                trial.seconds.append(timed(trial.call)[0])


def measure(workload: Workload, peers: Sequence[Peer], repeat: int, budget: float, say: Say) -> list[Row]:
    """Time and judge every peer that can solve this kind of workload.

    Parameters
    ----------
    workload : Workload
    peers : sequence of Peer
    repeat : int
        Calls after the first.
    budget : float
        Seconds that a peer may take, besides compilation.
    say : callable
        Takes a line on progress.

    Returns
    -------
    rows : list of Row
    """
    able = [peer for peer in peers if workload.kind in peer.kinds]
    together = [start(peer, workload, repeat, budget, say) for peer in able if peer in (OURS, SCIPY)]
    repeat_in_turn(together)
    trials = list(together)
    for peer in able:
        if peer not in (OURS, SCIPY):
            trial = start(peer, workload, repeat, budget, say)  # this empties JAX's caches
            repeat_in_turn([trial])
            trial.call = None
            trials.append(trial)
    return _compared([_summary(trial, workload) for trial in trials], workload)


def _summary(trial: Trial, workload: Workload) -> tuple[Row, NDArray[np.intp], Quality | None]:
    row = Row(trial.peer.label, trial.peer.short, trial.note)
    if trial.note:
        return row, trial.indices, None
    part = workload.take(trial.indices)
    quality = judge(part, trial.X)
    scale = workload.units / part.units
    run = statistics.median(trial.seconds)
    row.steady = scale * run
    row.fastest = scale * min(trial.seconds)
    row.first = trial.first + row.steady - run  # compilation does not grow with the columns
    row.columns, row.repeats, row.sampled = part.units, len(trial.seconds), part.units < workload.units
    row.worst, row.median = float(np.max(quality.optimality)), float(np.median(quality.optimality))
    row.residual = float(np.max(quality.residual))
    row.solved = solved(quality.optimality, workload.A.dtype)
    return row, trial.indices, quality


def _compared(summaries: list[tuple[Row, NDArray[np.intp], Quality | None]], workload: Workload) -> list[Row]:
    """Fill in what depends on the other peers."""
    rows = [row for row, _, _ in summaries]
    best: Floats | None = None
    for _, indices, quality in summaries:
        if quality is not None:
            if best is None:
                best = np.full((workload.units, *quality.objective.shape[1:]), np.inf)
            best[indices] = np.fmin(best[indices], quality.objective)
    for row, indices, quality in summaries:
        if best is not None and quality is not None:
            size = np.abs(best[indices]) if workload.kind == "gram" else quality.size
            total = float(np.sum(size))
            row.excess = float(np.sum(quality.objective - best[indices])) / (total if total > 0 else 1.0)
    reference = next((row.steady for row in rows if row.peer == workload.reference), np.nan)
    return [dataclasses.replace(row, ratio=reference / row.steady) for row in rows]
