"""Ratios are taken in turn, saved one by one, and not taken twice."""

import json
import time

import pytest
import torch
from rich.console import Console

from experiments import bench

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def one_thread():
    yield
    torch.set_num_threads(1)


def test_a_ratio_is_slow_over_fast():
    def work(count):
        return lambda: sum(index * index for index in range(count))

    found = bench.compare(work(300_000), work(100_000), repeats=3)
    assert found["times_as_fast"] == pytest.approx(3, rel=0.5)
    assert found["times_as_fast"] == found["slow_seconds"] / found["fast_seconds"]


def test_what_is_measured_is_saved_and_goes_on_from_there(tmp_path, monkeypatch):
    taken = []

    def measure(name):
        def take():
            if name == "second" and len(taken) == 1:
                taken.append("killed")
                raise KeyboardInterrupt
            taken.append(name)
            return {"value": time.perf_counter()}

        return take

    names = ("first", "second")
    monkeypatch.setattr(bench, "MEASUREMENTS", {name: measure(name) for name in names})
    with pytest.raises(KeyboardInterrupt):
        bench.run(names, tmp_path, again=False, console=QUIET)
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved.keys() == {"first"}
    summary = bench.run(names, tmp_path, again=False, console=QUIET)
    assert taken == ["first", "killed", "second"]
    assert summary["first"] == saved["first"]
    bench.run(("first",), tmp_path, again=True, console=QUIET)
    assert taken[3:] == ["first"]
    assert json.loads((tmp_path / "summary.json").read_text()).keys() == {"first", "second"}


def test_the_two_sides_of_a_ratio_compute_the_same():
    found = bench.drawing_in_one_batch("tiny", repeats=1)
    assert found["has_same_latents"]
    assert found["largest_difference"] < 1e-4 < found["largest_latent"]
    assert found["times_as_fast"] > 0
    assert bench.batched_decoding("tiny", repeats=1)["has_same_ids"]


def test_the_preset_between_is_compared_with_weights_that_draw():
    model, _ = bench.model_of("d512")
    decoder = model.config.decoder
    shape = (decoder.num_layers, decoder.num_heads, decoder.num_key_value_heads)
    assert shape == (8, 8, 4)
    assert decoder.hidden_size == 512
    assert model.llm2vae.weight.any()


def test_every_target_belongs_to_a_measurement():
    assert bench.TARGETS.keys() <= bench.MEASUREMENTS.keys()
    with pytest.raises(SystemExit):
        bench.main(["--only", "nonsense"])
