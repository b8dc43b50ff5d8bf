"""What `_loops` says of JAX and XLA."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnnls import _lapack as lapack
from jaxnnls._loops import once


def eigenvalues(flags, M):
    return jax.vmap(lambda flag, M: once(flag, lapack.eigenvalues, M, jnp.zeros(len(M))))(flags, M)


def test_once_computes_for_raised_flags():
    M = np.stack([np.diag([1.0, 2.0, 3.0]), np.diag([4.0, 5.0, 6.0])]).astype(np.float32)
    np.testing.assert_allclose(jax.jit(eigenvalues)(np.array([False, True]), M), [[0, 0, 0], [4, 5, 6]], rtol=1e-6)


def test_what_nobody_asks_for_is_not_computed():
    # XLA takes out of a loop what does not change in it: it then runs in any case.
    flags, M = jnp.zeros(64, bool), jnp.zeros((64, 40, 40))
    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(eigenvalues).lower(flags, M).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    by_lane = re.findall(r"\n%?(\S+) [^\n]*\{\n(?:[^}\n][^\n]*\n)*?[^\n]*lapack_ssyevd", program)
    assert len(by_lane) == 1 and f"body=%{by_lane[0]}," not in entry
