"""Backbones: frozen models, one family a file. Adding one is adding a file with ``SPECS``; nothing else is edited.

What a plug-in needs is named here: see ``docs/guides/backbones.md``.
"""

from embedcache.backbones._spec import BackboneSpec, BandInput, FeatureExtractor, Features, HubFile
from embedcache.backbones._vit import features_of_tokens, four_blocks
from embedcache.backbones._weights import fill

__all__ = [
    "BackboneSpec",
    "BandInput",
    "FeatureExtractor",
    "Features",
    "HubFile",
    "features_of_tokens",
    "fill",
    "four_blocks",
]
