"""A run's plan needs neither GPU nor files, and refuses a GPU that is too small."""

import json
import subprocess
from pathlib import Path

import pytest

from experiments.plan import check_fits, plan, write_plan
from experiments.schema import load_experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_of(tmp_path):
    path = ROOT / "experiments" / "thinkmorph_7b.yaml"
    return lambda *overrides: load_experiment(path, [f"output_dir={tmp_path}", *overrides])


def test_the_plan_of_the_7b_run(config_of):
    path = write_plan(config_of("name=train-8gpu", "data.batch_size=2"), step_seconds=90)
    found = json.loads(path.read_text())
    assert path.parts[-2:] == ("train-8gpu", "plan.json")
    assert found["strategy"] == "zero3"
    assert found["world_size"] == 8
    assert found["sequences_per_step"] == 2 * 8 * 2
    assert found["parameters"]["total"] == 14_607_260_128
    assert found["parameters"]["und_only"] == 8_052_719_008
    assert found["hours"] == 90 * found["max_steps"] / 3600
    parts = found["bytes_per_gpu"]
    assert parts["peak"] == max(parts["rollout"], parts["training"]) + parts["overhead"]
    assert "--nproc-per-node 8" in found["launch"]
    launched = Path(found["launch"].split()[-1])
    assert load_experiment(launched) == config_of("name=train-8gpu", "data.batch_size=2")


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*_7b*.yaml")), ids=str)
def test_every_7b_run_fits_its_80_gb(path, tmp_path):
    """The run with adapters was once planned as a full fine-tune, and refused."""
    config = load_experiment(path, [f"output_dir={tmp_path}"])
    check_fits(config, 80 * 10**9)
    assert (plan(config)["setup"]["trainable"] == "lora") == (config.visual_opsd.lora is not None)


def test_hours_come_from_the_log_or_are_not_known(config_of):
    config = config_of()
    assert plan(config)["hours"] is None
    assert "step_seconds=" in plan(config)["step_seconds_is"]
    log = config.folder / "metrics" / "session_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,speed/samples_a_second\n9,\n9,4.0\n19,8.0\n")
    found = plan(config)
    assert found["step_seconds"] == found["sequences_per_step"] / 8.0
    assert found["step_seconds_is"] == "measured"


def test_a_gpu_that_is_too_small_is_refused_with_the_arithmetic(config_of):
    config = config_of()
    check_fits(config, 80 * 10**9)
    with pytest.raises(
        ValueError, match=r"needs [\d.]+ GB a GPU in training .* there are 24\.00: "
    ) as e:
        check_fits(config, 24 * 10**9)
    terms = str(e.value).partition(": ")[2].partition(" (GB)")[0].split(" + ")
    needed = float(str(e.value).partition("needs ")[2].split()[0])
    assert sum(float(term.split()[1]) for term in terms) == pytest.approx(needed, abs=0.1)


def test_what_is_offloaded_does_not_count(config_of):
    here, away = (
        plan(config_of(f"trainer.zero3.offload_optimizer={where}"))["bytes_per_gpu"]
        for where in ("none", "cpu")
    )
    assert away["optimiser"] == away["trained_in_float32"] == 0
    assert here["peak"] - away["peak"] == here["optimiser"] + here["trained_in_float32"]
    layers = plan(config_of("trainer.zero3.gather=layers"))["bytes_per_gpu"]
    assert layers["rollout"] < here["rollout"]


def test_several_nodes_are_launched_on_each(config_of):
    line = plan(config_of("trainer.num_nodes=2"))["launch"]
    assert "--nnodes 2" in line
    assert "$HEAD" in line


def test_make_plans_dry_and_refuses_the_flag_where_nobody_reads_it():
    shown = subprocess.run(
        ["make", "-n", "train-8gpu", "DRY=1"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "experiments.plan" in shown
    assert "experiments.train" not in shown
    refused = subprocess.run(
        ["make", "-n", "demo", "DRY=1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode
    assert "DRY=1 is read by train-8gpu" in refused.stderr
