"""Other people's files are read as they are: whatever their name, compression, mark and encoding, and never as other
words than they hold."""

import gzip
import logging
import os

import pytest

from ranker.errors import UserError
from ranker.reading import clean, clean_title, columns, finite, json_lines, open_text, rows

TEXT = "first líne\nsecond\r\nthird – “é”\n"


def read(path, *encoding) -> str:
    with open_text(path, *encoding) as file:
        return file.read()


def complaint(path, *encoding) -> str:
    with pytest.raises(UserError) as caught:
        read(path, *encoding)
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.txt", "x.gz"])
@pytest.mark.parametrize("content", [
    TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode(), gzip.compress(TEXT.encode(), mtime=0),
    gzip.compress(b"\xef\xbb\xbf" + TEXT.encode(), mtime=0), TEXT.encode("utf-16"), TEXT.encode("utf-32"),
    TEXT.encode("utf-16-le"), TEXT.encode("utf-16-be"), TEXT.encode("cp1252")],
    ids=["plain", "mark", "gzip", "gzip and mark", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"])
def test_a_text_is_read_whatever_its_name_its_mark_and_its_encoding(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == TEXT


@pytest.mark.parametrize("content", [TEXT.encode(), gzip.compress(TEXT.encode(), mtime=0)], ids=["plain", "gzip"])
def test_a_pipe_is_read_once_from_start_to_end(content):
    out, into = os.pipe()
    os.write(into, content)
    os.close(into)
    try:
        assert read(f"/dev/fd/{out}") == TEXT
    finally:
        os.close(out)


def test_blocks_end_at_lines_and_every_line_has_its_own_number(tmp_path, monkeypatch):
    monkeypatch.setattr("ranker.reading.BLOCK", 7)
    lines = [f"{'é' * (i % 5)}{i}\n" for i in range(200)]
    (tmp_path / "x").write_text("".join(lines), encoding="utf-8")
    with open_text(tmp_path / "x") as file:
        assert list(file) == lines
    (tmp_path / "x").write_bytes("".join(lines).encode() + "Жизнь\n".encode("cp1251"))
    assert complaint(tmp_path / "x").startswith(f"{tmp_path / 'x'}:201: not UTF-8 text (byte 0xc6 ")


@pytest.mark.parametrize("text, encoding", [
    ("Амели, фильм", "cp1251"), ("Привет и мир", "koi8-r"), ("中国电影", "gbk"), ("アニメ", "shift_jis"), ("映画", "euc-jp"),
    ("電影", "big5"), ("Příběh", "cp1250"), ("Łódź", "cp1250"), ("Αθήνα", "cp1253"), ("İstanbul şehri", "cp1254"),
    ("שלום", "cp1255"), ("영화", "cp949"), ("Cité", "mac_roman"), ("Cité", "cp850")])
def test_words_of_another_encoding_are_refused_and_read_where_it_is_declared(tmp_path, text, encoding):
    (tmp_path / "x").write_bytes(f"ASCII\n{text}\n".encode(encoding))
    assert f"{tmp_path / 'x'}:2: not UTF-8 text" in complaint(tmp_path / "x")
    assert "iconv -f ENCODING -t utf-8" in complaint(tmp_path / "x")
    assert read(tmp_path / "x", encoding) == f"ASCII\n{text}\n"


def test_utf_8_that_is_cut_in_a_letter_is_no_other_encoding(tmp_path):
    (tmp_path / "x").write_bytes("Cité é".encode()[:-1] + b"\n")
    assert f"{tmp_path / 'x'}:1: not UTF-8 text (byte 0xc3 " in complaint(tmp_path / "x")


@pytest.mark.parametrize("text", ["Amélie", "“Été”", "l’été…", "¿Qué?", "São Paulo", "Straße", "Smørrebrød", "Œuvre",
                                  "Björk – Début", "30°C", "Pokémon™", "£5 und 5€", "MÃE", "où", "lì"])
def test_windows_1252_is_read_and_told(tmp_path, caplog, text):
    (tmp_path / "x").write_bytes(f"ASCII\n{text}\n{text}\n".encode("cp1252"))
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "x") == f"ASCII\n{text}\n{text}\n"
    [record] = caplog.records
    told = record.getMessage()
    assert f"{tmp_path / 'x'}:2: not UTF-8, read as Windows-1252" in told and text[:10] in told


@pytest.mark.parametrize("content, words", [
    (b"PK\3\4rest", "a zip archive (or an Excel file, to be saved as CSV), not text"),
    (b"PAR1rest", "a parquet file, not text"), (b"\x28\xb5\x2f\xfdrest", "compressed by zstd, not text"),
    (gzip.compress(b"x" * 9999, mtime=0)[:-9], "the gzip file is cut short"),
    (b"\x1f\x8b" + bytes(20), "cannot be read")])
def test_what_is_no_text_is_named(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    assert complaint(tmp_path / "x").startswith(f"{tmp_path / 'x'}: {words}")
    assert complaint(tmp_path).startswith(f"{tmp_path}: cannot be read")
    assert complaint(tmp_path / "gone").startswith(f"{tmp_path / 'gone'}: cannot be read")


@pytest.mark.parametrize("text, expected", [
    ("a,b\n1,\"x, y\nz\"\n", ["1", "x, y\nz"]), ("a;b\n1;x,y\n", ["1", "x,y"]),
    ("a\tb\n1\t\"x\", y\n", ["1", '"x", y']),
    ("a:token,b:token_seq\n1,x y\n", ["1", "x y"]), ("a:token\tb:float_seq\n1\t2 3\n", ["1", "2 3"])])
def test_a_table_has_commas_tabs_or_semicolons_and_names_with_or_without_types(tmp_path, text, expected):
    (tmp_path / "x").write_text(text)
    assert list(columns(tmp_path / "x", ("a", "b"))) == [(2, expected)]


def test_a_missing_column_is_answered_with_what_was_found_and_the_option_that_names_it(tmp_path):
    (tmp_path / "x").write_text("query_idx,text\n1,x\n")
    with pytest.raises(UserError) as caught:
        list(columns(tmp_path / "x", ("query_id",)))
    assert str(caught.value) == (f"{tmp_path / 'x'}:1: no column 'query_id' (found: query_idx, text); "
                                 "name it: --columns query_id=query_idx")
    assert list(columns(tmp_path / "x", ("query_id",), {"query_id": "query_idx"})) == [(2, ["1"])]
    assert list(columns(tmp_path / "x", (("query", "query_idx"),))) == [(2, ["1"])]


def test_quotes_between_tabs_are_taken_off_only_where_asked_and_only_around_a_whole_field(tmp_path):
    (tmp_path / "x").write_text('a\tb\n"say ""hi"""\t"x" and "y"\n')
    assert list(rows(tmp_path / "x"))[1] == (2, ['"say ""hi"""', '"x" and "y"'])
    assert list(rows(tmp_path / "x", quoted_tabs=True))[1] == (2, ['say "hi"', '"x" and "y"'])


def test_a_quote_that_nothing_closes_is_named_with_its_line(tmp_path):
    (tmp_path / "x").write_text('a,b\n1,2\n3,"4\n5,6\n')
    with pytest.raises(UserError, match="x:3: "):
        list(rows(tmp_path / "x"))


def test_json_lines_have_marks_and_gzip_too(tmp_path):
    (tmp_path / "x").write_bytes(gzip.compress(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n'))
    assert list(json_lines(tmp_path / "x")) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("text, expected", [
    ("set <host name>; r<a but c>d", "set <host name>; r<a but c>d"), ("the &lt;b&gt; tag", "the <b> tag"),
    ("vector<int>  v\n", "vector<int> v"), ("write <p> and &amp;lt;", "write <p> and &lt;"), ("AT&amp;T", "AT&T")])
def test_a_passage_keeps_what_stands_between_angle_brackets(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize("text, expected", [
    ("Rock &amp;amp; <i>Roll</i>", "Rock & Roll"), ("Chess <span class=\"a-size-medium\"", "Chess"),
    ("Chess <span class=\"a-size", "Chess"), ("<span class=\"x\" id='y' Chess", "Chess"),
    ("Chess</b", "Chess"), ("Chess <br", "Chess"), ("<a href=http://x.y/z Chess", "Chess"), ("Chess <!-- new", "Chess"),
    ("I <3 Chess", "I <3 Chess"), ("a<b", "a<b"), ("The <Host Name> Story", "The <Host Name> Story"),
    ("if a <b and c> d", "if a <b and c> d")])
def test_a_title_loses_tags_also_those_that_nothing_closes(text, expected):
    assert clean_title(text) == expected


@pytest.mark.parametrize("value", ["", " ", "nan", "inf", None, [1], "1,5", 10**400])
def test_what_is_no_finite_number_is_none(value):
    assert finite(value) is None and finite("1e-3") == 0.001
