"""``embedcache datasets``: what is known of the twelve GEO-Bench v1 datasets; reads no file."""

from __future__ import annotations

from embedcache_cli.console import print_json, say, table
from embedcache_cli.options import Json


def datasets(json: Json = False) -> None:
    """List the GEO-Bench v1 datasets: task, classes, sizes, bands, sensor, and what to know before using them."""
    from embedcache.datasets._geobench_facts import FACTS, also_called, known_notes

    if json:
        print_json(
            [
                {
                    "name": name,
                    "also_called": list(also_called(name)),
                    "task": f.task,
                    "classes": f.num_classes,
                    "samples": dict(zip(("train", "val", "test"), f.samples, strict=True)),
                    "size": f.size,
                    "bands": list(f.bands),
                    "sensor": f.sensor,
                    "resolution_m": f.resolution_m,
                    "units": f.units,
                    "notes": [*([f.fault] if f.fault else []), *known_notes(f)],
                }
                for name, f in FACTS.items()
            ]
        )
        return
    rows = [
        (name, f.task, f.num_classes, " / ".join(map(str, f.samples)), f.size, f"{f.resolution_m:g}", f.units, f.sensor)
        for name, f in FACTS.items()
    ]
    header = ("dataset", "task", "classes", "train / val / test", "px", "m", "units", "sensor")
    table(header, rows, right=frozenset({2, 3, 4, 5}))
    for name, f in FACTS.items():
        say()
        say(" or ".join((name, *also_called(name))))
        say(f"  bands: {' '.join(f.bands)}")
        for note in (*((f"{f.fault}; mended unless --bands as-published",) if f.fault else ()), *known_notes(f)):
            say(f"  note:  {note}")
    say()
    say("open one with --dataset geobench:PATH; one's own images with --dataset folder:PATH")
