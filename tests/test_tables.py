"""Tables: what their first line is, how numbers are written, and columns that go by their names."""

import csv
import gzip
import io
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import iwae
from early import forget
from iwae import data
from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.data import tables
from iwae.data.refilled import CsvText
from iwae.errors import InputError
from iwae.experiments.jobs import Job
from iwae.plotting import figures, report
from iwae.storage import checkpoint
from refusals import refused

RNG = np.random.default_rng(5)
X = np.round(RNG.normal(size=(40, 3)) * [1, 10, 100], 3)
NAMES = ("age", "dose", "a, “b”")


def lines(x, sep=",", point="."):
    return "".join(sep.join(str(v).replace(".", point) for v in row) + "\n" for row in x)


def saved(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sorted_rows(dataset):
    joined = np.concatenate([dataset.train, dataset.valid, dataset.test])
    return joined[np.lexsort(joined.T)]


class Frame:
    """What a data frame of pandas or polars is to a reader of arrays."""

    def __init__(self, x, columns):
        self.x, self.columns = np.asarray(x), list(columns)

    def __array__(self, dtype=None, copy=None):
        return self.x

    def __getitem__(self, names):
        return Frame(self.x[:, [self.columns.index(n) for n in names]], names)


@pytest.mark.slow
def test_names_stay_where_data_bring_none(settings, tmp_path):
    """A run, one that begins where it ended, and a run on a file that lost its line of names."""
    turned = lambda: Frame(X[:3][:, [2, 0, 1]], [NAMES[i] for i in (2, 0, 1)])
    out = tmp_path / "run"
    iwae.train(settings, data=Frame(X, NAMES), out=out)
    longer = iwae.train(settings, data=X, out=out, resume=True, epochs=2, schedule="constant")
    begun = iwae.train(settings, data=X, out=tmp_path / "next", start_from=str(out))
    for trained in (longer, iwae.load(out), begun):
        assert trained.seen.names == NAMES
        np.testing.assert_array_equal(trained.score(turned(), k=3), trained.score(X[:3], k=3))
    with refused(
        "array lacks 'age', 'dose', 'a, “b”' and has 'x', 'y', 'z' besides, where the training "
        "data have the columns 'age', 'dose', 'a, “b”': give these, in any order."
    ):
        iwae.train(data=Frame(X, "xyz"), out=out, resume=True)


def test_splits_of_which_the_first_has_no_names_are_refused():
    with refused(
        "The mapping (train) has no names for its columns, where The mapping (test) has 'age', "
        "'dose', 'a, “b”': give both their names, or neither."
    ):
        data.load({"train": X, "test": Frame(X, NAMES)}, values="real")


def test_labels_of_any_type_name_the_values_of_a_row():
    row = lambda values, index: Labelled(values, index)
    read = lambda source, names: data.read_examples(
        source, kind="real", scale=1.0, shape=(3,), names=names
    )
    np.testing.assert_array_equal(
        read(row([3, 2, 1], [420, 410, 400]), ("400", "410", "420")), [[1, 2, 3]]
    )
    np.testing.assert_array_equal(read(row([3, 2, 1], ["c", 1, "a"]), ("a", "1", "c")), [[1, 2, 3]])
    np.testing.assert_array_equal(read(row([3, 2, 1], [0, 1, 2]), ("a", "b", "c")), [[3, 2, 1]])


class Labelled:
    """What a row of a data frame is to a reader of arrays."""

    ndim = 1

    def __init__(self, values, index):
        self.values, self.index = np.asarray(values, float), list(index)

    def __array__(self, dtype=None, copy=None):
        return self.values


LACKS = "{} lacks 1 of its values, the first in column 1 of line 3"
BROKEN = [
    ('a\n1.5\n""\n2.5\n', LACKS),
    ('a\n1.5\n" "\n', LACKS),
    ("a\n1.5\n\n2.5\n", "Line 3 of {} is blank, where a value may be missing"),
    ("a\tb\n1.5\t2\n\t\n4\t5\n", "{} lacks 2 of its values, the first in column 1 of line 3"),
    ('a,b,c\n1.5,2.0,3.0\n"1,5",2.0\n', "Line 3 of {} holds '1,5'"),
    ('a,b,c\n1.5,2.0,3.0\n"4,5,6\n', "Line 3 of {} opens a quote that is not closed"),
    ('a,b\n1.5,"2.0\n3,"4"\n5,6', "Line 2 of {} opens a quote that is not closed"),
    ('a;b;c\n1.0;2.0;3.0\n"4;5";6\n', "Line 3 of {} holds '4;5'"),
    ('a\n"1,5"\n3,4\n', "Line 3 of {} has 2 cells and line 2 has 1"),
]


@pytest.mark.parametrize("piece", [1, 7, 1 << 15])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_in_quotes_may_hold_anything(tmp_path, monkeypatch, end, piece):
    """What Python's csv writes is read again, however the file is cut into pieces."""
    monkeypatch.setattr(tables, "PIECE", piece)
    random = np.random.default_rng(piece)
    for _ in range(20):
        drawn = ["".join(random.choice(list('ab," \n'), size=4)).strip() or "a" for _ in range(20)]
        rows, text = list(zip(drawn[::2], drawn[1::2], strict=True)), io.StringIO()
        csv.writer(text, lineterminator=end).writerows([("x", "y"), *rows])
        found = tables.read_table(saved(tmp_path / "t.csv", text.getvalue()), header="yes")
        for cells, written in zip(found.columns, zip(*rows, strict=True), strict=True):
            assert [cells.levels[code] for code in cells.values] == list(written)


def test_line_breaks_in_quotes_keep_the_numbers_of_lines(tmp_path):
    text = 'a,b\n1,"x\n\ny"\n2,z\n3,x,4\n'
    path = saved(tmp_path / "t.csv", text)
    with refused(
        f"Line 6 of {path} has 3 cells and line 2 has 2: give the same number in every line."
    ):
        tables.read_table(path)
    path = saved(tmp_path / "u.csv", 'a,b\n1,x\n"2,y\n3,z\n')
    with refused(
        f"Line 3 of {path} opens a quote that is not closed: close it, or double it within a cell "
        f"in quotes."
    ):
        tables.read_table(path)


def test_holes_are_filled_beside_line_breaks(tmp_path):
    path = saved(tmp_path / "t.csv", 'a,"b\n1"\r\n1,"x\ry"\r\n,"x\ry"\r\n3,\r\n')
    text = CsvText.read(path)
    gaps = np.array([[False, True, False], [False, False, True]])
    made = text.filled({0: (gaps[0], np.array([2])), 1: (gaps[1], np.array(["x\ny"], object))})
    assert made == b'a,"b\n1"\r\n1,"x\ry"\r\n2,"x\ry"\r\n3,"x\ny"\r\n'


@pytest.mark.parametrize(("text", "says"), BROKEN)
def test_no_line_is_lost_and_no_cell_is_broken_open(tmp_path, text, says):
    path = saved(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=re.escape(says.format(path)) + ": "):
        data.read_examples(path, kind="real", scale=1.0, shape=(3,), header="yes")


@pytest.mark.parametrize("text", ['a,b\n"1,5","2,5"\n3,4\n', "\n\na,b\n1.5,2.5\n\n3,4\n\n\n"])
def test_decimals_alone_may_be_quoted_and_blank_lines_stand_between(tmp_path, text):
    path = saved(tmp_path / "t.csv", text)
    read = data.read_examples(path, kind="real", scale=1.0, shape=(2,), header="yes")
    np.testing.assert_array_equal(read, [[1.5, 2.5], [3, 4]])


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_whole_numbers_that_float32_makes_one_are_not_constant(dtype):
    x = np.arange(40, dtype=dtype)[:, None] * np.array([1000, 2000], dtype) + dtype(17 * 10**17)
    with pytest.raises(InputError, match="which float32 cannot resolve"):
        data.load(x)


def test_what_a_command_reads_is_not_overwritten(run, tmp_path, capsys):
    path = saved(tmp_path / "t.csv", ",".join(f'"{n}"' for n in ("age", "dose")) + "\n1,2\n")
    mine, config = path.read_bytes(), (run / "config.toml").read_bytes()
    for command in (
        ["score", str(run), str(path), "--k", "3", "--out", str(path), "--overwrite"],
        ["encode", str(run), str(path), "--out", str(path), "--overwrite"],
        ["report", str(run), "--out", str(run / "config.toml"), "--overwrite"],
    ):
        with pytest.raises(SystemExit) as left:
            main(command)
        assert left.value.code == 2
        assert "give another file to write to" in capsys.readouterr().err
    assert (path.read_bytes(), (run / "config.toml").read_bytes()) == (mine, config)


def test_a_path_is_data_that_the_run_knows(settings, table, tmp_path):
    trained = iwae.train(override(settings, dataset="digits"), data=table, out=tmp_path / "run")
    assert trained.config.data.dataset == str(table)
    assert iwae.evaluate(tmp_path / "run", k=2).n == len(trained.data().test)


# --- the first line

INTEGERS = RNG.integers(-50, 50, (40, 3))

AMBIGUOUS = {
    "numbers that count": "1,2,3\n" + lines(X),
    "numbers that count above whole ones": "1,2,3\n" + lines(INTEGERS),
    "numbers from 0": "0,1,2\n" + lines(X),
    "wavelengths": "400.5,410.5,420.5\n" + lines(X),
    "whole numbers above others": "3,1,2\n" + lines(X),
    "years above whole ones": "2001,2005,2010\n" + lines(INTEGERS),
    "a number above one column": "0\n" + lines(X[:, :1]),
    "many that rise": "1,3,4,9,11,15\n" + lines(RNG.integers(0, 99, (20, 6))),
    "what stands for missing": "NA,NA,NA\n" + lines(X),
    "what else stands for missing": "nan,,?\n" + lines(X),
    "nothing": ",,\n" + lines(X),
}


@pytest.mark.parametrize("text", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_first_line_that_may_be_names_is_refused_with_the_flag_that_says(tmp_path, text):
    path = saved(tmp_path / "x.csv", text)
    with pytest.raises(InputError, match=r"may be names .*--header yes or --header no"):
        data.load(path, values="real")
    width = text.partition("\n")[0].count(",") + 1
    with pytest.raises(InputError, match="--header yes or --header no"):
        data.read_examples(path, kind="real", scale=1.0, shape=(width,))


def test_the_flag_says_what_the_first_line_is(tmp_path):
    path = saved(tmp_path / "x.csv", "1,2,3\n" + lines(X))
    with_names = data.load(path, header="yes")
    assert with_names.names == ("1", "2", "3")
    assert sorted_rows(with_names).shape == (40, 3)
    without = data.load(path, header="no")
    assert without.names == ()
    assert sorted_rows(without).shape == (41, 3)
    known = {"kind": "real", "scale": 1.0, "shape": (3,)}
    assert len(data.read_examples(path, **known, header="no")) == 41
    np.testing.assert_array_equal(  # a first line that holds the names that are expected
        data.read_examples(path, **known, names=("3", "2", "1")), X[:, ::-1].astype(np.float32)
    )
    gaps = saved(path, "NA,NA,NA\n" + lines(X))
    assert data.load(gaps, header="no").missing
    with pytest.raises(InputError, match=r"lacks 3 of its values, the first in column 1 of line 1"):
        data.read_examples(gaps, **known, header="no")
    with refused("header='maybe' is unknown: did you mean 'yes'? Known are auto, no, yes."):
        data.load(path, header="maybe")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n" + lines(X), "names 2 columns and line 2 has 3 cells"),
        ("a,b,c,d\n" + lines(X), "names 4 columns and line 2 has 3 cells"),
        ("a,b,c\n" + lines(X, point=","), "6 cells: .* with points for decimals"),
        ("age,2001,2002\n" + lines(X), "holds 'age' beside numbers such as '2001'"),
        (",a,b,c\n" + lines(np.hstack([X[:, :1], X])), "has no name, as an index of rows has"),
        ("x\n1,5\n2,5\n", "names 1 columns and line 2 has 2 cells"),
        ("".join(f"{i % 7},{i % 5}\n" for i in range(40)), "or one with a decimal comma"),
        ("a;b\n" + "1,5;2\n" * 20 + "1.5;2\n", r"holds '1\.5' where others have decimal commas"),
        ("a;b\n" + "1,500;2\n" * 20, "holds '1,500', which may be thousands or decimals"),
        ('a,b\n"1,500","2"\n' * 20, "holds '1,500', which may be thousands or decimals"),
        (lines(X, "|"), r"give numbers separated by commas"),
        (lines(X).encode("utf-16-le"), "is not a line of text"),
        ("é,b,c\n".encode("latin-1") + lines(X).encode(), "is not UTF-8 text"),
        (b"PK\x03\x04" + bytes(30), "is an archive or a spreadsheet"),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        data.load(saved(tmp_path / "x.csv", text), values="real")


QUOTED = "".join(",".join(f'"{v}"' for v in row) + "\n" for row in X)
HEADER = 'age,dose,"a, “b”"\n'

WRITTEN = {
    "quoted": HEADER + QUOTED,
    "quoted with decimal commas": HEADER + QUOTED.replace(".", ","),
    "blanks": HEADER.replace(",d", " , d") + lines(X, " , "),
    "semicolons": 'age;dose;"a, “b”"\n' + lines(X, ";"),
    "semicolons and commas": 'age;dose;"a, “b”"\n' + lines(X, ";", ","),
    "tabs": 'age\tdose\t"a, “b”"\n' + lines(X, "\t"),
    "tabs and commas": "age\tdose\ta, “b”\n" + lines(X, "\t", ","),
    "gzip": gzip.compress((HEADER + lines(X)).encode()),
    "carriage returns": (HEADER + lines(X)).replace("\n", "\r"),
    "blank lines": "\n\n" + HEADER + lines(X).replace("\n", "\n \n"),
    **{code: (HEADER + lines(X)).encode(code) for code in ("utf-8-sig", "utf-16", "utf-32")},
    "two marks": b"\xef\xbb\xbf" + (HEADER + lines(X)).encode("utf-8-sig"),
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("name", ["x.csv", "X.CSV.GZ"])
def test_a_table_is_the_same_however_it_is_written(tmp_path, written, name):
    dataset = data.load(saved(tmp_path / name, written))
    np.testing.assert_array_equal(dataset.train, data.load(X).train)
    assert (dataset.names, dataset.name) == (NAMES, name[0])


def test_numbers_in_quotes_below_a_line_without_are_no_names(tmp_path):
    path = saved(tmp_path / "x.csv", '"1","2","3"\n' + lines(X))
    assert data.load(path).names == ("1", "2", "3")
    assert data.load(saved(path, QUOTED)).names == ()
    assert len(sorted_rows(data.load(path))) == 40


def test_two_whole_columns_are_two_where_two_are_expected(tmp_path):
    whole = RNG.integers(0, 2, (40, 2))
    path = saved(tmp_path / "x.csv", lines(whole))
    known = {"kind": "binary", "scale": 1.0, "shape": (2,)}
    np.testing.assert_array_equal(data.read_examples(path, **known), whole)
    assert data.load(saved(path, "a,b\n" + lines(whole))).shape == (2,)


# --- columns by name


def test_frames_and_tables_are_matched_by_the_names_of_their_columns(tmp_path):
    known = {"kind": "real", "scale": 1.0, "shape": (3,), "names": NAMES}
    frame = Frame(X, NAMES)
    table = saved(tmp_path / "x.csv", 'dose,"a, “b”",age\n' + lines(X[:, [1, 2, 0]]))
    for source in (X, frame, frame[NAMES[::-1]], Frame(X, range(3)), table):
        np.testing.assert_array_equal(data.read_examples(source, **known), X.astype(np.float32))
    row = Frame(X[0, ::-1], ())
    row.columns, row.index, row.ndim = None, list(NAMES[::-1]), 1
    np.testing.assert_array_equal(data.read_examples(row, **known), X[:1].astype(np.float32))
    splits = data.load({"train": frame, "test": frame[NAMES[::-1]], "valid": X})
    np.testing.assert_array_equal(splits.test, splits.train)
    assert splits.names == NAMES


def test_columns_that_are_counted_go_by_their_numbers():
    x = X.astype(np.float32)
    known = {"kind": "real", "scale": 1.0, "shape": (3,)}
    counted = Frame(X[:, ::-1], [2, 1, 0])
    np.testing.assert_array_equal(data.read_examples(counted, **known), x)
    np.testing.assert_array_equal(data.read_examples(Frame(X, NAMES), **known), x)
    np.testing.assert_array_equal(
        data.read_examples(Frame(X, NAMES), **known, names=("0", "1", "2")), x
    )


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("age", "dose", "b"), r"lacks 'a, “b”' and has 'b' besides, where .* in any order"),
        (("age", "dose"), "The array lacks 'a, “b”', where"),
        ((*NAMES, "id"), "The array has 'id' besides, where"),
        (("Age", *NAMES[1:]), "lacks 'age' and has 'Age' besides"),
        (("age", "age", "dose"), "lacks 'a, “b”'|several columns called 'age'"),
    ],
)
def test_columns_of_other_names_are_refused_by_name(names, sentence):
    frame = Frame(np.ones((20, len(names))), names)
    with pytest.raises(InputError, match=sentence):
        data.read_examples(frame, kind="real", scale=1.0, shape=(3,), names=NAMES)
    with pytest.raises(InputError, match=sentence.replace("The array", r"The mapping \(test\)")):
        data.load({"train": Frame(X, NAMES), "test": frame})
    with pytest.raises(InputError, match=r"several columns called 'x'"):
        data.read_examples(
            Frame(X, "xxy"), kind="real", scale=1.0, shape=(3,), names=("x", "y", "x")
        )


