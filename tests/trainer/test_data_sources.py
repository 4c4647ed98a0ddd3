"""Files of every kind, sound and damaged."""

import gzip
import io
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import Table, parquet

from trl_trainer.data import jsonlist, sources
from trl_trainer.data.turns import BadRow
from trl_trainer.errors import UserError

ROWS = [{"prompt": "Ünï?", "answer": "4"}, {"prompt": 'a "b"\nc', "answer": "x,y"}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = 'prompt,answer\r\nÜnï?,4\r\n"a ""b""\nc","x,y"\r\n'.encode()


def read(path):
    return list(sources.read_file(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.JSONL", b"\xef\xbb\xbf" + JSONL.rstrip()),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("lines.json", JSONL),
        ("a.csv", CSV),
        ("a.b.csv", b"\xef\xbb\xbf" + CSV),
        ("a.jsonl.gz", gzip.compress(JSONL)),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("a.csv.gz", gzip.compress(CSV)),
    ],
)
def test_the_same_rows_come_out_of_every_format(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == [(1, ROWS[0]), (2, ROWS[1])]


def test_parquet_is_read_whatever_its_name(tmp_path):
    path = tmp_path / "a[1]*.parquet"
    parquet.write_table(Table.from_pylist(ROWS * 300), path)
    rows = read(path)
    assert rows[0] == (1, ROWS[0])
    assert rows[-1] == (600, ROWS[1])


def test_blank_lines_are_skipped_and_rows_keep_their_line_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"a": 1}\n \n{"a": 2}')
    assert read(path) == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"prompt": "x"', "is not JSON: Expecting ',' delimiter at character 15"),
        (b'["x"]', "is not an object"),
        (b'{"prompt": "\xe4"}', "is not UTF-8: invalid continuation byte at byte 12"),
        (b'{"reward": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "is not usable JSON: maximum recursion depth"),
        (b'{"prompt": "' + b"x" * sources.MAX_ROW_BYTES + b'"}', "is longer than 8 MiB"),
    ],
)
def test_a_bad_line_is_a_bad_row_and_the_next_one_is_read(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    first, (number, bad), last = read(path)
    assert (first, number, last) == ((1, {"a": 1}), 2, (3, {"a": 3}))
    assert isinstance(bad, BadRow)
    assert why in str(bad)


def test_a_csv_row_with_a_cell_too_many_is_a_bad_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1,2,3\n\n5,6\n")
    rows = read(path)
    assert [number for number, _ in rows] == [1, 2, 4]
    assert "has 3 cells, but the header has 2" in str(rows[1][1])


@pytest.mark.parametrize(
    ("name", "content", "reason", "why"),
    [
        ("a.jsonl.gz", gzip.compress(JSONL * 100)[:-40], "DataFormatError", "a.jsonl.gz: the gz file is cut off"),
        ("a.jsonl.gz", JSONL, "DataFormatError", "a.jsonl.gz: is not a sound gz file: Not a gzipped file"),
        ("a.csv", "a,b\nä,1\n".encode("latin-1"), "DataFormatError", "a.csv: is not UTF-8"),
        ("a.json", '["ä"]'.encode("latin-1"), "DataFormatError", "a.json: is not UTF-8"),
        (
            "a.json",
            b'[{"a": 1},\n oops]',
            "DataFormatError",
            "not JSON: Expecting value in line 2, column 2",
        ),
        ("a.csv", b'a,b\n"1,2\n', "DataFormatError", "a.csv: is not CSV: line 2: unexpected end of data"),
        ("a.csv", b"a,a\n1,2\n", "DataFormatError", "a.csv: two columns have the same name: a, a"),
        ("a.parquet", b"PAR1 and not more", "DataFormatError", "a.parquet: is not a sound parquet file"),
        ("a.txt", b"Once", "DataFormatError", "a.txt: the extension must be one of .jsonl, .json, .csv, .parquet"),
        ("a.parquet.gz", b"", "DataFormatError", "a.parquet.gz: the extension must be one of"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, name, content, reason, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert caught.value.reason == reason
    assert why in caught.value.message


def test_a_utf_16_file_of_lines_fails_at_its_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL.decode().encode("utf-16"))
    assert "is not UTF-8" in str(read(tmp_path / "a.jsonl")[0][1])


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="there is no such file") as missing:
        read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder; name one file in it") as folder:
        read(tmp_path / "b.jsonl")
    assert missing.value.reason == folder.value.reason == "DatasetNotFound"


@pytest.fixture
def unreadable():
    """A file without permissions, seen by uid 1000 as in the pod (root may read everything)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "a.jsonl")
        path.write_bytes(JSONL)
        path.chmod(0)
        user = os.geteuid()
        os.seteuid(1000 if user == 0 else user)
        yield path
        os.seteuid(user)


def test_a_file_that_may_not_be_read_is_access_denied(unreadable):
    with pytest.raises(UserError, match="uid 1000 may not read it") as denied:
        read(unreadable)
    assert denied.value.reason == "AccessDenied"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def elements(text, longest):
    return list(jsonlist.elements(io.StringIO(text), longest, lambda name: None))


@given(values=st.lists(VALUES, max_size=9), indent=st.sampled_from([None, 0, 2]), longest=st.integers(400, 900))
def test_a_json_list_is_read_through_a_window_as_json_reads_it_whole(values, indent, longest):
    text = f" {json.dumps(values, indent=indent)}\n"
    assert elements(text, longest) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    ["[1, 2", "[1 2]", "[1,]", '[1, {"a": }]', '[{"a": 1}]\n x', '[\n1,\n "x]', "[", "[1] [2]", "[1,\n\n  oops]"],
)
def test_an_error_in_a_json_list_has_the_place_that_json_tells(text):
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text)
    for longest in (5, 8, 1000):
        with pytest.raises(json.JSONDecodeError) as found:
            elements(text, longest)
        assert (found.value.lineno, found.value.colno) == (whole.value.lineno, whole.value.colno)


def test_a_json_list_of_any_length_takes_little_memory(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[0")
        file.writelines(f',{{"n": {i}, "text": "{"x" * 2000}"}}' for i in range(30_000))
        file.write("]")
    tracemalloc.start()
    numbers = sum(1 for _ in sources.read_file(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers == 30_001
    assert path.stat().st_size > 60e6
    assert peak < 45e6
