"""Backbones: frozen models, one family a file. Adding one is adding a file with ``SPECS``; nothing else is edited."""