@pytest.fixture(scope="module")
def settings(tiny):
    return override(tiny, values="real", epochs=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("data") / "x.csv", HEADER + lines(X))


@pytest.fixture(scope="module")
def run(settings, table, tmp_path_factory):
    """A run on a table with names."""
    config = override(settings, dataset=str(table))
    return iwae.train(config, out=tmp_path_factory.mktemp("runs") / "named").path


def test_a_run_scores_encodes_and_reconstructs_columns_by_name(run, tmp_path):
    trained = iwae.load(run)
    assert trained.seen.names == NAMES
    backwards = saved(tmp_path / "b.csv", '"a, “b”",dose,age\n' + lines(X[:, ::-1]))
    score, again = lambda x: trained.score(x, k=5), lambda x: trained.reconstruct(x)[1]
    for do in (score, trained.encode, again):
        expected = do(X)
        np.testing.assert_array_equal(do(backwards), expected)
        np.testing.assert_array_equal(do(Frame(X, NAMES)[NAMES[::-1]]), expected)
        with pytest.raises(InputError, match="lacks 'dose' and has 'other' besides"):
            do(Frame(X, ("age", "other", "a, “b”")))


def test_data_that_are_given_again_are_matched_by_name(run):
    expected = iwae.load(run).evaluate(k=5).nll
    again = Frame(X, NAMES)[NAMES[::-1]]
    for given in (again, data.load(again, values="real")):
        assert iwae.load(run, data=given).evaluate(k=5).nll == expected
    for names in ((*NAMES, "id"), ("x", "y", "z")):
        with pytest.raises(InputError, match=f"has '{names[-1]}'|'x', 'y', 'z' besides"):
            iwae.load(run, data=Frame(np.ones((20, len(names))), names))


