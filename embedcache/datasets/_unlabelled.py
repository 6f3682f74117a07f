"""Images without labels, in a folder of any depth or a single file, for a trained head to label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedcache.datasets._folder_tables import Row, natural
from embedcache.datasets._spec import DatasetInfo, OpenOptions, Sample, first_readable
from embedcache.datasets.folder import FolderSource, _look_at
from embedcache.errors import DatasetError

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class UnlabelledSource(FolderSource):
    """Every image below a folder; see :class:`embedcache.datasets._spec.SampleSource`."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        """List the images.

        Raises
        ------
        DatasetError
            If there is none.
        """
        options.refuse("plain images have none", "partition", "arguments")
        if not path.exists():
            raise DatasetError(f"images {str(path)!r} do not exist.")
        root = path if path.is_dir() else path.parent
        below = path.rglob("*") if path.is_dir() else [path]
        found = sorted((p for p in below if p.suffix.lower() in IMAGES), key=lambda p: natural(str(p)))
        if not found:
            raise DatasetError(f"{str(path)!r} holds no image ({', '.join(IMAGES)}).")
        self._rows = [Row(sample_id=p.relative_to(root).as_posix(), path=p, target=0, split="test") for p in found]
        self.sample_ids = [r.sample_id for r in self._rows]
        self.splits = ["test"] * len(found)
        by_id = {row.sample_id: row for row in self._rows}
        _, (bands, units, located, named) = first_readable(
            self.sample_ids, lambda sample_id: _look_at(by_id[sample_id], options)
        )
        notes = () if named else ("bands are taken to be RED, GREEN, BLUE, as in any three-band picture",)
        self.info = DatasetInfo(
            name=root.resolve().name or "images",
            task="classification",
            bands=bands,
            band_sources=tuple(str(i + 1) for i in range(len(bands))),
            units=units,
            class_names=("unlabelled",),
            has_location=located,
            notes=notes,
        )

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        """Read one sample, which has no target."""
        return replace(super().read(index, bands), target=None)
