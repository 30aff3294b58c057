"""Each second base differs from the shipped one in the rows it saw."""

import pytest

from experiments import pretrain_tiny
from experiments.schema import differing, load_experiment
from experiments.second_bases import TABLES, second_bases
from visual_opsd.models.bagel import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:.*")


def changed(name):
    recipe = load_experiment(pretrain_tiny.EXPERIMENT)
    found = differing(recipe, load_experiment(TABLES / f"{name}.yaml"))
    return {key for key in found if key not in ("name", "output_dir", "model")}


def test_uncorrupted_changes_the_rows_alone():
    drawn_by = {"sft.seed"}  # which row is of which kind
    assert {key.partition(".mix")[0] for key in changed("uncorrupted") - drawn_by} == {"sft"}
    mix = load_experiment(TABLES / "uncorrupted.yaml").sft.mix
    assert mix == {"interleaved": 0.44, "text_only": 0.28, "privileged": 0.28}


def test_undrawn_sees_as_many_of_all_other_rows():
    steps = 1000  # at which the shipped base passed its rule
    shipped = load_experiment(pretrain_tiny.EXPERIMENT).sft.mix
    config = load_experiment(TABLES / "undrawn.yaml")
    assert set(config.sft.mix) == set(shipped) - {"interleaved"}
    for kind, share in config.sft.mix.items():
        assert share * config.trainer.max_steps == pytest.approx(shipped[kind] * steps, abs=1.5)


def test_told_goes_on_from_the_shipped_base():
    config = load_experiment(TABLES / "told.yaml")
    assert (
        config.model == load_experiment(pretrain_tiny.EXPERIMENT.parent / "visual_opsd.yaml").model
    )
    assert config.sft.mix["privileged:answer_text"] == max(config.sft.mix.values())


def test_one_that_fails_stops_not_the_other(tmp_path, start):
    few = ["data.sizes=[3,4]", "data.num_problems=16", "data.batch_size=2", "trainer.max_steps=2"]
    with pytest.raises(RuntimeError, match=r"uncorrupted \(see .*train\.log\)"):
        # Two steps pass no rule, and say so.
        second_bases([f"output_dir={tmp_path}", f"model={start}", *few])
    assert (tmp_path / "undrawn" / "model" / checkpoints.WEIGHTS).is_file()
    assert (tmp_path / "told" / "model" / checkpoints.WEIGHTS).is_file()
    assert "no step passed" in (tmp_path / "uncorrupted" / "train.log").read_text()
