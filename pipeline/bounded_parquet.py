"""Parquet files that somebody else made: what a header claims is looked at before anything of that size is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.foreign import UNREADABLE, shortened, unreadable

MAX_ROWS = 200_000_000
"""Of a file: twenty times the clips for which docs/scaling.md has measured an index."""

MAX_BYTES = 16 << 30
"""Of the columns that are read, without compression, as the file's header gives them."""


class BadTable(ValueError):
    """Not Parquet, damaged, or beyond the bounds. The message follows the file's name: `claims 10 rows, ...`."""


def open_parquet(source: Any, columns: Sequence[str] | None = None, *, most_rows: int = MAX_ROWS) -> Any:
    """A `pyarrow.parquet.ParquetFile` of which `columns` (None: all) may be read.

    Args:
        source: a path, or a buffer of Arrow's.
        columns: names; a nested column counts as a whole.
        most_rows: the most that may be claimed.

    Raises:
        BadTable: as above, or a column is missing. FileNotFoundError.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():  # a pipe would be waited for
            raise BadTable("is not a regular file")
        file = parquet.ParquetFile(source)
        claims = list(_claims(file.metadata, columns))
        names = list(file.schema_arrow.names)
    except (BadTable, FileNotFoundError):
        raise
    except unreadable(pyarrow.ArrowException) as error:
        raise BadTable(f"cannot be read as Parquet ({shortened(error)})") from error
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise BadTable(f"has no column {missing[0]!r}; it has {shortened(', '.join(names))}")
    rows = max([file.metadata.num_rows, sum(rows for rows, _, _ in claims)])
    if not 0 <= rows <= most_rows or any(min(claim) < 0 for claim in claims):
        raise BadTable(f"claims {rows:,} rows, expected 0 to {most_rows:,}")
    if any(values > most_rows for _, values, _ in claims):
        raise BadTable(f"claims a column of {max(values for _, values, _ in claims):,} values")
    if (size := sum(size for _, _, size in claims)) > MAX_BYTES:
        raise BadTable(f"claims {size:,} bytes of values, expected at most {MAX_BYTES:,}")
    return file


def read_parquet(
    source: Path,
    columns: Sequence[str] | None = None,
    *,
    where: tuple[str, int] | None = None,
    most_rows: int = MAX_ROWS,
    most_bytes: int = MAX_BYTES,
    batch: int = 16_384,
) -> Any:
    """Columns of a file as a `pyarrow.Table`, or those of its rows in which a column has a value.

    They are unpacked `batch` rows at a time: a value that is stored once may stand a million times.

    Raises:
        BadTable: as `open_parquet`, or when the rows become more than `most_bytes`. FileNotFoundError.
    """
    import pyarrow
    from pyarrow import compute

    asked = None if columns is None else list(columns)
    read = asked if where is None or asked is None else list(dict.fromkeys([*asked, where[0]]))
    file = open_parquet(source, read, most_rows=most_rows)
    batches, size = [], 0
    try:
        groups = [n for n in range(file.metadata.num_row_groups) if where is None or _may_hold(file, n, *where)]
        for found in file.iter_batches(batch_size=batch, row_groups=groups, columns=read, use_threads=False):
            some = found if where is None else found.filter(compute.equal(found[where[0]], where[1]))
            size += some.nbytes
            if size > most_bytes:
                raise BadTable(f"unpacks to more than the {most_bytes:,} bytes that are read of it")
            batches.append(some)
        names = file.schema_arrow.names if read is None else read
        schema = pyarrow.schema([file.schema_arrow.field(name) for name in names])
        table = pyarrow.Table.from_batches([some.select(names) for some in batches], schema)
        return table if asked is None else table.select(asked)
    except BadTable:
        raise
    except unreadable(pyarrow.ArrowException) as error:
        raise BadTable(f"cannot be read as Parquet ({shortened(error)})") from error


def _may_hold(file: Any, group: int, column: str, value: int) -> bool:
    """Whether a group of rows may have rows with this value, by its statistics."""
    about = file.metadata.row_group(group)
    for place in range(about.num_columns):
        chunk = about.column(place)
        if chunk.path_in_schema == column and chunk.is_stats_set and chunk.statistics.has_min_max:
            return bool(chunk.statistics.min <= value <= chunk.statistics.max)
    return True


def values_of(table: Any, column: str) -> list[Any]:
    """A column as Python's values. BadTable for text that is none."""
    try:
        return list(table[column].to_pylist())
    except UNREADABLE as error:
        raise BadTable(f"has a column {column!r} that cannot be read ({shortened(error)})") from error


def _claims(metadata: Any, columns: Sequence[str] | None) -> Iterator[tuple[int, int, int]]:
    """(rows, most values of a column, bytes of the columns that are read) of each group of rows."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        values = size = 0
        for place in range(group.num_columns):
            chunk = group.column(place)
            if columns is None or chunk.path_in_schema.split(".")[0] in columns or chunk.path_in_schema in columns:
                if min(chunk.num_values, chunk.total_uncompressed_size, chunk.total_compressed_size) < 0:
                    values = -1
                    break
                values = max(values, chunk.num_values)
                size += chunk.total_uncompressed_size
        yield group.num_rows, values, size
