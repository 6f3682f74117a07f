"""What an audit found, as it is shown and kept in a store's attributes. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from embedcache.errors import AuditError
from embedcache_stores.manifest import StoreManifest

ATTRIBUTE: Final = "audit"
"""Where a store keeps its audit, among its attributes."""
Check = Literal["units", "order", "constant", "nodata", "range", "missing", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Literal["error", "warning"]
    check: Check
    bands: tuple[str, ...]
    message: str
    """A clause that names the bands, the numbers and the likely cause; no full stop."""


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """What one band holds, in the file's own units; fill values are left out."""

    minimum: float
    p1: float
    median: float
    p99: float
    maximum: float
    mean: float
    std: float
    model_mean: float | None = None
    """Mean of what the backbone is given: near 0 where the data are like those that it was trained on."""
    model_std: float | None = None
    """Near 1, likewise. None for bands that the backbone does not read."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in a sample of a dataset's images."""

    images: int
    """How many were read."""
    of: int
    units: str
    bands: Mapping[str, BandStatistics] = field(default_factory=dict)
    """By the dataset's band names; also bands that the backbone does not read, if their wavelength is known."""
    findings: tuple[Finding, ...] = ()
    """Errors first."""
    accepted: bool = False
    """Whether errors do not stop the extraction (``--accept-audit``)."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that stop an extraction unless they are accepted."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings to read, and to go on."""
        return tuple(f for f in self.findings if f.severity == "warning")

    def summary(self) -> str:
        """Return how much was read and found, in a few words."""
        kinds = (("error", len(self.errors)), ("warning", len(self.warnings)))
        counts = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in kinds if n]
        accepted = ", accepted" if self.errors and self.accepted else ""
        read = f"{self.images} of {self.of} images read as {self.units} (1 % ... median ... 99 %)"
        return f"{read}: {' and '.join(counts) or 'nothing is amiss'}{accepted}"

    def refuse(self, what: str) -> None:
        """Raise if there are errors that were not accepted.

        Raises
        ------
        AuditError
            The first error, how many more there are, and what to do.
        """
        if not self.errors or self.accepted:
            return
        rest = len(self.errors) - 1
        more = f" ({rest} more error{'s' if rest > 1 else ''}: extract --plan shows all.)" if rest else ""
        raise AuditError(
            f"the input audit of {what} stops here: {self.errors[0].message}.{more} Nothing was encoded. If the images "
            "are right as they are, --accept-audit goes on, and the store records it.",
            self.errors,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form for a store's attributes and ``--json``."""
        return {
            "images": self.images,
            "of": self.of,
            "units": self.units,
            "accepted": self.accepted,
            "findings": [{**asdict(f), "bands": list(f.bands)} for f in self.findings],
            "bands": {name: asdict(s) for name, s in self.bands.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Audit:
        """Build from :meth:`to_json`'s form."""
        return cls(
            images=data["images"],
            of=data["of"],
            units=data["units"],
            accepted=data["accepted"],
            findings=tuple(Finding(**{**f, "bands": tuple(f["bands"])}) for f in data["findings"]),
            bands={name: BandStatistics(**s) for name, s in data["bands"].items()},
        )


def recorded_audit(found: StoreManifest | None) -> Audit | None:
    """Return the audit that a store keeps; None where there is no store, or it was made before there were audits."""
    kept = found.attrs.get(ATTRIBUTE) if found is not None else None
    return None if kept is None else Audit.from_json(kept)
