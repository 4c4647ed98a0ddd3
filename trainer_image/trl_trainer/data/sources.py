"""Reads rows from files and from the hub, one by one, and says where a row came from when it cannot be read."""

import csv
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, cast

import datasets
from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped]

from trl_contract.report import FailureReason
from trl_contract.sources import DataSource, HubDataset
from trl_trainer.data.jsonlist import elements
from trl_trainer.data.turns import BadRow
from trl_trainer.errors import UserError
from trl_trainer.launch.network import HUB, patiently
from trl_trainer.stage import Row

MAX_ROW_BYTES = 8 * 1024 * 1024
"""A longer row is a damaged file or a mistake: 8 MiB are about two million tokens."""

FORMATS = (".jsonl", ".json", ".csv", ".parquet")


class ArrowRow(dict[str, Any]):
    """A row in the types of its whole data set: an object in it has the fields of all others, some of them null."""


Numbered = tuple[int, Row | BadRow]
"""Row number, from 1 (in a .jsonl file the line number), and the row or the reason why it cannot be read."""


def read_file(path: Path) -> Iterator[Numbered]:
    """Yield the rows of a .jsonl, .json, .csv or .parquet file, also .gz of the first three.

    A row that cannot be read is yielded as BadRow; a file that cannot be read raises UserError.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    extension = (suffixes[:-1] if zipped else suffixes)[-1:] or [""]
    if extension[0] not in FORMATS or (zipped and extension[0] == ".parquet"):
        raise UserError(
            "DataFormatError",
            f"{path.name}: the extension must be one of {', '.join(FORMATS)} (also .gz of the first three)",
        )
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[extension[0]]
    with _explained(path), path.open("rb") as raw, _unzipped(raw, zipped) as file:
        yield from reader(file)


def _unzipped(raw: BinaryIO, zipped: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(raw)) if zipped else raw


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the libraries raise for an unreadable file into a UserError that says what is wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError("DatasetNotFound", f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise UserError("DatasetNotFound", f"{path}: is a folder; name one file in it") from error
    except PermissionError as error:
        raise UserError("AccessDenied", f"{path}: uid {os.geteuid()} may not read it: {error.strerror}") from error
    except EOFError as error:
        raise UserError("DataFormatError", f"{path.name}: the gz file is cut off; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError("DataFormatError", f"{path.name}: is not a sound gz file: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError("DataFormatError", f"{path.name}: is not UTF-8: {error}; convert it") from error
    except _Unreadable as error:
        raise UserError("DataFormatError", f"{path.name}: {error}") from error


class _Unreadable(ValueError):
    """Why the whole file cannot be read."""


def _jsonl(file: BinaryIO) -> Iterator[Numbered]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES)
            yield number, BadRow(f"is longer than {MAX_ROW_BYTES // 2**20} MiB")
        elif line.strip():
            yield number, _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _parse(line: bytes) -> Row | BadRow:
    try:
        return _object(json.loads(line.decode().rstrip(), parse_constant=_refuse_constant))
    except UnicodeDecodeError as error:
        return BadRow(f"is not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadRow(f"is not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not usable JSON: {error}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _object(value: Any) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow("is not an object")


def _json(file: BinaryIO) -> Iterator[Numbered]:
    """A list of objects; many .json files are lines of objects, and are read as such."""
    start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    file.seek(0)
    if start != b"[":
        _check_lines(file.readline(MAX_ROW_BYTES), is_last=not file.read(1024).strip())
        file.seek(0)
        yield from _jsonl(file)
        return
    text = TextIOWrapper(file, "utf-8-sig")
    try:
        for number, row in enumerate(elements(text, MAX_ROW_BYTES, _refuse_constant), start=1):
            yield number, _object(row)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _Unreadable("is nested too deeply") from error


def _check_lines(first: bytes, is_last: bool) -> None:
    """Raise if a .json file that is no list is not lines of rows either, but one object around them."""
    wanted = "it must be a list of rows, [{...}, {...}], or one row per line"
    try:
        found = json.loads(first.removeprefix(b"\xef\xbb\xbf"))
    except json.JSONDecodeError as error:
        if first.rstrip().endswith((b"{", b"[", b",")):
            raise _Unreadable(f"is one object over several lines: {wanted}") from error
        return
    except (ValueError, RecursionError):
        return
    if is_last and isinstance(found, dict):
        for name, value in found.items():
            if isinstance(value, list) and value and not any(_is_message(item) for item in value):
                raise _Unreadable(f"is one object with a list in {name!r}: {wanted}; write that list alone")


def _is_message(item: Any) -> bool:
    return not isinstance(item, dict) or not {"role", "from"}.isdisjoint(item)


def _csv(file: BinaryIO) -> Iterator[Numbered]:
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader((line.decode("utf-8-sig" if i == 0 else "utf-8") for i, line in enumerate(file)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise _Unreadable(f"two columns have the same name: {', '.join(header)}")
        for number, cells in enumerate(reader, start=1):
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                yield number, BadRow(f"has {len(cells)} cells, but the header has {len(header)}")
    except csv.Error as error:
        raise _Unreadable(f"is not CSV: line {reader.line_num}: {error}") from error


def _parquet(file: BinaryIO) -> Iterator[Numbered]:
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, ArrowRow(row)
    except (ArrowInvalid, OSError) as error:
        raise _Unreadable(f"is not a sound parquet file: {error}") from error


def open_source(
    source: DataSource, path: str | None, split: str, folder: Path, limit: int | None, token: str | None
) -> tuple[str, Iterator[Numbered]]:
    """Return the source's name for messages, and its rows, of which no more than about `limit` will be read (None:
    all). `split` is the default one of a data set on the hub, `token` its own (None: the libraries')."""
    if source.hub is not None:
        return source.hub.repo, read_hub(source.hub, split, folder / "hub", limit, token)
    assert path is not None, "the launcher gives a path for everything that is not on the hub"
    return Path(path).name, read_file(Path(path))


def read_hub(source: HubDataset, split: str, cache: Path, limit: int | None, token: str | None) -> Iterator[Numbered]:
    """Yield the rows of a data set on the hub. Raises UserError when it is not there or may not be read.

    With a limit they come as they are read, else the whole set is downloaded first, in large pieces. A hub that cannot
    be reached is waited for.
    """
    split = source.split or split
    try:
        rows = patiently(
            HUB,
            lambda: datasets.load_dataset(
                f"hf://datasets/{source.repo}",  # never a local folder that happens to have this name
                source.config,
                split=split,
                revision=source.revision,
                cache_dir=str(cache),
                token=token,
                # A split with a slice, like train[:10%], cannot be streamed.
                streaming=limit is not None and "[" not in split,
            ),
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        reason: FailureReason = "AccessDenied" if "gated" in str(error) else "DatasetNotFound"
        raise UserError(reason, f"dataset {source.repo}: {error}") from error
    except ValueError as error:
        raise UserError("DatasetNotFound", f"dataset {source.repo}: {error}") from error
    try:
        yield from enumerate(map(ArrowRow, rows), start=1)
    finally:
        shutil.rmtree(cache, ignore_errors=True)  # the rows are written down in our own form: one copy is enough