def test_a_file_whose_columns_moved_is_the_same_to_evaluations_reports_and_training(
    settings, tmp_path
):
    path = saved(tmp_path / "x.csv", HEADER + lines(X))
    config = override(settings, dataset=str(path))
    whole = iwae.train(override(config, epochs=4), out=tmp_path / "whole")
    iwae.train(config, out=tmp_path / "run")
    expected = iwae.load(tmp_path / "run").data()
    saved(path, '"a, “b”",age,dose\n' + lines(X[:, [2, 0, 1]]))
    np.testing.assert_array_equal(iwae.load(tmp_path / "run").data().test, expected.test)
    assert "has changed" not in report.render([tmp_path / "run"])
    longer = iwae.train(override(config, epochs=4), out=tmp_path / "run", resume=True)
    assert longer.seen == whole.seen
    np.testing.assert_array_equal(longer.score(X, k=5), whole.score(X, k=5))
    saved(path, "age,weight,dose\n" + lines(X))
    for again in (
        iwae.load(tmp_path / "run").data,
        lambda: iwae.train(override(config, epochs=6), out=tmp_path / "run", resume=True),
        lambda: iwae.train(override(config, start_from=str(tmp_path / "run"))),
    ):
        with pytest.raises(InputError, match="lacks 'a, “b”' and has 'weight' besides"):
            again()


