"""Which torch device to use, and about how fast it is."""

from __future__ import annotations

import time

from embedcache.errors import SettingError


def choose_device(name: str) -> str:
    """Return the torch device that ``auto`` stands for, or ``name`` if it is there.

    Raises
    ------
    SettingError
        If the device is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu."
        ) from error
    return name


def gflop_per_second(device: str, precision: str) -> float:
    """Time a transformer-sized matrix product for about a tenth of a second; what a backbone reaches is about half."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(1576, 1024, device=device, dtype=dtype)  # tokens of 8 images, width of a ViT-L
    b = torch.ones(1024, 4096, device=device, dtype=dtype)

    def spent(repeats: int) -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    spent(1)
    repeats, seconds = 1, spent(1)
    # Few repeats even if the clock shows nothing: those of some virtual machines stand still for a while.
    while seconds < 0.05 and repeats < (4096 if device.startswith("cuda") else 16):
        repeats *= 2
        seconds = spent(repeats)
    return 2e-9 * 1576 * 1024 * 4096 * repeats / max(seconds, 1e-3)
