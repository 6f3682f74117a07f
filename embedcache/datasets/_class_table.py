"""``classes.csv``: what the values or colours of masks mean. Columns ``class,value`` and, if need be, ``ignore``.

``value`` is a whole number or a colour, the same kind in all lines::

    class,value,ignore          class,value
    water,1,                    Building,#3C1098
    land,0,                     Road,#6EC1E4
    no data,255,ignore          Water,#E2A929

Classes with numbers are counted in the order of the numbers, those with colours in the order of the lines. Pixels of
lines that say ``ignore`` have no label; lines of that kind may share a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.datasets._tables import read_lines
from embedcache.errors import DatasetError

CLASS_TABLE = "classes.csv"
IGNORED = -1
"""What a pixel without a label is in every mask that is handed on; negative values of files mean the same."""

_YES, _NO = {"ignore", "ignored", "yes", "true", "1"}, {"", "no", "false", "0"}
_MOST = 0xFFFFFFFF
_WANTED = "A class table has the columns class,value and may have ignore, as in 'water,1,' or 'Building,#3C1098,'."


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Classes of masks, and the value or colour of each."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    """Rising; a colour is 0xRRGGBB."""
    classes: tuple[int, ...]
    """Class of each value, or :data:`IGNORED`."""
    colours: bool
    origin: str
    """Where this is said, for messages."""
    stated: bool = True
    """Whether somebody said so, rather than that masks were searched for their values."""
    notes: tuple[str, ...] = ()

    def identity(self) -> Sequence[object]:
        """Return all that decides how a mask is read."""
        return (self.names, self.values, self.classes, self.colours)


def read_class_table(path: Path) -> ClassTable:
    """Read a class table.

    Raises
    ------
    DatasetError
        Naming the line and the column that is wrong.
    """
    lines, columns = read_lines(path)
    missing = [c for c in ("class", "value") if c not in columns]
    if missing:
        raise DatasetError(
            f"{str(path)!r} has no column {' nor '.join(missing)}; it has {', '.join(columns) or 'nothing'}. {_WANTED}"
        )
    named: list[tuple[str, int]] = []
    ignored: list[int] = []
    kinds: set[bool] = set()
    for number, line in lines:
        name, text = line["class"].strip(), line["value"].strip()
        ignore = line.get("ignore", "").strip().lower()
        if ignore not in _YES | _NO:
            raise DatasetError(f"{str(path)!r} line {number}: ignore {ignore!r} is neither 'ignore' nor empty.")
        if not name and ignore in _NO:
            raise DatasetError(f"{str(path)!r} line {number}: column class is empty.")
        value = _value_of(text, path, number)
        kinds.add(text.startswith("#"))
        if len(kinds) > 1:
            raise DatasetError(f"{str(path)!r} line {number}: value {text!r}; above there are values of another kind.")
        if value < 0 and ignore in _NO:
            raise DatasetError(f"{str(path)!r} line {number}: value {text} is negative, which always means no label.")
        if ignore in _YES:
            ignored.append(value)
        else:
            named.append((name, value))
    if not named:
        raise DatasetError(f"{str(path)!r} names no class. {_WANTED}")
    colours = kinds == {True}
    _refuse_twice([name for name, _ in named], "class", path)
    _refuse_twice([shown(v, colours) for v in [*ignored, *(value for _, value in named)]], "value", path)
    if not colours:
        named.sort(key=lambda pair: pair[1])
    pairs = sorted([*((v, i) for i, (_, v) in enumerate(named)), *((v, IGNORED) for v in ignored)])
    return ClassTable(
        names=tuple(name for name, _ in named),
        values=tuple(value for value, _ in pairs),
        classes=tuple(index for _, index in pairs),
        colours=colours,
        origin=repr(CLASS_TABLE),
    )


def shown(value: int, colours: bool) -> str:
    """Write a value as the table would."""
    return f"#{value:06X}" if colours else str(value)


def _value_of(text: str, path: Path, number: int) -> int:
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:], 16)
    if re.fullmatch(r"-?[0-9]{1,10}", text) and int(text) <= _MOST:
        return int(text)
    raise DatasetError(f"{str(path)!r} line {number}: value {text!r} is neither a whole number nor a colour #RRGGBB.")


def _refuse_twice(entries: Sequence[str], column: str, path: Path) -> None:
    twice = [entry for entry, n in Counter(entries).items() if n > 1]
    if twice:
        raise DatasetError(f"{str(path)!r} names {column} {twice[0]!r} twice; each may have one line.")
