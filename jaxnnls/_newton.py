"""A step of Newton's method on piecewise linear equations, with a system of its own for each column.

    R x + sigma w = target    where    x = clip(a + W R'w)

are monotone: the gradient of a concave piecewise quadratic function of w. Newton's direction and an exact search along
it maximise that. The direction solves

    (R_F W_F R_F' + damping I) dw = target - R x - sigma w,    F free

Gaussian A with about twice as many columns as rows, where half of all matrices fit anything and the others nothing, are
the test of projections: on the way too few variables are free. Of 1680 random targets, 30 x 60 to 150 x 300, 271 ended
at PRECISION in float64 and 324 in float32, with norms up to 1 % too large, while a projection ended after 10 steps that
did not halve the misfit, and the weight of what is at a bound faded with the misfit alone; then 19 and 93, in 1.1 and
1.2 of the time (and none in float64, in 0.6, since proximal steps start with a large sigma). Of 60 targets of wide A
whose columns differ in size by 100 (float64), 18 were solved, now all, in 1.35 of the time; what cannot be projected in
float32 takes up to 1.4 times as long, and 2000 decay curves of 40 parameters, 20 of which cannot, 1.2 times.

Not chosen: to end a projection (sigma = 0) that is close, keeps its free set and comes no closer by another step; it
has its free set after five or six of 10 to 35 steps, and refines rounding in the others. 0.9 to 1 of the time for mel
bands that nothing fits, and 7 of 200 wide decay curves more end at PRECISION.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnnls import _tridiagonal as tridiagonal
from jaxnnls._device import group_size
from jaxnnls._factor import solve
from jaxnnls._linesearch import step_length
from jaxnnls._loops import once, while_loop
from jaxnnls._objective import einsum

# Of the matrices that are factorised at a time, at most; with 2^16, mel bands that nothing fits take 1.04 to 1.1 times
# the time for 80 and 128 rows (10 and 4 columns instead of 2 and 1), float32.
GROUP_ELEMENTS = 2**14
INACTIVE_WEIGHT = 1e-2
FEW_STEPS = 5
STALLED = 10


class Equations(NamedTuple):
    """What is to be solved, column by column."""

    a: Array  # (n, k)
    W: Array  # (n, k)
    lower: Array  # (n, k)
    upper: Array  # (n, k)
    target: Array  # (rows of R, k)
    noise: Array  # (k,), what rounding leaves of the target
    sigma: Array  # (k,)
    damping: Array  # (k,), sigma, or what a singular system needs where sigma is 0


class Iterate(NamedTuple):
    """Columns in progress."""

    w: Array  # (rows of R, k)
    u: Array  # (n, k), a + W R'w; x = clip(u)
    best: Array  # (k,), the largest misfit that counted as progress
    since: Array  # (k,), steps since then
    steps: Array  # (k,)


def largest(v: Array) -> Array:
    """max |v| of each column, (p, k) -> (k,)."""
    return jnp.max(jnp.abs(v), axis=0, initial=0)


class Systems(NamedTuple):
    """What the systems of all columns share."""

    R: Array
    products: Array | None  # the `neighbours` of R, where it is wide
    tridiagonal: Array  # (), bool: whether R diag(v) R' is, for any v


def direction(systems: Systems, weight: Array, diagonal: Array, r: Array, own: Array) -> Array:
    """(R diag(weight) R' + diagonal I)^-1 r for the first columns, `own`; (rows of R, k).

    By elimination where these are tridiagonal, else by factorisations, as many at a time as suit the device.
    """
    R, products, eliminable = systems
    p, k = r.shape
    size = min(k, group_size(k, GROUP_ELEMENTS, p * p))
    identity = jnp.eye(p, dtype=R.dtype)

    def by_factorisation(v: Array, shift: Array, r: Array) -> Array:
        matrix = einsum("kij,lj->kil", v.T[:, None] * R, R) + shift[:, None, None] * identity
        return jax.vmap(solve)(matrix, r.T).T

    if products is None and size == k:
        return by_factorisation(weight, diagonal, r)

    def factorise(state: tuple[Array, Array]) -> tuple[Array, Array]:
        at, d = state
        part = by_factorisation(*(lax.dynamic_slice_in_dim(a, at, size, axis=-1) for a in (weight, diagonal, r)))
        return at + size, lax.dynamic_update_slice_in_dim(d, part, at, axis=1)

    count = jnp.where(eliminable, 0, jnp.sum(own))
    _, d = while_loop(lambda state: state[0] < count, factorise, (jnp.zeros_like(count), jnp.zeros_like(r)))
    if products is None:
        return d

    def eliminate(given: tuple[Array, Array, Array]) -> Array:
        weight, diagonal, r = given
        return tridiagonal.solve(tridiagonal.bands(products, weight), diagonal, r)

    return once(eliminable, eliminate, (weight, diagonal, r), d)


def newton_step(systems: Systems, equations: Equations, at: Iterate, own: Array) -> tuple[Iterate, Array, Array]:
    """From one iterate to the next; the first, of 0 steps, is w = 0, whatever it holds. Of the first columns, `own`.

    Returns also the misfit target - R x, (rows of R, k), and whether another step can be of use, (k,).
    """
    R = systems.R
    a, W, lower, upper, target, noise, sigma, damping = equations
    eps = jnp.finfo(R.dtype).eps
    size = largest(target)
    proximal, fresh = sigma > 0, at.steps == 0
    w, u, idle = jnp.where(fresh, 0, at.w), jnp.where(fresh, a, at.u), jnp.where(fresh, 0, at.since)

    def misfit_of(x: Array) -> Array:
        return target - einsum("ij,jk->ik", R, x)

    x, free = jnp.clip(u, lower, upper), (u > lower) & (u < upper)
    misfit = misfit_of(x)
    best = jnp.where(fresh, largest(misfit), at.best)
    r = misfit - sigma * w
    # Without sigma the damping fades with the residual, as in Levenberg and Marquardt's method, until what rounding
    # leaves of r where the matrix is singular, divided by the damping, would rule the search along d.
    unit = jnp.where(size > 0, size, 1)
    fade = jnp.where(proximal, 1, jnp.minimum(largest(r) / unit, 1))
    unclear = jnp.minimum(4 * noise / (unit * jnp.maximum(fade, eps)), 4)
    least = eps + jnp.where(proximal, 0, unclear**2)
    diagonal = jnp.maximum(damping * fade, 4 * damping / jnp.sqrt(eps) * least)
    # Without sigma, what is at a bound but may leave it keeps a little weight, so that no row is without any. It fades
    # as well, and after a few steps in vain by itself: where fewer are free than there are rows, the way until another
    # is may be very long.
    fading = 0.5 ** jnp.maximum(idle - FEW_STEPS, 0).astype(fade.dtype)
    weight = jnp.where(free, 1, jnp.where(proximal | (lower == upper), 0, INACTIVE_WEIGHT * fade * fading)) * W
    d = direction(systems, weight, diagonal, r, own)
    image = einsum("ij,ik->jk", R, d)
    # By what x changes: the terms of the slope themselves would leave eps |target| |d| of rounding.
    start, low, high, bend = u - x, lower - x, upper - x, sigma * jnp.sum(d * d, axis=0)
    at_zero = jnp.sum(r * d, axis=0)

    def slope(t: Array) -> Array:
        return at_zero - t * bend - jnp.sum(jnp.clip(start + t * W * image, low, high) * image, axis=0)

    usable = jnp.isfinite(at_zero) & (at_zero > 0)
    t = jnp.where(usable, step_length(slope, at_zero, usable), 0)
    u = jnp.where(usable, u + t * W * image, u)
    w = jnp.where(usable, w + t * d, w)
    y = jnp.clip(u, lower, upper)
    # A full step that keeps the free set, and the rest on its bounds, is exact, unless damped; one that moves nothing
    # cannot be improved on.
    exact = (t == 1) & jnp.all(jnp.where(free, (u > lower) & (u < upper), y == x), axis=0) & proximal
    still = largest(y - x) <= 4 * eps * largest(y)
    misfit = misfit_of(y)
    error = largest(misfit)
    closer = error < 0.5 * best
    since = jnp.where(closer, 0, idle + 1)
    # A projection that rounding keeps away shows in a small misfit that stays. A large one may be on a long way, of 40
    # steps in float32 and 83 in float64.
    patient = (since < STALLED) | ((error > jnp.sqrt(eps) * size) & (fading > eps**1.5))
    going = usable & ~exact & ~still & (proximal | (patient & (error > 16 * eps * size)))
    return Iterate(w, u, jnp.where(closer, error, best), since, at.steps + 1), misfit, going