def test_a_model_that_knows_no_names_is_loaded_and_goes_by_position(run, tmp_path, table):
    old = tmp_path / "old"
    old.mkdir()
    for file in Path(run).iterdir():
        if file.is_file():
            (old / file.name).write_bytes(file.read_bytes())
    for name, inner in (("model.safetensors", "seen"), ("checkpoint.safetensors", None)):
        header = checkpoint.read_header(old / name)
        (header if inner is None else header[inner]).pop("names")
        arrays = safetensors.numpy.load_file(old / name)
        safetensors.numpy.save_file(arrays, old / name, {"header": json.dumps(header)})
    forget(old)
    config = (old / "config.toml").read_text()
    assert 'header = "auto"' in config
    (old / "config.toml").write_text(config.replace('header = "auto"\n', ""))
    trained = iwae.load(old)
    assert trained.seen.names == ()
    expected = iwae.load(run).score(X, k=5)
    np.testing.assert_array_equal(trained.score(table, k=5), expected)
    assert trained.evaluate(k=5).nll == iwae.load(run).evaluate(k=5).nll


def test_the_setting_for_first_lines_moves_no_key():
    plain = Job(RunConfig(), k=10)
    assert Job(override(RunConfig(), header="auto"), k=10).key == plain.key
    assert Job(override(RunConfig(), header="no"), k=10).key != plain.key


