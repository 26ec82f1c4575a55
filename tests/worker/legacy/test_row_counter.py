"""Records counted from passing bytes are the records that pandas reads, or none are claimed."""

import io
import tracemalloc
import warnings
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.legacy.row_counter import RowCounter
from worker.store.digest import CHUNK_BYTES

PLAIN = b"ns_since_reboot,x,y,z\n" + b"".join(b"%d,-0.5,1e-05,12\n" % time for time in range(1000))


def count(content: bytes, cuts: Sequence[int] = ()) -> int | None:
    """Feed `content` in pieces that end at `cuts`, none longer than a chunk."""
    counter = RowCounter()
    borders = sorted({0, *cuts, *range(0, len(content), CHUNK_BYTES), len(content)})
    for start, end in pairwise(borders):
        counter.feed(memoryview(content)[start:end])
    return counter.records


def read_by_pandas(content: bytes) -> int | None:
    """How many records pandas reads; None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return len(pd.read_csv(io.BytesIO(content)))
        except (ValueError, OverflowError):
            return None


def has_a_line_longer_than_its_header(content: bytes) -> bool:
    header, *lines = content.split(b"\n")
    return any(line.count(b",") > header.count(b",") for line in lines)


# Lines as watches, people and broken disks leave them, and the bytes that make up anything else.
FIELDS = st.sampled_from(["1", "-2.5", "1e-05", "1e+16", "", " ", "nan", "a b", '"q"', "é", "\0"])
LINES = st.lists(FIELDS, min_size=0, max_size=5).map(",".join)
ENDINGS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"])
FILES = st.lists(st.tuples(LINES, ENDINGS), max_size=12).map(
    lambda lines: "".join(line + ending for line, ending in lines).encode()
)
RECORDINGS = st.builds(
    lambda width, rows, last: (
        b"\n".join([b",".join([b"c"] * width)] + [b",".join([b"1"] * width)] * rows) + last
    ),
    st.integers(1, 5),
    st.integers(0, 20),
    st.sampled_from([b"", b"\n", b"\n\n", b"\n1", b"\n1,2\n"]),
)
RAGGED = st.lists(st.integers(0, 3), min_size=1, max_size=8).map(
    lambda commas: "".join(f"{','.join('1' * (count + 1))}\n" for count in commas).encode()
)
CUTS = st.lists(st.integers(0, 200), max_size=5)


@given(content=FILES | RECORDINGS | RAGGED | st.binary(max_size=60), cuts=CUTS)
@example(
    content=b"a,b\n1,2,3\n\n", cuts=[]
)  # a longer first line makes an index of itself, the blank one is none
@example(content=b"a\n1\n\n2\n", cuts=[])  # one column: a blank line has as many commas as any other
@example(content=b"a,b\n1\r2\n", cuts=[])  # a carriage return in the place of a comma ends a line
@example(content=b"a,b\n1,2\n \n", cuts=[])  # a line of blanks is a blank line
@example(content=b"\n1\n2\n", cuts=[])  # the header is the first line that is not blank
@example(content=b"a,b\n1,\xff\n", cuts=[])  # not UTF-8: pandas refuses the file
@settings(deadline=None, max_examples=400)
def test_a_count_is_that_of_pandas_wherever_pandas_reads_the_file_and_the_chunks_end(content, cuts):
    counted = count(content, [cut for cut in cuts if cut <= len(content)])

    read = read_by_pandas(content)
    assert counted in {None, read} or (read is None and has_a_line_longer_than_its_header(content))


@given(rows=st.integers(0, 50), width=st.integers(2, 6), newline=st.booleans(), cuts=CUTS)
@settings(deadline=None, max_examples=100)
def test_a_plain_recording_needs_no_parser(rows, width, newline, cuts):
    lines = [",".join(f"column{number}" for number in range(width))]
    lines += [",".join(f"{row * number - 1.5}" for number in range(width)) for row in range(rows)]
    content = "\n".join(lines).encode() + b"\n" * newline

    assert count(content, [cut for cut in cuts if cut <= len(content)]) == rows == read_by_pandas(content)


def test_a_file_of_many_chunks_is_counted_across_their_borders():
    header, _, row = b"ns_since_reboot,x,y,z\n1000000000000,0.25,-9.81,1e-05\n".partition(b"\n")
    rows = 3 * CHUNK_BYTES // len(row)

    assert count(header + b"\n" + row * rows) == rows


@pytest.mark.parametrize("cut", [0, 1, 20, 21, 22, 23, len(PLAIN) - 1])
def test_a_cut_in_header_line_or_newline_changes_nothing(cut):
    assert count(PLAIN, [cut]) == 1000


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"ns_since_reboot,x\n1,2\n3,4\n", 2),
        (b"ns_since_reboot,x\n1,2\n3,4", 2),
        (b"ns_since_reboot,x\n", 0),
        (b"ns_since_reboot,x", 0),
        (b"ns_since_reboot,x\n,\n", 1),
    ],
    ids=[
        "newline at the end",
        "no newline at the end",
        "header only",
        "header without newline",
        "empty fields",
    ],
)
def test_lines_of_equal_length_are_counted(content, records):
    assert count(content) == records == read_by_pandas(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"ns\n1\n2\n",
        b"ns,x\r\n1,2\r\n",
        b'ns,x\n1,"2"\n',
        b'ns,x\n1,"2\n3"\n',
        b"ns,x\n1,2\n\n",
        b"ns,x\n\n1,2\n",
        b"\nns,x\n1,2\n",
        b"ns,x\n1, 2\n",
        b"ns,x\n1\n",
        b"ns,x\n1,2,3\n",
        b"ns,x\n1,2\n3",
        b"ns,x\n1,\0\n",
        "ns,größe\n1,2\n".encode(),
        b"n" * 70_000 + b",x\n1,2\n",
    ],
    ids=[
        "empty",
        "one blank line",
        "one column",
        "carriage returns",
        "a quote",
        "a quoted newline",
        "blank line at the end",
        "blank line first",
        "blank line above the header",
        "a blank",
        "a short line",
        "a long line",
        "a last line cut short",
        "a null byte",
        "not ASCII",
        "a header without end",
    ],
)
def test_an_ambiguous_file_is_counted_by_a_parser(content):
    assert count(content) is None


def test_a_file_that_never_ends_its_first_line_is_not_kept_in_memory():
    counter = RowCounter()
    for _ in range(8):
        counter.feed(memoryview(b"1,2," * (CHUNK_BYTES // 4)))

    assert counter.records is None
    assert len(counter._head) <= CHUNK_BYTES


def test_a_counter_that_has_done_its_work_takes_next_to_no_memory():
    chunk = memoryview(PLAIN * (CHUNK_BYTES // len(PLAIN)))
    tracemalloc.start()
    try:
        counters = [RowCounter() for _ in range(20)]
        for counter in counters:
            counter.feed(chunk)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 2 * CHUNK_BYTES
