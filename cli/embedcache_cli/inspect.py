"""``embedcache ls``, ``info`` and ``backbones``: what is there. Reads JSON only, so it answers at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcache_cli.console import human_bytes, print_json, say, table, tell
from embedcache_cli.options import Cache, Json


def ls(cache: Cache = "cache", json: Json = False) -> None:
    """List the feature stores of a cache."""
    from embedcache_stores.manifest import find_stores

    stores = list(find_stores(cache))
    facts = [_facts(m) for m in stores]
    if json:
        print_json(facts)
        return
    if not facts:
        say(f"{cache} holds no feature store; 'embedcache extract' makes them.")
        return
    rows = [
        (
            f["dataset"],
            f["features"] + (" (random weights)" if f["random_weights"] else ""),
            f["rows"] if len(f["views"]) == 1 else f"{f['rows']} x {len(f['views'])} views",
            human_bytes(f["bytes"]),
            ", ".join(f["arrays"]),
            f["state"] if f["state"] == "complete" else f"partial ({f['groups_done']}/{f['groups']} groups)",
        )
        for f in facts
    ]
    table(("dataset", "features", "rows", "size", "arrays", "state"), rows, right=frozenset({2, 3}))


def info(
    store: Annotated[str, typer.Argument(help="DATASET/FEATURES as in 'ls', or the folder of a store.")],
    cache: Cache = "cache",
    json: Json = False,
) -> None:
    """Show everything recorded about one store: contents, provenance, environment, skipped images."""
    from embedcache.audit.record import recorded_audit
    from embedcache_cli.stores import find_named
    from embedcache_stores.manifest import peek_manifest

    path = find_named([store], cache)[0]
    manifest = peek_manifest(path)
    facts = _facts(manifest) | {
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "provenance": dict(manifest.provenance),
        "environment": dict(manifest.environment),
        "attributes": dict(manifest.attrs),
        "skipped": _skipped(path) if manifest.state == "complete" else {},
    }
    if json:
        print_json(facts)
        return
    say(f"{path}  [{facts['state']}]")
    kept = {k: v for k, v in facts["attributes"].items() if k != "audit"}
    _tree({k: v for k, v in facts.items() if k not in {"state", "skipped"}} | {"attributes": kept})
    if audit := recorded_audit(manifest):
        say(f"  audit: {audit.summary()}")
        for finding in audit.findings:
            say(f"  audit {finding.severity}: {finding.message}")
    for sample_id, reason in facts["skipped"].items():
        say(f"  skipped: {sample_id}: {reason}")


def backbones(json: Json = False) -> None:
    """List the backbones that can be extracted."""
    from embedcache.backbones._registry import built_in, list_backbones, plugin_problems

    facts = [
        {
            "name": s.name,
            "title": s.title,
            "parameters_m": s.parameters_m,
            "bands": [b.name for b in s.bands],
            "input_size": s.input_size,
            "levels": [[level.channels, level.height, level.width] for level in s.levels(s.input_size)],
            "pooled": list(s.pooled),
            "time_and_location": s.uses_coords,
            "licence": s.licence,
            "weights": f"{s.hub.repo}/{s.hub.filename}" if s.hub else None,
            "citation": s.citation,
            "plugin": None if s.name in built_in() else s.reference,
        }
        for s in list_backbones().values()
    ]
    for problem in plugin_problems():
        tell(problem)
    if json:
        print_json(facts)
        return
    rows = [
        (
            f"{f['name']} (plug-in)" if f["plugin"] else f["name"],
            f"{f['parameters_m']:g}",
            " ".join(str(b) for b in _list(f["bands"])),
            " ".join(f"{c}x{h}x{w}" for c, h, w in _list(f["levels"])),
            f["licence"],
        )
        for f in facts
    ]
    table(("backbone", "M par.", "bands", "levels at default size", "licence"), rows, right=frozenset({1}))
    say("also: package.module:NAME, a BackboneSpec of your own; terratorch:NAME, any backbone of TerraTorch's registry")


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _facts(m: Any) -> dict[str, Any]:
    return {
        "dataset": m.dataset,
        "features": m.name,
        "backbone": m.provenance.get("backbone", {}).get("name"),
        "random_weights": m.random_weights,
        "rows": m.rows,
        "bytes": m.nbytes,
        "arrays": {a.name: [*a.shape] for a in m.arrays},
        "views": [*m.views],
        "state": m.state,
        "groups_done": m.groups_done,
        "groups": m.groups,
        "path": m.place.url,
    }


def _skipped(store: Any) -> dict[str, str]:
    from embedcache_stores.feature_store import FeatureStore

    opened = FeatureStore(store)
    if not opened.has("problem"):
        return {}
    problems = opened.column("problem")
    return {str(i): str(p) for i, p in zip(opened.sample_ids, problems, strict=True) if p}


def _tree(data: dict[str, Any], indent: str = "  ") -> None:
    for key, value in data.items():
        if isinstance(value, dict) and value and any(isinstance(v, (dict, str)) for v in value.values()):
            say(f"{indent}{key}:")
            _tree(value, indent + "  ")
        else:
            say(f"{indent}{key}: {value}")