# --- the command line


def test_commands_read_and_write_tables_with_names(settings, tmp_path, capsys):
    path = saved(tmp_path / "x.csv", "1,2,3\n" + lines(X))
    out = tmp_path / "run"
    shape = ["--k", "2", "--hidden", "8", "--latents", "3"]
    flags = ["--recipe", "smoke", "--values", "real", "--epochs", "1", *shape]
    with pytest.raises(SystemExit):
        main(["train", "--dataset", str(path), "--out", str(out), *flags])
    assert "--header yes or --header no" in capsys.readouterr().err
    main(["train", "--dataset", str(path), "--out", str(out), "--header", "yes", *flags])
    assert iwae.load(out).seen.names == ("1", "2", "3")
    main(["evaluate", str(out), "--k", "5"])
    backwards = saved(tmp_path / "b.csv", "3,2,1\n" + lines(X[:, ::-1]))
    main(["score", str(out), str(backwards), "--k", "5", "--out", str(tmp_path / "s.npy")])
    expected = iwae.load(out).score(X, k=5)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), expected)
    main(["encode", str(out), str(path), "--header", "yes", "--out", str(tmp_path / "h.csv")])
    index, *codes = np.loadtxt(tmp_path / "h.csv", delimiter=",", skiprows=1).T
    np.testing.assert_array_equal(index, np.arange(40))
    np.testing.assert_array_equal(np.float32(codes).T, iwae.load(out).encode(X))
    assert (tmp_path / "h.csv").read_text().startswith("index,h0,h1,h2\n0,")


