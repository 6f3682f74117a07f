"""torchmetrics, an oracle here, imports torchvision, which a CPU-only torch needs mended first."""

from __future__ import annotations

from embedcache.backbones._terratorch import repair_torchvision

repair_torchvision()
