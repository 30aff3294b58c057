"""One command asks nine benchmarks, once, and leaves files that others score again."""

import csv
import json
from dataclasses import replace

import pytest
from rich.console import Console

from datamodules.benchmark_twins import write_nine
from experiments import evaluate
from experiments.benchmark_run import (
    BenchmarkConfig,
    counted_text,
    latency,
    load_predictions,
    score,
)
from experiments.benchmark_tables import mean_of, timing
from tests import vlms
from visual_opsd.benchmarks.nine import NINE

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nine")
    write_nine(folder, 2)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, start, nine):
    out = tmp_path_factory.mktemp("out") / "run"
    settings = {"batch_size": 32, "max_tokens": 6, "limit": 1}
    return BenchmarkConfig(model=str(start), data=str(nine), out=str(out), **settings)


@pytest.fixture(scope="module")
def folder(config):
    """Stopped after one question a benchmark, in the middle of a line; then all of it."""
    out = score(config, QUIET)
    (out / "first.jsonl").write_text((out / "predictions.jsonl").read_text())
    replies = out / "replies"
    (replies / "rank3.jsonl").write_text('{"key": "half a li')
    score(replace(config, limit=0), QUIET)
    return out


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text())


def test_scores_are_a_mapping_of_exactly_the_nine(folder):
    scores = scores_of(folder)
    assert list(scores) == list(NINE)
    for found in scores.values():
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert 0 <= found["chance"] <= 0.5
        assert 0 <= found["format_failures"] <= found["num_items"]
        assert 0 < found["seconds_p50"] <= found["seconds_p95"]
        assert 0 < found["mean_tokens"] <= 6
    assert {name: found["n"] for name, found in scores.items()} == {
        **dict.fromkeys(NINE, 2),
        "ChartQA": 4,
        "MMVP": 4,
        "CV-Bench": 4,
    }


def test_what_was_answered_before_a_kill_is_not_asked_again(folder):
    """The seconds of a reply are measured: equal ones are the same reply."""
    after = load_predictions(folder)
    before = [json.loads(line) for line in (folder / "first.jsonl").read_text().splitlines()]
    assert 0 < len(before) < len(after)
    assert all(after[each["key"]] == each for each in before)


def test_the_same_replies_are_scored_by_other_rules(folder, config):
    before = (folder / "predictions.jsonl").read_text()
    score(replace(config, limit=0, scoring="harness_compat"), QUIET)
    assert (folder / "predictions.jsonl").read_text() == before
    assert "scoring `harness_compat`" in (folder / "table.md").read_text()
    score(replace(config, limit=0), QUIET)


def test_a_run_that_goes_on_at_another_batch_size_reports_the_seconds_of_one(config, tmp_path):
    """Seconds at batch 32 and at batch 1 made one mean, under one name."""
    few = replace(config, benchmarks=("VStarBench",), out=str(tmp_path))
    alone = scores_of(score(few, QUIET))["VStarBench"]
    assert (alone["timed_batch_size"], alone["num_untimed"]) == (32, 0)
    assert "in other batches" not in (tmp_path / "table.md").read_text()
    found = scores_of(score(replace(few, limit=0, batch_size=1), QUIET))["VStarBench"]
    assert (found["n"], found["num_untimed"]) == (2, 1)
    kept = found["timed_batch_size"]
    (seconds,) = (
        each["seconds"]
        for each in load_predictions(tmp_path).values()
        if each["batch_size"] == kept
    )
    assert found["mean_seconds"] == found["seconds_p95"] == seconds
    assert f"asked {kept} at once; 1 were asked in other" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("sizes", "timed", "said"),
    [
        ((None, None, 8), "unknown", "whose batch size is unknown; 1 were asked in known"),
        ((None, None), "unknown", "whose batch size is unknown; 0 were asked in known"),
        (
            (8, 8, 1, None),
            8,
            "asked 8 at once; 2 were asked in other batches, 1 of them in unknown",
        ),
    ],
)
def test_a_batch_size_that_was_not_kept_is_said_to_be_unknown(sizes, timed, said):
    """It said "asked None at once", and "in other batches" of what may have been the same."""
    replies = [{"seconds": 0.1} | ({"batch_size": size} if size else {}) for size in sizes]
    found = latency(replies)
    assert found["timed_batch_size"] == timed
    assert said in timing(found)


def test_a_question_that_changed_is_asked_again(config, folder, nine, tmp_path):
    table = nine / "VStarBench.tsv"
    kept = table.read_text()
    before = load_predictions(folder)
    table.write_text(kept.replace("What is the", "What may be the").replace("Is the", "Was the"))
    try:
        score(replace(config, limit=0, benchmarks=("VStarBench",)), QUIET)
    finally:
        table.write_text(kept)
    after = load_predictions(folder)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"VStarBench:0", "VStarBench:1"}
    score(replace(config, limit=0), QUIET)