@pytest.mark.slow
def test_samples_are_a_table_that_can_be_scored(run, tmp_path):
    path = tmp_path / "samples.csv"
    main(["sample", str(run), "--n", "12", "--out", str(path)])
    rows = list(csv.reader(path.read_text("utf-8").splitlines()))
    assert rows[0] == list(NAMES)
    trained = iwae.load(run)
    np.testing.assert_array_equal(np.float32(rows[1:]), trained.sample(12))
    np.testing.assert_array_equal(trained.score(path, k=5), trained.score(trained.sample(12), k=5))


def test_samples_of_images_are_a_table_of_counted_columns(tiny_run, tmp_path):
    path = tmp_path / "samples.csv"
    main(["sample", str(tiny_run.path), "--n", "3", "--out", str(path)])
    assert path.read_text().startswith("x0,x1,x2,")
    found = data.read_examples(path, kind="real", scale=1.0, shape=(8, 8))
    np.testing.assert_array_equal(found.reshape(3, 8, 8), tiny_run.sample(3))


def test_a_score_that_is_no_number_is_not_given_without_a_word(run, tmp_path, capsys):
    trained = iwae.load(run)
    far = np.concatenate([X[:2], [[1e21, 0, 0]]])
    with pytest.warns(RuntimeWarning, match=r"1 of 3 log-likelihoods .* example 2 \(-inf\)"):
        scores = trained.score(far, k=5)
    assert np.isfinite(scores).tolist() == [True, True, False]
    np.save(tmp_path / "far.npy", far)
    out = tmp_path / "s.csv"
    main(["score", str(run), str(tmp_path / "far.npy"), "--k", "5", "--out", str(out)])
    assert "Note: 1 of 3 log-likelihoods are not finite" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.score(X[:2], k=5)


