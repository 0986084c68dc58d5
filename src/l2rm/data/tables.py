"""Tables as files: text columns in .csv, .tsv, .jsonl and .parquet, and what to do about their bad rows."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from l2rm.errors import InputError
from l2rm.files import written_whole

REQUIRED = ("image", "caption")
OPTIONAL = ("pair_id", "split", "is_mismatched", "true_image")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_WARNINGS = 20


class BadRows:
    """Rows that cannot be used: an `InputError` at the first one or, with `skip`, a list of them to leave out.

    Messages count rows from 1 (`unit` names them), as people do; the code counts from 0.

    Example:
        >>> bad = BadRows("pairs.csv", skip=True)
        >>> bad.add(1, "the caption is empty", "write one")
        >>> bad.rest(3).tolist()
        [0, 2]
    """

    def __init__(self, source: str | Path, *, skip: bool, unit: str = "row") -> None:
        self.source, self.skip, self.unit = source, skip, unit
        self.reasons: dict[int, str] = {}

    def add(self, row: int, reason: str, remedy: str) -> None:
        """Take note of a bad row; a row's first reason is the one that counts."""
        if not self.skip:
            raise InputError(
                f"{self.source}:{self.unit} {row + 1}: {reason}; {remedy}, or leave such rows out (--skip-bad)"
            )
        self.reasons.setdefault(row, reason)

    def rest(self, rows: int) -> NDArray[np.int64]:
        """The good ones of `rows` rows, after a warning for each bad one (the first few, then a count).

        Raises:
            InputError: None is left.
        """
        log = logging.getLogger("l2rm")
        for row in sorted(self.reasons)[:_WARNINGS]:
            log.warning("%s:%s %d: %s; left out", self.source, self.unit, row + 1, self.reasons[row])
        if len(self.reasons) > _WARNINGS:
            log.warning("%s: %d more %ss left out", self.source, len(self.reasons) - _WARNINGS, self.unit)
        good = np.setdiff1d(np.arange(rows), list(self.reasons))
        if not len(good):
            raise InputError(f"{self.source}: every {self.unit} is bad and nothing is left; see the warnings above")
        return good


def read_table(
    path: Path, bad: BadRows, *, names: Sequence[str] = (*REQUIRED, *OPTIONAL), least: int = 2
) -> dict[str, list[str]]:
    """Read the columns that we know of a table, each a list of texts, "" where a cell is empty.

    A row that cannot be read (too few fields, no JSON object) goes to `bad` and stays as empty cells, so that the place
    in a column is the row's number. `names` are the columns to look for, `least` the number of rows that there must be.

    Raises:
        InputError: Not a table, no `image` or `caption` column, too few rows.
    """
    readers = {".csv": _read_delimited, ".tsv": _read_delimited, ".jsonl": _read_jsonl}
    suffix = table_suffix(path)
    raw = _read_parquet(path, names) if suffix == ".parquet" else readers[suffix](path, bad)
    for name in REQUIRED:
        if name not in raw:
            present = ", ".join(raw) or "none"
            raise InputError(
                f"{path}: no column {name!r} among its columns ({present}); add it, or rename the one meant"
            )
    rows = len(raw["image"])
    if rows < least:
        needed = "two, to tell pairs apart" if least == 2 else str(least)
        raise InputError(f"{path}: {rows} row{'s' * (rows != 1)}; a table needs at least {needed}")
    return {name: list(_texts(name, raw[name], bad)) for name in names if name in raw}


def write_table(path: str | Path, columns: Mapping[str, Sequence[str] | Sequence[bool] | Sequence[float]]) -> None:
    """Write columns of equal length as a table; the suffix says in which form.

    Raises:
        InputError: A suffix that is none of `SUFFIXES`.
    """
    path = Path(path)
    suffix = table_suffix(path)
    with written_whole(path) as beside:
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.table(dict(columns)), beside)
            return
        rows = zip(*columns.values(), strict=True)
        with beside.open("w", encoding="utf-8", newline="") as file:
            if suffix == ".jsonl":
                file.writelines(
                    json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows
                )
            else:
                # Every cell in quotes: the csv module would leave a lone carriage return bare.
                writer = csv.writer(file, delimiter=_DELIMITERS[suffix], quoting=csv.QUOTE_ALL, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows([_text(cell) for cell in row] for row in rows)


def table_suffix(path: Path) -> str:
    """The form of a table, or an `InputError` that names those we know."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: {suffix or 'no suffix'} is no table that we know; use one of {', '.join(SUFFIXES)}")
    return suffix


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte order mark left out.

    Raises:
        InputError: No such file, or not UTF-8; names the line.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:line {line}: not UTF-8; save the file in that encoding") from error


def _read_delimited(path: Path, bad: BadRows) -> dict[str, list[Any]]:
    # Not pyarrow: it takes a quote that is never closed for a caption that runs to the end of the file.
    lines = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=_DELIMITERS[table_suffix(path)], strict=True)
    rows: list[list[str]] = []
    try:
        header = next(lines, [])
        for cells in filter(None, lines):
            if len(cells) != len(header):
                bad.add(
                    len(rows), f"{len(cells)} fields under {len(header)} columns", "put commas and quotes in quotes"
                )
                cells = [""] * len(header)
            rows.append(cells)
    except csv.Error as error:
        raise InputError(f"{path}:row {len(rows) + 1}: {error}; look for a quote that is not closed") from error
    _refuse_twins(path, header)
    return {name: [cells[place] for cells in rows] for place, name in enumerate(header)}


def _read_jsonl(path: Path, bad: BadRows) -> dict[str, list[Any]]:
    # Not pyarrow: it turns texts that look like dates into times, and counts the rows of its errors block by block.
    rows: list[dict[str, Any]] = []
    for line in filter(str.strip, read_text(path).split("\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            bad.add(len(rows), "not a JSON object", 'write {"image": …, "caption": …} on one line')
            row = {}
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_twins(path, names)
            known = file.read(columns=[name for name in names if name in wanted])
        return {name: known.column(name).to_pylist() if name in known.column_names else [] for name in names}
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as Parquet ({reason}); write it again") from error


def _refuse_twins(path: Path, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"{path}: two columns of one name ({', '.join(names)}); rename or remove one")


def _texts(name: str, cells: list[Any], bad: BadRows) -> Iterator[str]:
    for row, cell in enumerate(cells):
        text = _text(cell)
        if text is None:
            bad.add(row, f"{name} is a {type(cell).__name__}, not a text", "write a text")
        elif is_broken(text):
            bad.add(row, f"{name} has half of a character (a lone surrogate)", "write it anew, as UTF-8")
            text = None
        yield text or ""


def is_broken(text: str) -> bool:
    """Whether a text has a lone surrogate, as JSON may: half of a character, which no file can hold as UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _text(cell: Any) -> str | None:
    """A cell as text, "" where there is nothing in it, None where it is no single value."""
    if isinstance(cell, str):
        return cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(cell) if isinstance(cell, int | float) else None