def test_another_way_of_asking_needs_another_folder(folder, config):
    with pytest.raises(ValueError, match="seed: 42 -> 43"):
        score(replace(config, seed=43), QUIET)
    assert folder.is_dir()


def test_the_table_has_our_row_then_the_papers(folder):
    header, *rows = csv.reader((folder / "table.csv").read_text().splitlines())
    assert header == ["model", *NINE, "mean"]
    by_name = {row[0]: row[1:] for row in rows}
    assert float(by_name["Visual-OPSD"][0]) == pytest.approx(0.8583)
    ours = [float(value) for value in rows[0][1:]]
    assert ours[-1] == pytest.approx(sum(ours[:-1]) / 9)
    assert "| **" in (folder / "table.md").read_text()


def test_there_is_no_mean_of_eight(folder):
    scores = scores_of(folder)
    assert mean_of(scores) is not None
    del scores["VSP"]
    assert mean_of(scores) is None


def test_predictions_are_exported_as_vlmevalkit_names_them(folder, config, start):
    path = folder / "exports" / "vlmevalkit" / f"{start.name}_SAT_circular.tsv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    replies = load_predictions(folder)
    assert len(rows) == 4
    for row in rows:
        assert {"question", "A", "B", "answer", "g_index"} <= set(row)
        assert row["prediction"] == replies[f"SAT_circular:{row['index']}"]["text"]


def test_results_are_exported_as_lmms_eval_names_them(folder, start):
    exported = folder / "exports" / "lmms_eval" / start.name
    (results,) = exported.glob("*_results.json")
    found = json.loads(results.read_text())
    assert found["results"]["mmvp"]["accuracy,none"] == scores_of(folder)["MMVP"]["value"]
    (samples,) = exported.glob("*_samples_cv_bench_2d.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["input"].endswith(")") or "Select from" in first["input"]
    assert set(first) == {"doc_id", "input", "target", "filtered_resps"}


def test_a_reply_that_the_budget_cut_is_no_answer_unless_it_had_ended(config):
    cut = {"is_cut": True, "text": "The answer is B"}
    assert counted_text(config, cut) == ""
    assert counted_text(config, {**cut, "text": "<answer>B</answer> and"}) != ""
    assert counted_text(replace(config, scoring="harness_compat"), cut) == cut["text"]


def test_drawings_are_made_and_counted(config, tmp_path):
    out = score(
        replace(config, way="drawn", benchmarks=("MMVP",), limit=2, out=str(tmp_path)), QUIET
    )
    found = scores_of(out)["MMVP"]
    assert found["n"] == 2
    assert found["drawings"] >= 0
    assert {each["num_drawings"] for each in load_predictions(out).values()} <= {0, 1, 2, 3}


def test_a_vision_language_model_gets_its_row(nine, tmp_path):
    vlms.make("internvl", tmp_path / "internvl")
    config = BenchmarkConfig(model=str(tmp_path / "internvl"), data=str(nine), max_tokens=2)
    out = score(replace(config, benchmarks=("BLINK_Jigsaw",), out=str(tmp_path / "out")), QUIET)
    assert scores_of(out)["BLINK_Jigsaw"]["n"] == 2
    assert json.loads((out / "run.json").read_text())["decoding"]["system_prompt"] == ""


def test_the_command_finds_benchmarks_by_their_files(config, nine, start, tmp_path):
    arguments = [f"MODEL={start}", f"DATA={nine}", "benchmarks=[VStarBench]", "max_tokens=2"]
    out = evaluate.run([*arguments, f"out={tmp_path}"], QUIET)
    assert list(scores_of(out)) == ["VStarBench"]
    assert "Only the first" not in (out / "table.md").read_text()
    with pytest.raises(ValueError, match="Did you mean: 'limit'"):
        evaluate.run([*arguments, "limmit=2"], QUIET)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"limit": -1}, {"max_tokens": -1}])
def test_nonsense_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        BenchmarkConfig(**changes)


def test_the_others_are_scored_where_half_of_one_is_missing(nine, start, tmp_path):
    """The error told to name the others, and the command raised it again when they were named."""
    data = tmp_path / "some"
    data.mkdir()
    for name in ("ChartQA_h_bar", "VStarBench"):
        (data / f"{name}.tsv").write_bytes((nine / f"{name}.tsv").read_bytes())
    arguments = [f"MODEL={start}", f"DATA={data}", f"out={tmp_path / 'out'}", "max_tokens=2"]
    with pytest.raises(ValueError, match="ChartQA_v_bar is missing"):
        evaluate.run(arguments, QUIET)
    out = evaluate.run([*arguments, "benchmarks=[VStarBench]", "limit=1"], QUIET)
    assert list(scores_of(out)) == ["VStarBench"]
    assert "Only the first 1 questions of a file" in (out / "table.md").read_text()
    assert "Only the first 1 questions of a file" in (out / "table.md").read_text()
