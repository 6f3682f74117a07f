"""Heads: the small trained models on features, one a file. They know features, never backbones."""
