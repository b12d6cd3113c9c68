"""What is kept in files is believed only whole: damage, edits and files of others are refused."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import iwae
from early import forget
from iwae import runs
from iwae.cli.app import main
from iwae.config.io import override
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.trained import Evaluation, TrainedModel
from iwae.experiments import cost, jobs, records, results
from iwae.experiments.measured import LIKELIHOODS, Entry, Result
from iwae.experiments.papers import EXPERIMENTS
from iwae.experiments.plan import jobs_of, placed
from iwae.experiments.records import TableRecord
from iwae.experiments.rows import rows as rows_of
from iwae.experiments.tables import Cell
from iwae.models.likelihoods import Numpyro
from iwae.plotting import report
from iwae.storage import checkpoint, evaluations, run_directory
from refusals import refused
from thinned import thinned

GOLDEN = Path(__file__).parent / "golden"
"""Runs of 0.2.3: one finished, one interrupted within its second epoch, and the files of a cell."""

FIXED = ("nll", "nll_se", "bits_per_dim", "elbo", "reconstruction", "kl", "activity")


def tensors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def header(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["header"])


@pytest.fixture(scope="session")
def evaluated(tiny_run: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation, in a folder of this file's own."""
    path = tmp_path_factory.mktemp("persistence") / "run"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns(run_directory.EVALUATION))
    iwae.evaluate(path, k=5, limit=20)
    return path


