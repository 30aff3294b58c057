import logging

import lightning as L
import pytest
import torch

from datamodules.frozen_lake import MazeSettings
from datamodules.mazes import BatchPlan, FixedBatches, MazeData, ProblemLoader
from datamodules.sources import GeneratedMazes, ThinkMorphRows
from datamodules.thinkmorph import write_mazes
from visual_opsd.benchmarks.maze_pictures import read_maze_pixels

SETTINGS = MazeSettings(sizes=(3, 4))
BANK = GeneratedMazes(SETTINGS, "train", 24)


def _ids(batch):
    return [problem.problem_id for problem in batch.problems]


def _stream(loader, num_batches):
    seen = []
    while len(seen) < num_batches:
        for batch in loader:
            seen.append(_ids(batch))
            if len(seen) == num_batches:
                break
    return seen


def test_a_batch_is_a_pure_function_of_seed_and_position():
    plan = BatchPlan(batch_size=4)
    loader = ProblemLoader(BANK, plan)
    straight = _stream(loader, 10)
    assert straight == [_ids(ProblemLoader(BANK, plan).batch(k)) for k in range(10)]
    assert straight != _stream(ProblemLoader(BANK, BatchPlan(batch_size=4, seed=1)), 10)


def test_a_batch_holds_one_size_and_a_pass_holds_every_problem_once():
    loader = ProblemLoader(BANK, BatchPlan(batch_size=4))
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    for batch in batches:
        assert len({problem.image.pixels.shape for problem in batch.problems}) == 1
    names = [name for batch in batches for name in _ids(batch)]
    assert len(names) == len(set(names)) == 24
    assert [_ids(batch) for batch in loader] != [_ids(batch) for batch in batches]


def test_every_problem_comes_with_a_donor_of_its_size():
    for batch in ProblemLoader(BANK, BatchPlan(batch_size=4)):
        for problem, donor in zip(batch.problems, batch.donors, strict=True):
            assert donor.image.pixels.shape == problem.image.pixels.shape
            maze, other = (read_maze_pixels(p.image.pixels) for p in (problem, donor))
            assert maze != other


def test_the_kind_of_donor_is_the_data_modules(tmp_path):
    """Whether the mazes are generated or read from files, they are the same."""
    write_mazes(tmp_path, SETTINGS, "train", 24)
    plan = BatchPlan(batch_size=4)
    for kind in ("other", "wrong"):
        batch = ProblemLoader(BANK, plan, donors=kind).batch(0)
        read = ProblemLoader(ThinkMorphRows(tmp_path), plan, donors=kind).batch(0)
        for problem, donor, from_file in zip(
            batch.problems, batch.donors, read.donors, strict=True
        ):
            if kind == "other":
                for found in (donor, from_file):
                    assert found.image.pixels.shape != problem.image.pixels.shape
                continue
            assert donor.problem_id == from_file.problem_id == problem.problem_id
            assert donor.answer == from_file.answer != problem.answer
            shown, read_back = donor.visual_thoughts[0], from_file.visual_thoughts[0]
            assert torch.equal(shown.pixels, read_back.pixels)
    assert ProblemLoader(BANK, plan, donors=None).batch(0).donors == ()


