"""Augmented views: the eight flips and rotations of a square (the dihedral group D4), by name.

A view is what a backbone makes of the *input image* after it was flipped or rotated: preprocessed first, then turned,
which only moves pixels. Feature maps are stored as the backbone made them, in the frame of the turned image, and masks
are turned to match when they are read. The other way round, maps turned back under the mask as it is, would put every
cell in its place but not what it says: its channels describe the turned image ("water on the right"), its position
was encoded there, and the backbone's strides need not be symmetric. A head sees in training what it would have seen had
the image been augmented in front of the backbone. Only answers, which are about positions alone, are turned back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import SettingError
from embedcache_stores.schema import IDENTITY

if TYPE_CHECKING:
    import torch

D4: Final[dict[str, tuple[bool, bool, bool]]] = {
    IDENTITY: (False, False, False),
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot90": (True, True, False),
    "rot180": (False, True, True),
    "rot270": (True, False, True),
    "transpose": (True, False, False),
    "transverse": (True, True, True),
}
"""Whether y and x are swapped, then whether y, then whether x is reversed. Rotations are counterclockwise, as numpy's;
``transpose`` mirrors at the main diagonal, ``transverse`` at the other."""
NO_VIEWS: Final = (IDENTITY,)
_INVERSE: Final = {"rot90": "rot270", "rot270": "rot90"}
_DRAWN: Final = 0x71E3
"""Keeps the chance of views apart from that of the order, which has the same seed and epoch."""


def parse_views(text: str) -> tuple[str, ...]:
    """Read ``d4``, or names of views separated by commas; ``identity`` is always there, and the first.

    Raises
    ------
    SettingError
        If a name is not known, or comes twice.
    """
    if text.strip().lower() == "d4":
        return tuple(D4)
    return canonical([part.strip().lower() for part in text.split(",")])


def canonical(names: Sequence[str]) -> tuple[str, ...]:
    """Return views in their one order, ``identity`` first and always there.

    Raises
    ------
    SettingError
        If a name is not known, or comes twice.
    """
    for name in names:
        if name not in D4:
            raise SettingError(f"--views knows {', '.join(D4)}, and d4 for all of them; got {name!r}.")
        if list(names).count(name) > 1:
            raise SettingError(f"--views names {name!r} twice.")
    return tuple(name for name in D4 if name in {IDENTITY, *names})


def turned(x: torch.Tensor, view: str) -> torch.Tensor:
    """Turn images, maps or masks ``(..., y, x)``, square where ``view`` swaps the axes; an exact permutation."""
    swap, reverse_y, reverse_x = D4[view]
    if swap:
        x = x.transpose(-1, -2)
    axes = [axis for axis, reverse in ((-2, reverse_y), (-1, reverse_x)) if reverse]
    return x.flip(axes) if axes else x


def turned_back(x: torch.Tensor, view: str) -> torch.Tensor:
    """Undo :func:`turned`."""
    return turned(x, _INVERSE.get(view, view))


def turned_each(x: torch.Tensor, views: Sequence[str]) -> torch.Tensor:
    """Turn every sample of ``(b, ..., y, x)`` to its own view; the tensor itself where all are the identity."""
    import torch

    if all(view == IDENTITY for view in views):
        return x
    out = torch.empty_like(x)
    for view in dict.fromkeys(views):
        here = torch.tensor([v == view for v in views], device=x.device)
        out[here] = turned(x[here], view)
    return out


def draw(samples: int, views: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Draw a view for each sample of a split, evenly: ``(samples,)`` places in the list of views.

    A function of its arguments only. The sample's place in the split decides, not when it is visited.
    """
    if views == 1:
        return np.zeros(samples, dtype=np.int64)
    return np.random.default_rng([seed, epoch, _DRAWN]).integers(0, views, samples, dtype=np.int64)


def mean_logits(logits: Sequence[torch.Tensor], task: str, axis: int) -> torch.Tensor:
    """Average predicted probabilities over views, and return them as logits.

    Parameters
    ----------
    logits
        One tensor a view, of one shape, in the image's own frame.
    task
        ``multilabel``: a probability for each class by itself, through the sigmoid, and the result is its log-odds;
        else the classes share one, through the softmax, and the result is its logarithm.
    axis
        Of the classes.

    Returns
    -------
    torch.Tensor
        Whose softmax (sigmoid) is the mean of the views' softmaxes (sigmoids). Worked out on logarithms, so that no
        probability is rounded to 0 or 1.
    """
    import torch

    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack([one.float() for one in logits])
    if task == "multilabel":
        log = torch.nn.functional.logsigmoid
        return torch.logsumexp(log(stacked), 0) - torch.logsumexp(log(-stacked), 0)
    whole = stacked.log_softmax(axis if axis < 0 else axis + 1)
    return torch.logsumexp(whole, 0) - float(np.log(len(logits)))
