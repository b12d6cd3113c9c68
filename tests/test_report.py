"""The report: one closed page that prints what the runs' files say, and pictures pixel by pixel."""

import base64
import io
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import iwae
from early import forget
from iwae import data
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.trained import Evaluation, TrainedModel
from iwae.models.build import build
from iwae.models.observation import observation
from iwae.plotting import figures, report
from iwae.storage import run_directory
from iwae.storage.metrics import Row

VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = '<script>alert("&$a_b$") -->'


class Page(HTMLParser):
    """What a page holds; fails where a tag is closed that is not open."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h3":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "h3" in self.open:
            self.headings[-1] += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def row(self, name: str) -> list[str]:
        (row,) = [row for row in self.rows if row[0] == name]
        return row


@pytest.fixture(scope="session")
def made(
    tiny_run: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Evaluation]:
    """An evaluated run named "tiny" in a folder of this file's own."""
    path = tmp_path_factory.mktemp("report") / "tiny"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns(run_directory.EVALUATION))
    return path, iwae.evaluate(path, k=10, limit=20)


@pytest.fixture(scope="session")
def others(made: tuple[Path, Evaluation], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run with a dangerous name and no evaluation, and one without a model."""
    places = [tmp_path_factory.mktemp("others") / name for name in (NASTY, "unfinished")]
    for place, gone in zip(places, (run_directory.EVALUATION, run_directory.MODEL), strict=True):
        shutil.copytree(made[0], place)
        (place / gone).unlink()
    (places[1] / run_directory.EVALUATION).unlink()
    config = override(run_directory.read_config(places[0]), k=7, learning_rate=0.5)
    forget(places[0], config)
    return places


@pytest.fixture(scope="session")
def text(made: tuple[Path, Evaluation]) -> str:
    return report.render([made[0]])


@pytest.fixture(scope="session")
def text_of_three(made: tuple[Path, Evaluation], others: list[Path]) -> str:
    return report.render([made[0], *others])


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A run on 5 real values per example, as it is before its first step."""
    path = tmp_path_factory.mktemp("vectors")
    np.save(path / "rows.npy", np.random.default_rng(0).normal(size=(60, 5)))
    config = override(
        RunConfig(), dataset=str(path / "rows.npy"), k=2, hidden=((4,),), latents=(2,)
    )
    dataset = data.load(config.data.dataset)
    model = build(
        config.model, kind="real", mean=np.zeros(5), spread=np.ones(5), key=jax.random.key(0)
    )
    seen = observation(dataset, config.data, config.model)
    with run_directory.open_run(path / "run", config, resume=False) as run:
        run.save_config(config)
        run.save_model(model, seen, passes=0, step=0)
    return iwae.load(path / "run")


def content(source: str) -> bytes:
    return base64.b64decode(source.partition("base64,")[2], validate=True)


# The page


def test_the_page_is_one_closed_document(text_of_three: str) -> None:
    page = Page(text_of_three)
    assert page.open == []
    assert text_of_three.startswith("<!DOCTYPE html>")
    assert [sum(tag == t for t, _ in page.tags) for tag in ("html", "head", "body")] == [1, 1, 1]
    assert not re.search(r"https?://|<link|<script|@import|url\(", text_of_three)
    assert {"src", "href"} & {name for _, a in page.tags for name in a} == {"src"}
    for image in page.images():
        assert image["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
        assert image["alt"]


def test_its_figures_are_whole(text: str) -> None:
    kinds: list[str | tuple[int, int]] = []
    for image in Page(text).images():
        if "svg" in image["src"]:
            kinds.append(ElementTree.fromstring(content(image["src"])).tag.rpartition("}")[2])
        else:
            with Image.open(io.BytesIO(content(image["src"]))) as picture:
                picture.load()
                kinds.append(picture.size)
    cell = 8 * 8 + figures.GAP
    ten, three = figures.GAP + 10 * cell, figures.GAP + 3 * cell
    assert kinds == ["svg", (ten, ten), (ten, three), "svg"]


def test_it_prints_the_figures_of_the_evaluation(text, made) -> None:
    (evaluation,) = run_directory.read_evaluations(made[0]).values()
    kept = evaluation.to_json()
    assert kept["nll"] == made[1].nll
    expected = [
        *("tiny", "IWAE", "2", "1", "3", "test", "20"),
        f"{kept['nll']:.2f} ± {kept['nll_se']:.2f}",
        f"{kept['bits_per_dim']:.4f}",
        f"−{-kept['elbo']:.2f}",
        f"−{-kept['reconstruction']:.2f}",
        f"{kept['kl'][0]:.2f}",
        str(kept["active_units"][0]),
        "10",
        f"{kept['seconds']:.1f}",
        kept["device"],
    ]
    assert Page(text).row("tiny") == expected


def test_runs_stand_side_by_side(text_of_three: str) -> None:
    page = Page(text_of_three)
    assert page.headings == ["tiny", NASTY, "unfinished"]
    (grid,) = [i for i, (_, a) in enumerate(page.tags) if a.get("class") == "runs"]
    cards = [i for i, (tag, _) in enumerate(page.tags) if tag == "article"]
    assert len(cards) == 3
    assert grid < cards[0]
    assert "<h1>3 models of digits compared</h1>" in text_of_three


def test_only_settings_that_differ_are_in_the_table(text_of_three: str) -> None:
    page = Page(text_of_three)
    assert page.row("k") == ["k", "2", "7", "2"]
    assert page.row("learning_rate") == ["learning_rate", "0.001", "0.5", "0.001"]
    assert not [row for row in page.rows if row[0] == "epochs"]
    assert text_of_three.count("epochs = 3") == 3


def test_names_are_text_and_never_markup(text_of_three: str) -> None:
    assert "<script" not in text_of_three
    curves = content(Page(text_of_three).images()[0]["src"])
    texts = [element.text for element in ElementTree.fromstring(curves).iter()]
    assert NASTY in texts


def test_a_run_without_evaluation_says_how_to_get_one(text_of_three: str, others) -> None:
    row = Page(text_of_three).row(NASTY)
    assert row[:5] == [NASTY, "IWAE", "7", "1", "3"]
    assert row[5] == f"not evaluated; run iwae evaluate '{others[0]}'"


def test_a_run_without_a_model_has_its_curves_and_a_sentence(others: list[Path]) -> None:
    text = report.render(others[1:])
    assert Page(text).row("unfinished")[-1] == "not evaluated; there is no trained model yet"
    sentence = (
        f"{others[1]} holds no trained model yet; finish it with "
        f"<code>iwae train --out {others[1]} --resume</code>."
    )
    assert sentence in text
    (curves,) = Page(text).images()
    assert curves["alt"].startswith("Bound in nats against epochs")


def test_a_run_before_its_first_pass_has_no_curves(others: list[Path], tmp_path: Path) -> None:
    shutil.copytree(others[1], tmp_path / "new")
    (tmp_path / "new" / run_directory.METRICS).unlink()
    text = report.render([tmp_path / "new"])
    assert "<p>No epoch is completed yet.</p>" in text
    assert Page(text).images() == []


@pytest.mark.slow
def test_other_units_and_other_data_of_a_name_are_not_alike(tiny: RunConfig, tmp_path) -> None:
    """A density of x / 255 has ln 255 nats less for each value than that of x."""
    rows = np.random.default_rng(0).integers(1, 256, (200, 9))
    settings = {"likelihood": "gaussian", "epochs": 1}
    ways = (
        (rows, {"values": "real"}),
        (rows, {"binarization": "none"}),
        (256 - rows, {"binarization": "none"}),
    )
    for i, (mine, way) in enumerate(ways):
        iwae.train(override(tiny, **settings, **way), data=mine, out=tmp_path / f"{i}")
    paths = [tmp_path / f"{i}" for i in range(3)]
    entries = [report._entry(p.name, p, run_directory.read_config(p), None, None) for p in paths]
    e = {"dataset": "array", "split": "test", "n": 20, "k": 5}
    assert len({report._alike(entry, e) for entry in entries}) == 3


def test_the_lowest_nll_is_marked_among_rows_evaluated_alike() -> None:
    kinds = [(3.0, "test", 5), (2.0, "test", 5), (1.0, "test", 50), (9.0, "valid", 5)]
    line = report.Line("a", "IWAE", 1, "1", "3")
    of = lambda v, *alike: replace(line, shown={"nll": f"{v}"}, nll=v, alike=alike)
    table = [of(*kind) for kind in kinds]
    marked = report._with_best([*table, line])
    assert [line.best for line in marked] == [False, True, False, False, False]


def test_notes_are_footnotes_given_once(made: tuple[Path, Evaluation]) -> None:
    (entry,) = report._entries([made[0]], None)
    entry.evaluations[:] = [{**entry.evaluations[0], "note": note} for note in ("a", "", "b", "a")]
    table, notes = report._with_footnotes(report._lines(entry))
    assert notes == ["a", "b"]
    assert [line.footnote for line in table] == [1, 0, 2, 1]


def test_pruned_likelihoods_get_a_column(made: tuple[Path, Evaluation], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "pruned")
    forget(tmp_path / "pruned")
    file = tmp_path / "pruned" / run_directory.EVALUATION
    none = '"nll_without_inactive": null'
    file.write_text(file.read_text().replace(none, none.replace("null", "12345.678")))
    row = Page(report.render([tmp_path / "pruned"])).row("pruned")
    assert row[8] == "12,345.68"


def test_the_same_files_give_the_same_page(text: str, made) -> None:
    assert report.render([made[0]]) == text


def test_a_run_named_twice_is_shown_once_and_equal_names_get_their_folder(made, tmp_path) -> None:
    assert report._names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert len(report._entries([made[0], made[0] / ".." / "tiny"], None)) == 1
    assert report._names([tmp_path / "\x07\udc80"]) == ["��"]


def test_it_counts_the_runs_that_are_done(others: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    report.render(others[1:], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]


def test_writing_refuses_to_overwrite(others: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    report.write(others[1:], out)
    first = out.read_text()
    out.write_text("mine")
    sentence = f"{out} exists; choose another name, or give --overwrite to replace it."
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        report.write(others[1:], out)
    assert out.read_text() == "mine"
    report.write(others[1:], out, overwrite=True)
    assert out.read_text() == first


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    sentence = f"{tmp_path} is not a run directory; give a directory written by `iwae train --out`."
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        report.render([tmp_path])
    with pytest.raises(InputError, match=r"^No run was given; give at least one run directory of"):
        report.render([])


# Vectors


@pytest.mark.slow
def test_vectors_are_drawn_as_lines(vectors: TrainedModel) -> None:
    text = report.render([vectors.path])
    assert "Each line is an example, its 5 values from left to right." in text
    assert "Grey and blue: what the model saw and the reconstruction" in text
    sizes = []
    for image in Page(text).images():
        with Image.open(io.BytesIO(content(image["src"]))) as picture:
            sizes.append(picture.size)
    assert sizes == [(720, 720), (432, 72)]  # 100 samples; the 6 examples of the test split


def test_when_the_data_are_gone_only_reconstructions_are_left_out(vectors, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(vectors.path, run)
    gone = vectors.config.data.dataset.replace("rows.npy", "gone.npy")
    forget(run, override(vectors.config, dataset=gone))
    text = report.render([run])
    assert re.search(f"<p class=.soft.>[^<]*{re.escape(gone)}", text)
    assert [a["alt"] for a in Page(text).images()] == ["100 samples of run"]


# Pictures


def test_every_pixel_of_a_grid_has_its_place() -> None:
    images = np.array([[[0.0, 0.2]], [[0.4, 0.6]], [[0.8, 1.0]]])  # three images of 1 × 2
    sheet = figures.grid(images, columns=2)
    s, g = figures.CELL // 2, figures.GAP
    expected = np.full((2 * s + 3 * g, 2 * 2 * s + 3 * g), figures.SEPARATOR, np.uint8)
    for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        for j, value in enumerate(images[i, 0]):
            top, left = g + row * (s + g), g + column * (2 * s + g) + j * s
            expected[top : top + s, left : left + s] = round(255 * value)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet, expected)


def test_values_outside_0_and_1_are_mapped_from_their_common_range() -> None:
    at = figures.GAP + figures.CELL // 2 * np.arange(2)
    for images in ([[[-1.0, 0.5]], [[2.0, np.nan]]], [[[0, 150]], [[300, 100]]]):
        sheet = figures.grid(np.array(images), columns=1)
        rows = np.array([figures.GAP, 2 * figures.GAP + figures.CELL // 2])
        np.testing.assert_array_equal(sheet[np.ix_(rows, np.array(at))], [[0, 128], [255, 85]])
    flat = figures.grid(np.full((1, 2, 2), 7.0))
    assert set(np.unique(flat)) == {0, figures.SEPARATOR}


def test_three_channels_are_colours_and_others_are_averaged() -> None:
    images = np.zeros((1, 2, 2, 3))
    images[..., 0] = 1.0
    sheet = figures.grid(images)
    assert sheet.shape == (68, 68, 3)
    assert sheet[10, 10].tolist() == [255, 0, 0]
    two = figures.grid(images[..., :2])
    assert two.shape == (68, 68)
    assert two[10, 10] == 128


def test_vectors_in_a_grid_are_strips() -> None:
    sheet = figures.grid(np.linspace(0, 1, 32).reshape(2, 16))
    g = figures.GAP
    assert sheet.shape == (2 * 2 * 4 + 3 * g, 16 * 4 + 2 * g)  # 2 lines of pixels 4 wide
    np.testing.assert_array_equal(sheet[g, g:-g:4], np.rint(255 * np.arange(16) / 31))


def test_large_images_keep_their_size_and_the_default_grid_is_nearly_square() -> None:
    assert figures.grid(np.zeros((5, 70, 70))).shape == (2 * 72 + 2, 3 * 72 + 2)


@pytest.mark.parametrize("shape", [(4,), (0, 8, 8), (2, 2, 2, 2, 2)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    sentence = (
        f"An array of shape {shape} was given, but a picture needs at least one image: "
        f"[n, h, w], [n, h, w, c] or [n, d]."
    )
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        figures.grid(np.zeros(shape))


def test_a_png_holds_the_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with Image.open(io.BytesIO(figures.png(image))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_a_sheet_cuts_intensities_off_and_stretches_real_values(tiny_run: TrainedModel) -> None:
    images = np.array([[[-0.5, 0.0], [0.5, 2.0]]])
    pixels = lambda trained: np.asarray(Image.open(io.BytesIO(figures.sheet(trained, images))))
    at = figures.GAP + figures.CELL // 2 * np.arange(2)
    np.testing.assert_array_equal(pixels(tiny_run)[np.ix_(at, at)], [[0, 0], [128, 255]])
    real = replace(tiny_run, seen=replace(tiny_run.seen, kind="real"))
    np.testing.assert_array_equal(pixels(real)[np.ix_(at, at)], [[0, 51], [102, 255]])
    images = images / 100 + 0.01
    np.testing.assert_array_equal(pixels(real)[np.ix_(at, at)], [[0, 51], [102, 255]])


def test_a_reconstruction_picture_shows_intensities_over_pixels_over_means(tiny_run) -> None:
    with Image.open(io.BytesIO(figures.reconstruction_picture(tiny_run, n=4, seed=3))) as picture:
        pixels = np.asarray(picture)
    images = tiny_run.data().test[:4]
    seen, again = tiny_run.reconstruct((images / 16).reshape(4, 8, 8), seed=3)
    s, cell = 8, 64 + figures.GAP
    cells = [
        pixels[figures.GAP + r * cell :, figures.GAP + c * cell :][: 8 * s : s, : 8 * s : s]
        for r in range(3)
        for c in range(4)
    ]
    shown = np.concatenate([images.reshape(4, 8, 8) / 16, seen, again])
    np.testing.assert_array_equal(cells, np.rint(255 * shown.astype(np.float64)))
    with pytest.raises(InputError, match=r"^n = 0 was given"):
        figures.reconstruction_picture(tiny_run, n=0)


# Plots


def rows_of(epochs: int) -> list[Row]:
    return [
        {
            "pass": p,
            "step": p,
            "seconds": 1.0,
            "learning_rate": 1e-3,
            "train_bound": -9 / p,
            "valid_bound": -9.5 / p,
        }
        for p in range(1, epochs)
    ]


def words(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [e.text for e in root.iter("{http://www.w3.org/2000/svg}text") if e.text]


def test_long_training_has_a_logarithmic_axis() -> None:
    short = set(words(figures.training_curves([("a", rows_of(31))])))
    assert {"4", "8", "12"} <= short
    long = set(words(figures.training_curves([("a", rows_of(201))])))
    assert {"1", "10", "100"} <= long
    assert not {"4", "8", "12"} & long


def test_no_name_is_lost_or_typeset() -> None:
    names = ["_hidden", "$x^2$", "日本", "x" * 99]
    svg = figures.training_curves([(name, rows_of(3)) for name in names])
    assert words(svg)[-6:] == [*names[:3], "x" * 43 + "…", "validation split", "training split"]
    assert figures.INK.encode() not in svg


def test_the_histogram_says_how_many_units_are_active() -> None:
    values = [[0.5, 0.02, 0.005, -1e-4, 50.0], [0.0, float("nan")]]
    svg = figures.activity_histogram([("a", values), ("b", [[1.0]])])
    titles = [word for word in words(svg) if "layer" in word]
    assert titles == [
        "a, layer 1: 3 of 5 units active",
        "a, layer 2: 0 of 2 units active",
        "b, layer 1: 1 of 1 units active",
    ]
    assert svg == figures.activity_histogram([("a", values), ("b", [[1.0]])])
