"""The way into TerraTorch's registry, which needs a working torchvision."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from typing import Any


def terratorch_registry() -> Any:
    """Import TerraTorch (tens of seconds, once) and return its backbone registry."""
    repair_torchvision()
    with warnings.catch_warnings():  # its imports warn of things that no user of ours can act on
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            registry = importlib.import_module("terratorch.registry").BACKBONE_REGISTRY
            # Named, because the registry itself would hide the reason if one of them failed to import.
            importlib.import_module("terratorch.models.backbones.prithvi_vit")
            importlib.import_module("terratorch.models.backbones.dofa_vit")
        finally:
            logging.disable(level)
    return registry


def repair_torchvision() -> None:
    """Make ``import torchvision`` work beside a CPU-only torch.

    The common torchvision wheel is compiled for CUDA. Its operators cannot be loaded by a CPU-only torch, and then the
    import fails while it registers shape rules for operators that do not exist. No backbone uses them, so they are
    declared without an implementation. Where torchvision imports well, nothing is done.
    """
    for _ in range(8):  # one operator a round; torchvision 0.28 needs two
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            match = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if match is None:
                raise
            _declare_operator(match[1])
            for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
                del sys.modules[name]
    importlib.import_module("torchvision")


def _declare_operator(name: str) -> None:
    import torch

    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
