"""What suits the device that programs run on.

A CPU waits for memory: few columns take a step together, so that they stay in its cache. A GPU waits for each kernel to
start: few steps, of as many columns as there are.
"""

import jax

WIDER = 64  # times as many columns


def on_gpu() -> bool:
    """Whether programs go to a GPU, or what else is no CPU, unless their arguments lie elsewhere."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform: str = getattr(device, "platform", device) or jax.default_backend()
    return platform != "cpu"


def group_size(most: int, elements: int = 0, each: int = 0) -> int:
    """How many columns take a step together, at least one.

    Parameters
    ----------
    most : int
        On a CPU.
    elements, each : int
        What their matrices may have on a CPU, at most, and what that of a column has.
    """
    most, elements = (number * (WIDER if on_gpu() else 1) for number in (most, elements))
    return max(1, min(most, elements // each) if each else most)
