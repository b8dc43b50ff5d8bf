"""Run in processes of their own by test_sharding: `python tests/sharded.py devices`, `together`, `process ID PORT`."""

import json
import os
import re
import sys

if __name__ == "__main__":
    count = 8 if sys.argv[1] == "devices" else 2
    # What conftest sets, and several devices.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={count}"

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import Problem

import jaxnnls

COLUMNS = P(None, "columns")
N, SMALL = 24, 500  # columns, and bytes for a block of one or two of them
COLLECTIVES = re.compile(r"= \S+ (all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter)(?:-start)?\(")


def data(shape):
    rng = np.random.default_rng(0)
    return rng.random(shape), rng.random((shape[0], N))


def solve(A, B):
    return jaxnnls.nnls(A, B, block_bytes=SMALL)


def error(actual, expected):
    """Relative to the largest."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected))]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def compare(f, args, expected):
    """How far a compiled f is off, and its collectives, with whether each is in a loop."""
    compiled = jax.jit(f).lower(*args).compile()
    found, inside = [], False
    for line in compiled.as_text().splitlines():
        if line and not line.startswith((" ", "}")):
            inside = not line.startswith("ENTRY")
        if match := COLLECTIVES.search(line):
            found.append([match[1], inside])
    return {"error": error(compiled(*args), expected), "collectives": found}


def value_and_gradient(f):
    """f(A, B), and the derivative of a loss of it, by one solve."""

    def both(A, B):
        x, pullback = jax.vjp(f, A, B)
        return x, pullback(jnp.cos(x))  # of the sum of sin(x)

    return both


def devices():
    found = {}
    for shape in ((12, 5), (6, 15)):
        A, B = data(shape)
        x = np.asarray(solve(A, B))
        gradient = oracle.pullback(Problem(A, B, 0 * x, 0 * x + np.inf), x, np.cos(x))
        kinds = (AxisType.Auto, AxisType.Explicit) if shape == (12, 5) else (AxisType.Explicit,)
        for kind in kinds:
            mesh = jax.make_mesh((8,), ("columns",), axis_types=(kind,))
            args = jax.device_put((A, B), (NamedSharding(mesh, P()), NamedSharding(mesh, COLUMNS)))
            if shape == (12, 5):
                found[f"jit {kind.name}"] = compare(value_and_gradient(solve), args, (x, gradient))
            if kind == AxisType.Explicit:  # the default of make_mesh
                f = jax.shard_map(solve, mesh=mesh, in_specs=(P(), COLUMNS), out_specs=COLUMNS)
                found["shard_map {}x{}".format(*shape)] = compare(value_and_gradient(f), args, (x, gradient))
    A, B = data((12, 5))
    mesh = jax.make_mesh((8,), ("columns",))
    spread = jax.device_put(B, NamedSharding(mesh, COLUMNS))
    solution = jaxnnls.lsq_linear(jax.device_put(A, NamedSharding(mesh, P())), spread, (0, 1))
    expected = jaxnnls.lsq_linear(A, B, (0, 1))
    found["solution"] = {
        "error": error(*((s.x, s.dual, s.residual_norm, s.active_mask) for s in (solution, expected))),
        "converged": bool(jnp.all(solution.success & expected.success)),
        "specs": [str(jax.typeof(leaf).sharding.spec) for leaf in (solution.x, solution.status)],
    }
    print(json.dumps(found))


def process(number, port):
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
    A, B = data((12, 5))
    mesh = jax.make_mesh((4,), ("columns",))
    sharding = NamedSharding(mesh, COLUMNS)
    spread = jax.make_array_from_callback(B.shape, sharding, lambda index: B[index])
    shared = jax.make_array_from_callback(A.shape, NamedSharding(mesh, P()), lambda index: A[index])
    f = jax.shard_map(solve, mesh=mesh, in_specs=(P(), COLUMNS), out_specs=COLUMNS)
    x, (A_bar, _) = jax.jit(value_and_gradient(f))(shared, spread)
    own = {str(shard.index[1].start): np.asarray(shard.data).tolist() for shard in x.addressable_shards}
    print(json.dumps({"x": own, "A_bar": np.asarray(A_bar.addressable_data(0)).tolist()}))


def together():
    """Solves that factorise batches of matrices, at the same time: by two threads of Python, and on two devices."""
    rng = np.random.default_rng(0)
    n = np.arange(80)
    A = np.maximum(0, 1 - np.abs(n - np.linspace(0, 79, 60)[:, None]) / 2)
    parts = rng.random((2, 60, 6))
    alone = [np.asarray(jaxnnls.nnls(A, B)) for B in parts]
    with ThreadPoolExecutor(2) as pool:
        by_threads = list(pool.map(lambda B: [np.asarray(jaxnnls.nnls(A, B)) for _ in range(10)], parts))
    mesh = jax.make_mesh((2,), ("columns",))
    spread = jax.device_put(np.concatenate(parts, axis=1), NamedSharding(mesh, COLUMNS))
    on_devices = jax.jit(jax.shard_map(jaxnnls.nnls, mesh=mesh, in_specs=(P(), COLUMNS), out_specs=COLUMNS))(A, spread)
    threads = max(error(x, expected) for many, expected in zip(by_threads, alone) for x in many)
    print(json.dumps({"threads": threads, "devices": error(on_devices, np.concatenate(alone, axis=1))}))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    {"devices": devices, "process": process, "together": together}[sys.argv[1]](*sys.argv[2:])
