"""Tables of text from CSV files: reading, column types, and the seeded split of their rows."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from rlcore.errors import UserError, nearest

MISSING = frozenset({"", "na", "n/a", "nan", "null"})  # in lower case
SHIPPED = {"sacramento": "sacramento.csv"}
PARTS = ("train", "validation", "test")


@dataclass
class Table:
    """Rows of stripped cells by column; numbers are parsed once and kept."""

    name: str  # as messages call it
    cells: dict[str, list[str]]
    lines: list[int]  # line of every row in the file, for messages
    _numbers: dict[str, np.ndarray | None] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.name} line {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            UserError: there is no such column; says the nearest.
        """
        if name not in self.cells:
            raise UserError(f"{self.name}: there is no column '{name}'{nearest(name, self.cells)}")
        return self.cells[name]

    def missing(self, name: str) -> np.ndarray:
        """Return (rows,) bool: True where the cell is empty, NA, N/A, NaN or null, in any case."""
        return np.fromiter((cell.lower() in MISSING for cell in self.column(name)), bool, len(self))

    def numbers(self, name: str) -> np.ndarray | None:
        """Return (rows,) float64 with NaN where missing, or None if some cell is not a number.

        Raises:
            UserError: every cell is a number but one is infinite, or too large for float32.
        """
        if name not in self._numbers:
            cells = self.column(name)
            values = [math.nan if cell.lower() in MISSING else _number(cell) for cell in cells]
            self._numbers[name] = None if None in values else np.array(values, np.float64)
        numbers = self._numbers[name]
        beyond = np.zeros(0, bool) if numbers is None else np.abs(numbers) > np.finfo(np.float32).max
        if beyond.any():
            row = int(beyond.argmax())
            raise UserError(
                f"{self.where(row)}, column '{name}': got '{self.cells[name][row]}', expected a finite number"
            )
        return numbers

    def text_row(self, name: str) -> int:
        """Return the first row whose cell is neither missing nor a number."""
        return next(i for i, c in enumerate(self.column(name)) if c.lower() not in MISSING and _number(c) is None)

    def take(self, rows: np.ndarray) -> Table:
        """Return the table of the rows at these indices (B,)."""
        index = rows.tolist()
        return Table(
            self.name,
            {name: [cells[i] for i in index] for name, cells in self.cells.items()},
            [self.lines[i] for i in index],
            {name: values[rows] for name, values in self._numbers.items() if values is not None},
        )


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # float("1_000") is 1000; in a file it is a code
    except ValueError:
        return None


def from_rows(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> Table:
    """Return these columns of rows given as {column: text or number}; None and NaN are missing.

    Raises:
        UserError: there are no rows, or one lacks a column; says the nearest it has.
    """
    if not rows:
        raise UserError("new rows: got none, expected at least one")
    cells: dict[str, list[str]] = {name: [] for name in names}
    for i, row in enumerate(rows):
        for name in names:
            if name not in row:
                raise UserError(f"new rows line {i + 1}: there is no column '{name}'{nearest(name, row)}")
            cells[name].append("" if row[name] is None else str(row[name]).strip())
    return Table("new rows", cells, list(range(1, len(rows) + 1)))


def read(path: str | Path) -> Table:
    """Read a CSV or TSV file (UTF-8, gzipped or not), or the shipped table of a bare name ("sacramento").

    The first line names the columns. The delimiter is a tab in ``*.tsv``, else whichever of comma, tab
    and semicolon the first line holds most of. Blank lines are skipped, cells stripped.

    Raises:
        UserError: the file is absent, unreadable, empty or has a header only; a row is ragged; the header
            names a column twice.
    """
    where = str(path)
    file = Path(str(resources.files("envs") / "data" / SHIPPED[where])) if where in SHIPPED else Path(path)
    try:
        stamp = file.stat()
    except OSError as error:
        reason = f"got {error.strerror}, expected a CSV or TSV file, or one of: {', '.join(SHIPPED)}"
        raise UserError(f"{where}: {reason}") from None
    return _read(file, where, (stamp.st_mtime_ns, stamp.st_size))


@functools.lru_cache(maxsize=1)  # a run builds several environments of one table, one a split
def _read(file: Path, where: str, stamp: tuple[int, int]) -> Table:
    text = contents(file, where)
    if not text.strip():
        raise UserError(f"{where}: the file is empty, expected a header line and rows")
    first = text.lstrip("\r\n").partition("\n")[0]
    tabbed = file.name.removesuffix(".gz").endswith(".tsv")
    delimiter = "\t" if tabbed else max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if row and not header:
                header = _header(row, where)
            elif row:
                if len(row) != len(header):
                    raise UserError(
                        f"{where} line {start}: got {len(row)} cells, expected {len(header)} as in the header"
                    )
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{where} line {start}: expected comma- or tab-separated text, got {error}") from None
    if not rows:
        raise UserError(f"{where}: there is a header but no rows")
    return Table(where, {name: [r[i].strip() for r in rows] for i, name in enumerate(header)}, lines)


def contents(file: Path, where: str, what: str = "CSV file") -> str:
    """Return a file's text (UTF-8, gzipped or not).

    Raises:
        UserError: it cannot be read, or is no UTF-8.
    """
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where}: expected a readable {what}, got {error}") from None


def _header(row: list[str], where: str) -> list[str]:
    names = [name.strip() or f"column_{i + 1}" for i, name in enumerate(row)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: the header names '{name}' twice, expected distinct columns")
    return names


def partition(rows: np.ndarray, validation: float, test: float, seed: int) -> dict[str, np.ndarray]:
    """Split row indices by a permutation of their own seed: test first, then validation, the rest train.

    Returns:
        Sorted indices by part, disjoint and together all of ``rows`` (B,).

    Raises:
        UserError: a part would be empty though its fraction is above 0, or nothing is left to train on.
    """
    order = np.random.default_rng(seed).permutation(rows)
    n_test, n_validation = round(len(rows) * test), round(len(rows) * validation)
    cut = n_test + n_validation
    parts = {"train": order[cut:], "validation": order[n_test:cut], "test": order[:n_test]}
    for name, fraction in (("train", 1 - validation - test), ("validation", validation), ("test", test)):
        if fraction > 0 and not len(parts[name]):
            raise UserError(f"the {name} split is empty: {len(rows)} rows are too few for a fraction of {fraction:g}")
    return {name: np.sort(part) for name, part in parts.items()}
