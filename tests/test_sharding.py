"""Columns spread over devices, processes and threads, each test in processes of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxnnls

SCRIPT = Path(__file__).with_name("sharded.py")


def start(*arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def result(process):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()  # one that hangs
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_columns_on_several_devices():
    # One test: workers that share out its parts would each start the process.
    found = result(start("devices"))
    for shape in ("12x5", "6x15"):
        # The only one: the cotangent of the shared A is summed over the devices once, after all blocks.
        assert found[f"shard_map {shape}"]["collectives"] == [["all-reduce", False]]
        assert found[f"shard_map {shape}"]["error"] < 1e-10
    for axes in ("Auto", "Explicit"):
        assert found[f"jit {axes}"]["error"] < 1e-10
    # The solution is spread as its columns are.
    assert found["solution"]["converged"] and found["solution"]["error"] < 1e-12
    assert found["solution"]["specs"] == ["P(None, 'columns')", "P('columns',)"]


def test_two_processes(x64):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    first, second = (result(p) for p in [start("process", str(i), port) for i in range(2)])
    rng = np.random.default_rng(0)
    A, B = rng.random((12, 5)), rng.random((12, 24))
    parts = first["x"] | second["x"]
    assert len(first["x"]) == len(second["x"]) == 2
    x = np.concatenate([parts[key] for key in sorted(parts, key=lambda key: 0 if key == "None" else int(key))], axis=1)
    np.testing.assert_allclose(x, jaxnnls.nnls(A, B), rtol=0, atol=1e-12)
    expected = jax.grad(lambda A: jnp.sum(jnp.sin(jaxnnls.nnls(A, B))))(A)
    for part in (first, second):
        np.testing.assert_allclose(part["A_bar"], expected, rtol=0, atol=1e-10)


def test_solves_at_the_same_time(x64):
    # Where jaxlib spreads batched factorisations over threads, those of two solves can wait for each other for ever.
    found = result(start("together"))
    assert found["threads"] < 1e-9 and found["devices"] < 1e-9