def test_ranks_share_out_the_global_batch():
    whole = ProblemLoader(BANK, BatchPlan(batch_size=4))
    ranks = [
        ProblemLoader(BANK, BatchPlan(batch_size=2, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    for k in range(9):
        assert whole.indices(k) == ranks[0].indices(k) + ranks[1].indices(k)


def test_a_stream_resumes_where_it_was_left_and_refuses_another():
    plan = BatchPlan(batch_size=4)
    straight = _stream(ProblemLoader(BANK, plan), 14)
    for cut in (1, 5, 6, 7, 13):
        first = ProblemLoader(BANK, plan)
        _stream(first, cut)
        second = ProblemLoader(BANK, plan)
        second.load_state_dict(first.state_dict())
        assert _stream(second, 14 - cut) == straight[cut:]
    with pytest.raises(ValueError, match="another stream"):
        ProblemLoader(BANK, BatchPlan(batch_size=2)).load_state_dict(first.state_dict())


class _Recorder(L.LightningModule):
    """One weight, and the ids of what it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(_ids(batch))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(folder, max_steps, checkpoint=None, **options):
    module = _Recorder()
    data = MazeData.generated(SETTINGS, batch_size=4, num_problems=24)
    trainer = L.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(folder / f"{max_steps}.ckpt")
    return module.seen


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.parametrize("cut", [3, 6, 8])
def test_lightning_resumes_with_the_very_next_batch(tmp_path, cut):
    """A pass has six batches: cut within the first, at its end, within the second."""
    straight = _fit(tmp_path, 11)
    assert len(straight) == 11
    before = _fit(tmp_path, cut)
    after = _fit(tmp_path, 11, checkpoint=tmp_path / f"{cut}.ckpt")
    assert before + after == straight


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_lightning_resumes_after_whole_epochs(tmp_path):
    straight = _fit(tmp_path, -1, max_epochs=3)
    before = _fit(tmp_path, -1, max_epochs=1)
    after = _fit(tmp_path, -1, checkpoint=tmp_path / "-1.ckpt", max_epochs=3)
    assert before + after == straight


def test_parquet_rows_feed_the_same_stream(tmp_path):
    write_mazes(tmp_path, SETTINGS, "train", 24)
    loader = ProblemLoader(ThinkMorphRows(tmp_path), BatchPlan(batch_size=4))
    generated = ProblemLoader(BANK, BatchPlan(batch_size=4))
    for ours, theirs in zip(loader, generated, strict=True):
        assert _ids(ours) == _ids(theirs)
        assert all(
            torch.equal(a.image.pixels, b.image.pixels)
            for a, b in zip(ours.problems, theirs.problems, strict=True)
        )
        assert all(a is not b for a, b in zip(ours.donors, ours.problems, strict=True))


def test_what_fills_no_batch_is_counted_said_and_shown_in_another_pass(caplog):
    """Rows were left out of every pass without a word."""
    bank = GeneratedMazes(SETTINGS, "train", 22)  # 11 of each size
    with caplog.at_level(logging.INFO):
        loader = MazeData(bank, batch_size=4).train_dataloader()
    assert loader.waiting == {"size_3": 3, "size_4": 3}
    assert "6 of 22 problems wait for another pass" in caplog.text
    passes = [{name for batch in loader for name in _ids(batch)} for _ in range(12)]
    assert {len(names) for names in passes} == {22 - 6}
    assert len(set.union(*passes)) == 22
    caplog.clear()
    assert MazeData(BANK, batch_size=4).train_dataloader().waiting == {}
    assert not caplog.text


def test_validation_sees_everything_once_in_the_same_order():
    batches = FixedBatches(BANK, BatchPlan(batch_size=5))
    names = [name for batch in batches for name in _ids(batch)]
    assert sorted(names) == sorted(BANK.problem(index).problem_id for index in range(24))
    assert names == [name for batch in batches for name in _ids(batch)]
    ranks = [
        FixedBatches(BANK, BatchPlan(batch_size=5, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    assert len(ranks[0]) == len(ranks[1])
    assert {n for rank in ranks for batch in rank for n in _ids(batch)} == set(names)


def test_a_bank_too_small_for_a_batch_says_which_size():
    with pytest.raises(ValueError, match="size_3"):
        ProblemLoader(BANK, BatchPlan(batch_size=16))
    with pytest.raises(ValueError, match="batch_size"):
        BatchPlan(batch_size=0)
    with pytest.raises(ValueError, match="rank"):
        BatchPlan(batch_size=1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="num_problems"):
        GeneratedMazes(SETTINGS, "train", 0)
