"""Tables in files: those of the package, a researcher's own, and files that cannot be read."""

import json
import re
from pathlib import Path

import pytest

from iwae.cli.app import main
from iwae.config.io import recipe
from iwae.errors import InputError
from iwae.experiments import jobs, plan, records, reproduce, results, tables
from iwae.experiments.measured import Entry, Result
from iwae.experiments.papers import TABLES
from iwae.experiments.tables import PUBLISHED
from refusals import refused

OWN = """
about = "VAE and IWAE on digits"
source = "Mine 2026"
recipe = "smoke"
measures = ["gap"]

[nll]
columns = ["vae-5", "iwae-5", "iwae-50"]
digits = ["30.5 ± 0.25", "29.5 (3)", ""]
"digits/2" = ["30.25", "29.0 (3+1)", 28.5]

[further]
"digits/vae-5" = { "test − train" = 0.5 }

[settings]
dataset = "digits"

[rows]
digits = { hidden = [[16]] }
"digits/2" = { layers = 2, hidden = [[16], [8]], latents = [4, 2] }

[columns]
vae-5 = { objective = "vae", k = 5, unset = ["backward_draws"] }
iwae-5 = { objective = "iwae", k = 5, against = "vae-5" }
iwae-50 = { objective = "iwae", k = 50 }
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    return path


def test_every_file_of_the_package_is_listed_once() -> None:
    assert sorted(TABLES) == sorted(path.stem for path in PUBLISHED.glob("*.toml"))


def test_a_file_becomes_cells(own: Path) -> None:
    table = tables.read(own)
    assert (table.name, table.recipe, table.seeds) == ("mine", "smoke", (0,))
    assert [cell.name for cell in table.cells] == [
        "digits/vae-5",
        "digits/iwae-5",
        "digits/2/vae-5",
        "digits/2/iwae-5",
        "digits/2/iwae-50",
    ]
    vae, iwae, _, two, last = table.cells
    assert vae.published == (30.5, 0.25)
    assert (iwae.units, two.units, two.against) == ("3", "3+1", "digits/2/vae-5")
    assert last.published is not None
    assert last.published[0] == 28.5
    assert vae.settings == {
        "dataset": "digits",
        "hidden": ((16,),),
        "backward_draws": None,
        "objective": "vae",
        "k": 5,
    }
    assert (vae.measures, vae.theirs("test − train"), iwae.further) == (("gap",), "0.50", {})


def test_a_table_is_like_another(own: Path) -> None:
    other = own.with_name("gap.toml")
    other.write_text('about = "a"\nsource = "b"\nlike = "mine.toml"\nonly = ["*/iwae-*"]\n')
    table = tables.read(other)
    assert [cell.name for cell in table.cells] == [
        "digits/iwae-5",
        "digits/2/iwae-5",
        "digits/2/iwae-50",
    ]
    assert {cell.against for cell in table.cells} == {None}, "what it is held against is left out"


@pytest.mark.parametrize(
    ("here", "instead", "said"),
    [
        ('"29.5 (3)"', '"29,5"', "nll.digits has '29,5', which is not of the form 84.78 ± "),
        (', ""]', "]", "nll.digits has 2 figures under 3 columns"),
        ('against = "vae-5"', 'against = "vae-6"', "digits/iwae-5 refers to digits/vae-6"),
        ('iwae-50 = {', "other = {", "columns lacks iwae-50"),
        ('dataset = "digits"\n', "", "rows.digits lacks dataset"),
        ('about = "VAE and IWAE on digits"\n', "", "it lacks about"),
        ('recipe = "smoke"', 'recipes = "smoke"', "recipes is an unknown entry"),
        ("digits = { hidden", "digit = { hidden", "rows lacks digits"),
        ('["backward_draws"]', '"backward_draws"', "is 'backward_draws', not a list of names"),
        ("k = 50 }", "kk = 50 }", "digits/2/iwae-50 with invalid settings: There is no setting"),
        ('["gap"]', '["gaps"]', "measure 'gaps', which does not exist; did you mean 'gap'?"),
        ("about =", "about", "is not valid TOML"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_message(
    own: Path, here: str, instead: str, said: str
) -> None:
    own.write_text(OWN.replace(here, instead))
    with pytest.raises(InputError) as error:
        tables.read(own)
    message = str(error.value)
    assert message.startswith(str(own))
    assert said in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_table_of_ones_own_is_listed_rendered_recorded_and_on_the_page(
    own: Path, tmp_path: Path, capsys
) -> None:
    out, record = tmp_path / "runs", tmp_path / "records" / "mine.json"
    record.parent.mkdir()
    form = ["reproduce", str(own), "--out", str(out)]
    main([*form, "--list"])
    said = capsys.readouterr().out
    assert "digits/2/iwae-50" in said
    assert "30.50 ± 0.25" in said
    start = recipe("smoke")
    (job,) = plan.plan(tables.read(own), plan.Choice(k=9), start, start).jobs["digits/iwae-5"]
    entry: Entry = {"seed": 0, "passes": 1, "k": 9, "n": 50, "nll": 29.75, "nll_se": 0.5}
    entry |= {"note": "", "active_units": [3], "device": "cpu", "iwae": "0.3.0"}
    gap = {"gap": {"test − train": (0.25, None)}}
    jobs.write_result(job, out, Result(entry, gap))
    main([*form, "--k", "9", "--render", "--record", str(record)])
    said = capsys.readouterr().out
    assert "29.75" in said
    (cell,) = json.loads(record.read_text())["cells"]
    assert (cell["name"], cell["published"], cell["runs"]) == (
        "digits/iwae-5",
        [29.5, None],
        [entry],
    )
    main([*form, "--k", "9", "--render", "--record", str(record)])
    assert isinstance(records.read(record), records.TableRecord)
    page = results.page(record.parent)
    assert "## mine: a table of one's own\n\nPublished: Mine 2026." in page
    assert "| `digits/iwae-5` | 29.50 (3) | 29.75 ± 0.50 (3) | +0.25 (+0.5 s.e.) |" in page


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "tables.md").read_text("utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    table = tables.read(path)
    assert [cell.name for cell in table.cells if cell.against] == ["digits/iwae-5", "mine/2/iwae-5"]
    assert len(table.cells) == 5


def test_a_file_is_not_called_like_an_experiment_of_the_package(own: Path) -> None:
    other = own.rename(own.with_name("ring.toml"))
    with refused(f"{other} was given, but ring is an experiment of this package; rename the file."):
        reproduce.find(str(other))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with refused(f"The configuration {path} cannot be read: No such file or directory."):
        tables.read(path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('against = "vae-5"', 'after = "iwae-5"', "after goes in a circle"),
        ('recipe = "smoke"', 'recipe = "smoke"\nonly = ["zz"]', "only chooses among"),
        ('recipe = "smoke"', 'recipe = "smoke"\nlike = "mine.toml"', "like goes in a circle"),
        ('against = "vae-5"', 'against = "iwae-5"', "is held against itself"),
        ('"digits/vae-5" = {', '"digts/*" = {', "matches none of its cells"),
    ],
)
def test_a_table_that_means_nothing_is_refused(own: Path, before, after, message) -> None:
    own.write_text(OWN.replace(before, after, 1))
    with pytest.raises(InputError, match=message):
        tables.read(own)


def test_tables_that_are_like_one_another_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        like = f'about = "x"\nsource = "x"\nlike = "{other}.toml"\n'
        (tmp_path / f"{name}.toml").write_text(like)
    with pytest.raises(InputError, match="like goes in a circle"):
        tables.read(tmp_path / "a.toml")
