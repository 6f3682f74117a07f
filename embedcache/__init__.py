"""Frozen Earth-observation backbones, extracted once, compared and combined in seconds."""