# --- values that float32 cannot tell apart


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1e-40, 1e-37])
def test_values_below_the_digits_of_float32_are_to_be_multiplied(dtype, scale):
    for values in ("auto", "real", "intensity"):
        x = (np.abs(X) / np.abs(X).max() * scale).astype(dtype)
        if not x.any():
            continue
        with pytest.raises(InputError, match=r": multiply (that column|them)"):
            data.load(x, values=values)
    if (X * scale).astype(dtype).any():
        with pytest.raises(InputError, match="less than float32 can resolve: multiply"):
            data.load((X * scale).astype(dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1, 1e6, 1e30])
def test_values_that_float32_has_digits_for_are_kept(scale):
    x = X * scale
    np.testing.assert_allclose(sorted_rows(data.load(x, values="real")).sum(), x.sum(), rtol=1e-4)


def test_numbers_that_hardly_leave_zero_are_not_taken_for_intensities():
    x = np.abs(X) / np.abs(X).max() * 1e-9
    with pytest.raises(InputError, match=r"are almost zero as intensities: multiply them"):
        data.load(x)
    assert data.load(x, values="real").kind == "real"


# --- images whose channels come first


def pictures(x):
    return figures.grid(x, columns=len(x))


@pytest.mark.parametrize("c", [1, 3])
def test_channels_may_come_first_or_last(c):
    last = RNG.random((4, 8, 9, c))
    first = np.moveaxis(last, 3, 1)
    np.testing.assert_array_equal(pictures(first), pictures(last))
    seen = SimpleNamespace(seen=SimpleNamespace(kind="intensity"))
    with Image.open(io.BytesIO(figures.sheet(seen, first))) as picture:
        assert picture.mode == ("RGB" if c == 3 else "L")
    small = RNG.random((2, 3, 4, 4))  # as likely four channels of 3×4 pixels
    assert pictures(small).ndim == 2


@pytest.mark.slow
def test_a_fixed_binarisation_is_not_continued_on_columns_that_moved(tiny, tmp_path):
    grey = RNG.random((40, 3))
    path = saved(tmp_path / "x.csv", HEADER + lines(grey))
    config = override(tiny, dataset=str(path), values="intensity", binarization="fixed", epochs=1)
    iwae.train(config, out=tmp_path / "run")
    expected = iwae.load(tmp_path / "run").data()
    saved(path, '"a, “b”",dose,age\n' + lines(grey[:, ::-1]))
    np.testing.assert_array_equal(iwae.load(tmp_path / "run").data().train, expected.train)
    with pytest.raises(InputError, match=r"another order .* with 'age' first"):
        iwae.train(override(config, epochs=2), out=tmp_path / "run", resume=True)
