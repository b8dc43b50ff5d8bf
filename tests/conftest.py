"""Fixtures: the dtype of a test, float64 only where it is asked for."""

import gc
import itertools
import os
from importlib.metadata import version
from pathlib import Path

# Compilation is nearly all of the time. LLVM without optimisation, and XLA without its MLIR emitters, take a quarter of
# it, and another sixth less where they do not split a program among threads; the arithmetic is the same. (A cache on
# disk that all processes of a run share costs a twentieth: 7 of 200 programs were found in it.) XLA ends a process over
# a flag that it does not know, and that of JAX 0.11 does not know all of these.
if [int(part) for part in version("jaxlib").split(".")[:2]] < [0, 11]:
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1",
    )

# LAPACK's kernels are chosen by the processor, and their rounding decides where a column ends that float64 can hardly
# solve: with those for AVX-512, one of the cases of `test_found_by_fuzz` ends at PRECISION. The same ones everywhere.
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")

import jax
import jobs
import numpy as np
import pytest

from jaxnnls import _files

finished = itertools.count(1)
# Tracing makes objects by the million, next to no garbage in cycles, and collecting it is a tenth of the time.
gc.set_threshold(100_000)


def memory_maps():
    """How many this process has; 0 where nobody counts them."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(autouse=True)
def _few_programs():
    # A compiled solve keeps some 300 memory maps, and Linux ends a process that asks for more than 65530.
    yield
    if next(finished) % 8 == 0 and memory_maps() > 45_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_leak():
    assert not jax.config.jax_enable_x64
    yield
    assert not jax.config.jax_enable_x64


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def job(tmp_path):
    """A small problem and its files."""
    return jobs.make_job(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of WIDTH columns in float64, so that N_COLUMNS columns are two whole blocks and a part of one."""
    monkeypatch.setattr(_files, "COLUMN_BYTES", jobs.WIDTH * (jobs.M + jobs.N_VARIABLES) * 8)