@pytest.fixture(scope="session")
def another(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same shape, with another seed."""
    path = tmp_path_factory.mktemp("another") / "run"
    iwae.train(override(tiny, seed=1), out=path)
    iwae.evaluate(path, k=5, limit=20)
    return path


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


# Runs of early versions


def test_a_run_of_an_early_version_gives_the_same_numbers(tmp_path: Path) -> None:
    run = Path(shutil.copytree(GOLDEN / "finished", tmp_path / "run"))
    before = run_directory.read_evaluations(run)["test k=20 n=50 seed=0 passes=3"].to_json()
    trained = iwae.load(run)
    again = trained.evaluate(k=20, limit=50).to_json()
    for name in FIXED:
        np.testing.assert_allclose(again[name], before[name], rtol=1e-5, err_msg=name)
    assert again["active_units"] == before["active_units"]
    assert again["note"] == run_directory.UNVERIFIED
    assert [row["pass"] for row in run_directory.read_metrics(run)] == [1, 2, 3]
    assert runs.training_seconds(trained) == 2.248
    assert runs.made_with(trained) == ["cpu, iwae 0.2.3"]


def test_a_run_of_an_early_version_goes_on_to_the_same_model(
    tiny: RunConfig, tiny_run: TrainedModel, tmp_path: Path
) -> None:
    """To the same bytes, where this machine makes those of the whole run."""
    run, whole = tmp_path / "run", GOLDEN / "finished"
    shutil.copytree(GOLDEN / "begun", run)
    assert 64 < tensors(run / run_directory.CHECKPOINT)["[0].step"] < 128
    trained = iwae.train(tiny, out=run, resume=True)
    assert trained.passes == 3
    assert trained.seen.note == iwae.load(run).seen.note == run_directory.UNVERIFIED
    for name in (run_directory.MODEL, run_directory.CHECKPOINT):
        ours, theirs, fresh = (tensors(p / name) for p in (run, whole, tiny_run.path))
        assert ours.keys() == theirs.keys()
        alike = all(theirs[n].tobytes() == fresh[n].tobytes() for n in theirs)
        for n in ours:
            np.testing.assert_allclose(ours[n], theirs[n], rtol=1e-3, atol=1e-5)
            assert not alike or ours[n].tobytes() == theirs[n].tobytes()
    assert checkpoint.read(run / run_directory.MODEL).verified
    again = iwae.train(tiny, out=run, resume=True)
    assert again.seen.note == run_directory.UNVERIFIED, "of where it began"


@pytest.mark.slow
def test_counts_of_an_early_version_keep_their_parameters(tmp_path: Path) -> None:
    """Whose decoder gave the parameters of Poisson as they are, where it now does in units."""
    run = Path(shutil.copytree(GOLDEN / "counts", tmp_path / "run"))
    x = np.load(run / "x.npy").astype(np.float32)
    expected = json.loads((run / "expected.json").read_text())
    trained = iwae.load(run, data=x)
    np.testing.assert_allclose(trained.score(x[:5], k=4), expected["score"], rtol=1e-4)
    np.testing.assert_allclose(trained.sample(3, seed=1), expected["sample"], rtol=1e-4)
    trained.save(tmp_path / "copy")
    score = iwae.load(tmp_path / "copy").score(x[:5], k=4)
    np.testing.assert_allclose(score, expected["score"], rtol=1e-4)
    longer = iwae.train(data=x, out=run, resume=True, epochs=3)
    np.testing.assert_allclose(longer.score(x[:5], k=4), expected["resumed"], rtol=1e-3)
    begun = override(run_directory.read_config(run), start_from=str(run), epochs=1)
    likelihood = iwae.train(begun, data=x).model.likelihood
    assert isinstance(likelihood, Numpyro)
    assert likelihood.start is None


def test_a_cell_of_an_early_version_is_finished(tiny: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "cells", tmp_path / "cells")
    task = jobs.Job(override(tiny, epochs=1), k=20, limit=50, measures=("gap",))
    assert jobs.state(task, tmp_path) == "done"
    found = jobs.recorded(task, tmp_path)
    assert (found.nll, found.epochs) == (27.395357818603514, 1)
    assert found.figures["gap"]["train NLL"] == (27.23534839630127, 0.5309571027755737)
    assert jobs.log_likelihoods(task, tmp_path).mean() == pytest.approx(-found.nll)


# Damage, edits, and files of another run


def _bits(content: bytes, every: int) -> Iterator[bytes]:
    """The content with one bit flipped: of every so many bytes, and of the whole header."""
    ends = 8 + int.from_bytes(content[:8], "little")
    for at in {*range(0, ends, 13), *range(ends, len(content), every), len(content) - 1}:
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        yield bytes(damaged)


@pytest.mark.parametrize("name", [run_directory.MODEL, run_directory.CHECKPOINT])
def test_a_flipped_bit_is_never_believed(run: Path, name: str) -> None:
    file = run / name
    content = file.read_bytes()
    for damaged in _bits(content, every=97):
        file.write_bytes(damaged)
        with pytest.raises(InputError):
            checkpoint.read(file)
    for cut in (0, 4, 100, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(InputError, match="is damaged"):
            checkpoint.read(file)


def test_a_model_that_is_damaged_is_neither_evaluated_nor_begun_with(run, tiny) -> None:
    content = bytearray((run / run_directory.MODEL).read_bytes())
    content[-10] ^= 1
    (run / run_directory.MODEL).write_bytes(content)
    sentence = (
        f"{run / run_directory.MODEL} is damaged (its digest does not match its content); restore "
        f"it from a copy or train again."
    )
    with refused(sentence):
        iwae.evaluate(run, k=5)
    with refused(sentence):
        iwae.train(tiny, start_from=str(run))


@pytest.mark.parametrize(
    "name", [run_directory.MODEL, run_directory.CHECKPOINT, run_directory.CONFIG]
)
def test_the_file_of_another_run_is_refused(name, run, another, tiny) -> None:
    shutil.copy(another / name, run / name)
    if name == run_directory.CHECKPOINT:
        with pytest.raises(InputError, match="belongs to another run"):
            iwae.train(override(tiny, epochs=5), out=run, resume=True)
        return
    with pytest.raises(InputError, match="belongs to another run"):
        iwae.load(run)
    if name == run_directory.CONFIG:
        with pytest.raises(InputError, match=r"was started on other|belongs to another"):
            iwae.train(out=run, resume=True)


def test_the_model_of_another_run_is_made_again_from_the_checkpoint(run, another, tiny) -> None:
    whole = (run / run_directory.MODEL).read_bytes()
    shutil.copy(another / run_directory.MODEL, run / run_directory.MODEL)
    iwae.train(tiny, out=run, resume=True)
    assert (run / run_directory.MODEL).read_bytes() == whole


@pytest.mark.slow
def test_the_same_settings_on_other_data_are_another_run(tiny: RunConfig, tmp_path: Path) -> None:
    """Also where only the test split is another."""
    rows = np.random.default_rng(0).random((60, 64)).astype(np.float32)
    a: Any = {"train": rows[:40], "valid": rows[40:50], "test": rows[50:]}
    b = a | {"test": 1 - rows[50:]}
    for name, data in {"a": a, "b": b}.items():
        iwae.train(override(tiny, epochs=1), data=data, out=tmp_path / name)
    with pytest.raises(InputError, match="was started on other examples"):
        iwae.train(override(tiny, epochs=2), data=b, out=tmp_path / "a", resume=True)
    shutil.copy(tmp_path / "b" / run_directory.MODEL, tmp_path / "a" / run_directory.MODEL)
    with pytest.raises(InputError, match="belongs to another run"):
        iwae.load(tmp_path / "a", data=a)


def _configurations(text: str) -> Iterator[str]:
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        yield "".join(lines[:i])
        yield "".join([*lines[:i], *lines[i + 1 :]])
        if " = " in line:
            yield "".join([*lines[:i], line.replace(" = ", " = 1"), *lines[i + 1 :]])
    yield text.replace("seed = 0", "seed = 1")
    yield text + "\n[x]\n"
    yield from (text[:n] for n in range(0, len(text), 9))


def test_a_configuration_that_was_cut_or_edited_is_refused(run: Path) -> None:
    file = run / run_directory.CONFIG
    text = file.read_text()
    assert text.startswith("# iwae: run ")
    for edited in {*_configurations(text)} - {text}:
        file.write_text(edited)
        if edited.strip() == text.strip():
            continue
        with pytest.raises(InputError):
            run_directory.read_config(run)
    file.write_text(text.replace("seed = 0", "seed = 1"))
    with refused(
        f"{file} is damaged or was edited (its digest does not match its settings); restore it as "
        f"`iwae train` wrote it, or train with other settings into another --out."
    ):
        iwae.evaluate(run, k=5)
    for name in (run_directory.MODEL, run_directory.CHECKPOINT):  # also where nothing else says so
        (run / name).unlink()
    for cut in range(0, len(text), 11):
        file.write_text(text[:cut])
        with pytest.raises(InputError):
            run_directory.read_config(run)


def test_a_configuration_of_an_early_version_that_was_cut_is_refused(tmp_path: Path) -> None:
    run = Path(shutil.copytree(GOLDEN / "finished", tmp_path / "run"))
    text = (run / run_directory.CONFIG).read_text()
    for cut in text.splitlines(keepends=True)[:-1]:
        (run / run_directory.CONFIG).write_text(text[: text.index(cut) + len(cut)])
        with pytest.raises(InputError):
            run_directory.read_config(run)


def test_a_longer_run_is_the_same_run(run: Path, tiny: RunConfig) -> None:
    """Its settings are written anew; and it is, whenever it is saved and wherever its data lie."""
    moved = override(tiny, epochs=4, checkpoint_every=2, minutes=50.0)
    before = run_directory.read_config_and_identity(run)[1]
    assert iwae.train(moved, out=run, resume=True).passes == 4
    assert run_directory.read_config_and_identity(run) == (moved, before)
    assert iwae.load(run).passes == 4
    seen = iwae.load(run).seen
    same = [override(tiny, dataset="/x/y.npy"), override(tiny, values="intensity"), moved]
    assert {run_directory.identity(config, seen) for config in same} == {before}
    others = [override(tiny, **o) for o in ({"seed": 1}, {"patience": 3}, {"schedule": "cosine"})]
    identities = {run_directory.identity(config, seen) for config in (tiny, *others)}
    identities |= {run_directory.identity(tiny, replace(seen, digest="another")), before}
    assert len(identities) == 5
    cosine = override(tiny, schedule="cosine")
    assert run_directory.identity(cosine, seen) != run_directory.identity(
        override(cosine, epochs=9), seen
    )


def test_evaluations_of_another_run_are_not_its_own(run: Path, another: Path) -> None:
    shutil.copy(another / run_directory.EVALUATION, run / run_directory.EVALUATION)
    file = run / run_directory.EVALUATION
    sentence = f"{file} holds evaluations of another run; delete it and evaluate again."
    with refused(sentence):
        iwae.evaluate(run, k=5)
    page = report.render([run])
    assert sentence in page
    ours, theirs = (run_directory.read_evaluations(p) for p in (another, another))
    assert ours == theirs
    (entry,) = ours.values()
    assert f"{entry.nll:.2f} ±" not in page


def test_evaluations_of_another_model_are_not_kept(run: Path) -> None:
    """Early versions do not say whose they are, but not everything can be of this run."""
    trained = iwae.load(run)
    before = (run / run_directory.EVALUATION).read_text()
    shifted = replace(trained, model=_shifted(trained.model))
    assert iwae.evaluate(shifted, k=5, limit=20).nll != iwae.evaluate(trained, k=5, limit=20).nll
    kept = run_directory.read_evaluations(run)
    assert {n: e.to_json() for n, e in kept.items()} == _read_as(before, run)
    forget(run)
    entry = json.loads((run / run_directory.EVALUATION).read_text())
    for other in ({"activity": [[0.5] * 7]}, {"dataset": "mnist"}, {"passes": 9}):
        changed = {name: e | other for name, e in entry.items()}
        (run / run_directory.EVALUATION).write_text(json.dumps(changed))
        with pytest.raises(InputError, match="holds evaluations of another run"):
            run_directory.read_evaluations(run)


def _shifted(model: Any) -> Any:
    import equinox as eqx
    import jax

    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda a: a + 0.1, arrays), static)


def _read_as(text: str, run: Path) -> dict[str, Any]:
    kept = json.loads(text)
    found = run_directory.read_evaluations(run)
    assert found.keys() == kept.keys()
    plain = {n: {f: v for f, v in e.items() if f not in ("of", "digest")} for n, e in kept.items()}
    return {n: e | {"seconds": found[n].seconds} for n, e in plain.items()}


def test_lost_rows_of_metrics_are_missed(run: Path, tiny: RunConfig) -> None:
    file = run / run_directory.METRICS
    first, second, third = file.read_text().splitlines(keepends=True)
    moved = second.replace('"train_bound": -', '"train_bound": -1')
    for rows in ("", first, first + second, first + third, second + third, first + moved + third):
        file.write_text(rows)
        with pytest.raises(InputError, match=rf"^{re.escape(str(file))} is damaged \("):
            run_directory.read_metrics(run)
        with pytest.raises(InputError, match="is damaged"):
            iwae.train(override(tiny, epochs=5), out=run, resume=True)
        with pytest.raises(InputError, match="is damaged"):
            runs.training_seconds(iwae.load(run))
    assert "metrics.jsonl is damaged" in report.render([run])
    file.unlink()
    with pytest.raises(InputError, match="lacks the row of epoch 1"):
        run_directory.read_metrics(run)
    (run / run_directory.CHECKPOINT).unlink()
    with refused(
        f"{file} has rows for 0 of the model's 3 epochs, so their training time is unknown; "
        f"restore it from a copy."
    ):
        runs.training_seconds(iwae.load(run))


# Every field of every file


ODD: tuple[object, ...] = (None, "text", -1, 1.5, [], {"a": 1}, 10**400)


def mutated(content: Any) -> Iterator[Any]:
    """The content of JSON with one entry missing, renamed, doubled or of another kind."""
    yield from ODD
    for place in _places(content):
        for odd in ODD:
            change: Any = lambda at, key, odd=odd: at.__setitem__(key, odd)
            yield _changed(content, place, change)
        yield _changed(content, place, lambda at, key: at.__delitem__(key))
        if isinstance(place[-1], str):
            yield _changed(content, place, lambda at, key: at.__setitem__(f"{key}?", at.pop(key)))
        else:
            yield _changed(content, place, lambda at, key: at.insert(key, at[key]))


def _places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry; of a list to its first three."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:3])
    for key, value in items:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*above, key))


def _changed(content: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    changed = at = deepcopy(content)
    for key in place[:-1]:
        at = at[key]
    change(at, place[-1])
    return changed


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """(what is read, "") or (None, the sentence)."""
    try:
        return read(), ""
    except InputError as error:
        return None, str(error)


def check(file: Path, read: Callable[[], Any], *, sealed: bool) -> None:
    """Each mutation is refused by a sentence with the file's name, or makes no difference where it
    could be that of an early version; a sealed one is never believed."""
    whole = json.loads(file.read_text())
    before = read()
    count = 0
    for content in mutated(whole):
        file.write_text(json.dumps(content))
        count += 1
        found, said = outcome(read)
        if said:
            assert file.name.partition(".")[0] in said
        else:
            assert not sealed or found == before, content
    assert count > 30


@pytest.mark.parametrize("sealed", thinned([True, False], True), ids=["sealed", "early"])
@pytest.mark.slow
def test_every_field_of_evaluations_is_checked(run: Path, sealed: bool) -> None:
    if not sealed:
        forget(run)
    config = run_directory.read_config(run)

    def read() -> list[Any]:
        kept: list[Mapping[str, Any]] = [
            e.to_json() for e in run_directory.read_evaluations(run).values()
        ]
        report._lines(report.Entry("run", run, config, [], kept, None, ""))
        assert all(report.units_in_words(e["active_units"]) for e in kept)
        return kept

    file = run / run_directory.EVALUATION
    whole = json.loads(file.read_text())
    (name,) = whole
    before = read()
    for content in mutated(whole[name]):
        file.write_text(json.dumps({name: content}))
        found, said = outcome(read)
        if said:
            assert said.startswith(f"{file} ")
        else:
            assert not sealed or found == before
    for content in ODD:
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match="is damaged"):
            read()
    for number in ("NaN", "Infinity", "1e999"):
        file.write_text(re.sub(r'"nll": [\d.]+', f'"nll": {number}', json.dumps(whole)))
        with refused(f"{file} is damaged; delete it and evaluate again."):
            read()


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "early"])
def test_every_field_of_metrics_is_checked(run: Path, sealed: bool) -> None:
    if not sealed:
        forget(run)
    file = run / run_directory.METRICS
    first, second, third = map(json.loads, file.read_text().splitlines())
    before = run_directory.read_metrics(run)
    for row in mutated(second):
        file.write_text("".join(f"{json.dumps(r)}\n" for r in (first, row, third)))
        rows, said = outcome(lambda: run_directory.read_metrics(run))
        if said:
            assert str(file) in said
        else:
            assert not sealed or rows == before
            assert max(row["pass"] for row in rows) == 3
            assert all(float(row["train_bound"]) and float(row["seconds"]) for row in rows)


@pytest.mark.parametrize("name", [run_directory.MODEL, run_directory.CHECKPOINT])
def test_every_field_of_a_header_is_checked(name: str, tmp_path: Path) -> None:
    """Of early versions, whose headers have no digest."""
    run = Path(shutil.copytree(GOLDEN / "finished", tmp_path / "run"))
    read = {
        run_directory.MODEL: run_directory.read_model,
        run_directory.CHECKPOINT: run_directory.read_progress,
    }[name]
    file, arrays = run / name, {"x": np.zeros(2)}
    for content in mutated(header(file)):
        file.write_bytes(safetensors.numpy.save(arrays, {"header": json.dumps(content)}))
        _, said = outcome(lambda: read(run))
        assert not said or f"{file} is damaged (" in said
    for text in ("", "{", "[" * 10**5, "\x00"):
        file.write_bytes(safetensors.numpy.save(arrays, {"header": text}))
        with pytest.raises(InputError, match="is damaged"):
            read(run)


@pytest.fixture
def task(tiny: RunConfig, tmp_path: Path) -> jobs.Job:
    """A cell that is finished, as an early version wrote it, in tmp_path."""
    shutil.copytree(GOLDEN / "cells", tmp_path / "cells")
    return jobs.Job(override(tiny, epochs=1), k=20, limit=50, measures=("gap",))


def _seal(task: jobs.Job, out: Path) -> None:
    """Write the files of a cell anew."""
    result = replace(jobs.recorded(task, out), log_likelihoods=jobs.log_likelihoods(task, out))
    for file in jobs.place(task, out).iterdir():
        file.unlink()
    jobs.write_result(task, out, result)
    assert jobs.recorded(task, out) == result
    np.testing.assert_array_equal(jobs.log_likelihoods(task, out), result.log_likelihoods)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "early"])
@pytest.mark.parametrize("part", ["", "-gap", "-log_likelihoods"])
def test_every_field_of_a_cell_is_checked(task, part: str, sealed: bool, tmp_path: Path) -> None:
    if sealed:
        _seal(task, tmp_path)
    cell = Cell("digits/1/iwae-2", {"dataset": "digits"})

    def read() -> Any:
        (row,) = rows_of([cell], {cell.name: [task]}, tmp_path)
        if row.failures:
            raise InputError(row.failures[0])
        records.of_table(EXPERIMENTS["table1"], task.config, [row])
        return [row.nll, row.active_units, row.figures] if row.results else None

    check(jobs.place(task, tmp_path) / f"L_20-of-50{part}.json", read, sealed=sealed)


def test_the_file_of_another_k_is_not_taken_for_this_one(task, tmp_path: Path) -> None:
    _seal(task, tmp_path)
    at = jobs.place(task, tmp_path)
    other = replace(task, limit=40)
    for part in ("", "-gap", "-log_likelihoods"):
        shutil.copy(at / f"L_20-of-50{part}.json", at / f"L_20-of-40{part}.json")
    file = at / "L_20-of-40.json"
    with refused(f"{file} is damaged; delete it, and the same command writes it again."):
        jobs.recorded(other, tmp_path)
    for part in ("gap", LIKELIHOODS):
        with pytest.raises(InputError, match="is damaged"):
            jobs.measured(other, tmp_path, part)


def test_a_record_whose_figure_is_not_that_of_its_runs_is_damaged(tmp_path: Path) -> None:
    source = next((GOLDEN.parents[1] / "results").rglob("table1-*.json"))
    record = json.loads(source.read_text())
    record["cells"][0]["nll"][0] -= 1
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is damaged"):
        records.read(tmp_path / "r.json")


def test_a_damaged_cell_leaves_the_others_in_the_table(tiny, task, tmp_path, capsys) -> None:
    file = jobs.place(task, tmp_path) / "L_20-of-50.json"
    whole = json.loads(file.read_text())
    other = replace(task, k=21, measures=())
    (jobs.place(task, tmp_path) / "L_21-of-50.json").write_text(json.dumps(whole | {"k": 21}))
    file.write_text(json.dumps({n: v for n, v in whole.items() if n != "nll_se"}))
    both = [Cell(name, {"dataset": "digits"}) for name in ("damaged", "whole")]
    tasks = {"damaged": [task], "whole": [other]}
    damaged, fine = rows_of(both, tasks, tmp_path)
    sentence = f"{file} is damaged; delete it, and the same command writes it again."
    assert (damaged.state, damaged.results, damaged.failures) == ("damaged", [], [sentence])
    assert (fine.state, fine.nll[0]) == ("done", whole["nll"])
    assert jobs.state(task, tmp_path) == "damaged"
    assert jobs.attempt(task, tmp_path, None, None) == jobs.Failure(sentence)
    assert cost.estimate([task, other], tmp_path) == {}
    shutil.copy(jobs.place(other, tmp_path) / "L_21-of-50.json", file)  # of another K
    assert jobs.state(task, tmp_path) == "damaged"


def test_a_table_is_printed_beside_the_sentence_of_a_damaged_cell(tmp_path: Path, capsys) -> None:
    def form(*more: str) -> list[str]:
        return ["reproduce", "table1", "--recipe", "smoke", "--cells", "*/1/*ae-5", *more]

    start = iwae.config.io.recipe("smoke")
    cells = placed(EXPERIMENTS["table1"], (), "digits")
    tasks = jobs_of(cells, start, start, seeds=(0,), k=100, limit=None)
    for name, nll in {"vae": 9.5, "iwae": 8.5}.items():
        (task,) = tasks[f"digits/1/{name}-5"]
        entry: Entry = {"seed": 0, "passes": 1, "k": 100, "n": 50, "nll": nll, "nll_se": 1.0}
        entry |= {"active_units": [3], "device": "cpu", "note": ""}
        jobs.write_result(task, tmp_path, Result(entry))
    files = sorted(tmp_path.rglob("L_100.json"))
    assert len(files) == 2
    content = json.loads(files[0].read_text())
    files[0].write_text(json.dumps(content | {"nll": "low"}))
    with pytest.raises(SystemExit) as left:
        main(form("--out", str(tmp_path), "--render"))
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.err == (
        f"iwae: {files[0]} is damaged; delete it, and the same command writes it again.\n"
    )
    assert "damaged" in said.out
    assert "9.50 ± 1.00" in said.out or "8.50 ± 1.00" in said.out


def test_a_table_is_printed_where_its_record_cannot_be_written(tmp_path, capsys, monkeypatch):
    def full(path: Path, content: object) -> None:
        raise InputError(f"{path} could not be written.")

    start = iwae.config.io.recipe("smoke")
    cells = placed(EXPERIMENTS["table1"], (), "digits")
    tasks = jobs_of(cells, start, start, seeds=(0,), k=100, limit=None)
    result = {"passes": 1, "k": 100, "n": 50, "nll": 9.5, "nll_se": 1.0, "active_units": [3]}
    (task,) = tasks["digits/1/vae-5"]
    jobs.write_result(task, tmp_path, Result(result | {"seed": 0, "device": "cpu", "note": ""}))
    monkeypatch.setattr("iwae._utils.files.write_atomic", full)
    form = ["reproduce", "table1", "--recipe", "smoke", "--cells", "*/1/vae-5", "--render"]
    with pytest.raises(SystemExit) as left:
        main([*form, "--out", str(tmp_path), "--record", str(tmp_path / "record.json")])
    said = capsys.readouterr()
    assert left.value.code == 2
    assert "9.50 ± 1.00" in said.out
    assert said.err == f"iwae: {tmp_path / 'record.json'} could not be written.\n"


TABLE = {
    "experiment": "table1",
    "source": "x",
    "iwae": "0.2.3",
    "jax": "0.10",
    "device": "cpu",
    "settings": {"optimizer": "adam", "learning_rate": 0.1},
    "cells": [
        {
            "name": "mnist/1/iwae-5",
            "settings": {"dataset": "mnist"},
            "nll": [84.0, 0.25],
            "difference": [-1.0, None],
            "reference": [[0, 85.0]],
            "against": "mnist/1/vae-5",
            "after": None,
            "published": [85.0, None],
            "published_units": "21",
            "figures": {"train NLL": [83.5, 0.25]},
            "runs": [
                {
                    "seed": 0,
                    "passes": 3,
                    "k": 9,
                    "n": 50,
                    "nll": 84.0,
                    "nll_se": 0.25,
                    "elbo": -86.0,
                    "active_units": [20],
                    "training_seconds": 10.5,
                    "made_with": ["cpu, iwae 0.2.3"],
                    "device": "cpu",
                    "iwae": "0.2.3",
                    "jax": "0.10",
                    "note": "",
                }
            ],
        }
    ],
}
RING = {
    "experiment": "ring",
    "iwae": "0.2.3",
    "jax": "0.10",
    "device": "cpu",
    "settings": {},
    "measured": {"k": 5, "n": 9, "nll": [0.5, 0.1], "2": {"k": 3, "nll": [1.0, None]}},
}
HIWAE = {
    "experiment": "hiwae",
    "source": "x",
    "iwae": "0.2.3",
    "jax": "0.10",
    "device": "cpu",
    "seeds": [0],
    "settings": {"proposal_weights": "uniform", "epochs": 3},
    "rows": [
        {
            "dataset": "ring",
            "k": 2,
            "name": "IWAE",
            "bound": [-1.0, 0.1],
            "nll": None,
            "covariance": [0.1, 0.1],
            "variance": [1.0, 0.1],
            "log_variance": [6.0, 0.1],
            "seconds": [1.0],
        }
    ],
}


@pytest.mark.parametrize("record", [TABLE, RING, HIWAE], ids=lambda r: r["experiment"])
def test_every_field_of_a_record_is_checked(record: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))

    def read() -> str:
        return results.page(tmp_path)

    def join() -> Any:
        there = records.joinable(file, EXPERIMENTS["table1"], RunConfig())
        return records.joined(there, TableRecord.of_json(deepcopy(TABLE)), [])

    check(file, read, sealed=False)
    if record is TABLE:
        whole = {k: v for k, v in TABLE.items() if k != "settings"}
        settings = records._shared(EXPERIMENTS["table1"], RunConfig())
        file.write_text(json.dumps(whole | {"settings": settings}))
        check(file, join, sealed=False)


def test_records_in_the_repository_are_read() -> None:
    folder = Path(__file__).parent.parent / "results" / "reproduced"
    assert all(records.read(path) is not None for path in folder.glob("*.json"))
    assert results.page(folder)


# Figures that are no numbers


def test_an_nll_that_is_no_number_is_an_error(run: Path, capsys, monkeypatch) -> None:
    values = np.array([-3.0, -np.inf, np.nan], np.float32)
    monkeypatch.setattr(TrainedModel, "log_likelihoods", lambda *_, **__: values)
    before = (run / run_directory.EVALUATION).read_text()
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit) as left:
            main(["evaluate", str(run), "--k", "6", *more])
        assert left.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == (
            "iwae: L_6 is -inf for 2 of 3 examples, the first of them number 1, so the NLL is not "
            "finite; check that the examples fit the likelihood, and that the model's parameters "
            "are finite.\n"
        )
    assert (run / run_directory.EVALUATION).read_text() == before


def test_json_has_no_infinities(run: Path, capsys, monkeypatch) -> None:
    """The ELBO of a draw outside of the support is −∞ where L_K is finite."""
    terms = np.array([-np.inf, np.nan])
    monkeypatch.setattr(TrainedModel, "_terms", lambda *_: terms)
    main(["evaluate", str(run), "--k", "5", "--limit", "20", "--json"])
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (printed["elbo"], printed["reconstruction"], printed["kl"]) == (None, None, [None])
    json.loads((run / run_directory.EVALUATION).read_text(), parse_constant=refuse)
    assert "—" in report.render([run])
    over = runs.OverSeeds([0, 1], [iwae.load(run).evaluate(k=5, limit=20)] * 2)
    json.loads(json.dumps(over.to_json()), parse_constant=refuse)


# Files that are none, and places that cannot be written


READERS: dict[str, Callable[[Path], object]] = {
    run_directory.MODEL: iwae.load,
    run_directory.CHECKPOINT: run_directory.read_progress,
    run_directory.METRICS: run_directory.read_metrics,
    run_directory.EVALUATION: run_directory.read_evaluations,
    run_directory.CONFIG: run_directory.read_config,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_the_place_of_a_file_does_not_hang(run: Path, tiny: RunConfig, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(InputError, match=r"is not a file|is not a run directory"):
        READERS[name](run)
    if name != run_directory.EVALUATION:
        with pytest.raises(InputError, match=r"is not a file"):
            iwae.train(tiny, out=run, resume=True)


def test_a_pipe_in_the_place_of_a_result_does_not_hang(task, tmp_path: Path) -> None:
    file = jobs.place(task, tmp_path) / "L_20-of-50.json"
    file.unlink()
    os.mkfifo(file)
    assert jobs.state(task, tmp_path) == "damaged"
    os.mkfifo(tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") is None
    os.mkfifo(tmp_path / "recipe.toml")
    with refused(f"The configuration {tmp_path / 'recipe.toml'} cannot be read: it is not a file."):
        iwae.config.io.recipe(tmp_path / "recipe.toml")


def test_figures_are_printed_before_they_cannot_be_written(run: Path, capsys, monkeypatch) -> None:
    def full(path: Path, content: object) -> None:
        raise InputError(f"{path} could not be written.")

    monkeypatch.setattr(evaluations, "write_atomic", full)
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(run), "--k", "5", "--limit", "20"])
    said = capsys.readouterr()
    assert left.value.code == 2
    assert "NLL (L_5)" in said.out
    assert said.err.strip() == f"iwae: {run / run_directory.EVALUATION} could not be written."
    with pytest.raises(runs.NotKeptError) as lost:
        iwae.evaluate(run, k=5, limit=20)
    assert isinstance(lost.value.result, Evaluation)
    assert lost.value.result.k == 5
