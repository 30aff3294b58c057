"""lmms-eval and VLMEvalKit ask our models, through stubs of the interfaces that they have.

The real lmms-eval asks for a hundred packages: put it and this project into an environment of its
own, and set ``VISUAL_OPSD_LMMS_EVAL`` to that one's Python. VLMEvalKit is on no package index.
"""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from experiments import respond
from experiments.schema import TINY_BASE
from visual_opsd.seeds import row_seed

ROOT = Path(__file__).resolve().parents[2]
PICTURE = PILImage.new("RGB", (32, 32), "white")


class StubLmms(ABC):
    """As ``lmms_eval.api.model.lmms``: three abstract methods, and what it sets up."""

    is_simple = True

    def __init__(self):
        self.task_dict = {}

    @abstractmethod
    def loglikelihood(self, requests): ...

    @abstractmethod
    def generate_until(self, requests): ...

    @abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass(frozen=True)
class StubManifest:
    """As ``lmms_eval.models.registry_v2.ModelManifest``."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def lmms_plugin(monkeypatch):
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models")
    for name in (*names, "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = StubLmms
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = StubManifest
    monkeypatch.delitem(sys.modules, "experiments.lmms_eval_model", raising=False)
    yield importlib.import_module("experiments.lmms_eval_model")
    sys.modules.pop("experiments.lmms_eval_model", None)


def messages(doc):
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def request(doc_id):
    gen_kwargs = {"max_new_tokens": 16}
    return SimpleNamespace(args=("words", messages, gen_kwargs, doc_id, "mmvp", "test"))


def test_the_entry_point_leads_to_a_chat_model(lmms_plugin):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["visual_opsd"].partition(":")
    assert module == lmms_plugin.__name__
    manifest = getattr(lmms_plugin, function)()
    module, _, name = manifest.chat_class_path.rpartition(".")
    found = getattr(sys.modules[module], name)
    assert issubclass(found, StubLmms)
    assert not found.is_simple


def test_lmms_eval_gets_a_reply_to_every_request_in_order(lmms_plugin, start):
    model = lmms_plugin.VisualOPSD(str(start), max_new_tokens=4, batch_size=1, answer_only=False)
    docs = [{"image": PICTURE, "question": question} for question in ("Which?", "Where is it?")]
    model.task_dict = {"mmvp": {"test": docs}}
    replies = model.generate_until([request(1), request(0)])
    seeds = [row_seed(42, "mmvp", str(number)) for number in (1, 0)]
    asked = [
        lmms_plugin.question(messages(docs[number]), seed)
        for number, seed in zip((1, 0), seeds, strict=True)
    ]
    assert [each.prompt for each in asked] == ["Where is it?", "Which?"]
    assert replies == [model.respondent.answer([each])[0].text for each in asked]
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])


def test_what_is_no_picture_and_a_misspelt_argument_are_refused(lmms_plugin, start):
    with pytest.raises(ValueError, match="not video"):
        lmms_plugin.question([{"content": [{"type": "video"}]}], 0)
    with pytest.raises(ValueError, match="max_tokns are unknown"):
        lmms_plugin.VisualOPSD(str(start), max_tokns=3)


STUB_KIT = {
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {}\n",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": (
        "class BaseModel:\n"
        "    INTERLEAVE = False\n"
        "    def __init__(self):\n"
        "        self.dump_image_func = None\n"
        "    def generate(self, message, dataset=None):\n"
        "        return self.generate_inner(message, dataset)\n"
    ),
    "run.py": (
        "import sys\n"
        "from vlmeval.config import supported_VLM\n"
        "name = sys.argv[sys.argv.index('--model') + 1]\n"
        "message = [{'type': 'image', 'value': 'picture.png'}]\n"
        "message += [{'type': 'text', 'value': 'Which?'}]\n"
        "reply = supported_VLM[name]().generate(message, sys.argv[sys.argv.index('--data') + 1])\n"
        "open('reply.txt', 'w').write(reply)\n"
    ),
}


@pytest.fixture
def kit(tmp_path):
    """A checkout of VLMEvalKit with nothing in it but the interface."""
    for name, text in STUB_KIT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    PICTURE.save(tmp_path / "picture.png")
    return tmp_path


def test_vlmevalkit_gets_the_whole_reply(kit, start, monkeypatch):
    monkeypatch.chdir(kit)
    monkeypatch.syspath_prepend(str(kit))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    try:
        plugin = importlib.import_module("experiments.vlmevalkit_model")
        plugin.main([f"MODEL={start}", "run=run.py", "data=[MMVP]", "max_tokens=4"])
        seeds = seeds_of(plugin, start, kit)
    finally:
        for name in [each for each in sys.modules if each.partition(".")[0] == "vlmeval"]:
            del sys.modules[name]
        sys.modules.pop("experiments.vlmevalkit_model", None)
    assert (kit / "reply.txt").read_text()
    assert len(set(seeds)) == 2, "all mazes of VSP have the same words, and had the same noise"


def seeds_of(plugin, start, kit):
    """Of the same question about two pictures."""
    model = plugin.VisualOPSD(plugin.KitConfig(model=str(start), max_tokens=1))
    asked = []
    model.respondent = SimpleNamespace(
        answer=lambda batch: asked.extend(batch) or [SimpleNamespace(text="")]
    )
    for name in ("picture.png", "other.png"):
        PICTURE.save(kit / name)
        message = [{"type": "image", "value": str(kit / name)}, {"type": "text", "value": "Which?"}]
        model.generate_inner(message, "VSP")
    return [each.seed for each in asked]


@pytest.mark.slow
def test_vlmevalkit_runs_in_a_process_of_its_own(kit, start):
    arguments = [f"MODEL={start}", "run=run.py", "data=[MMVP]", "max_tokens=4"]
    subprocess.run(
        [sys.executable, "-m", "experiments.vlmevalkit_model", *arguments],
        cwd=kit,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{kit}"},
        check=True,
    )
    assert (kit / "reply.txt").read_text()


TASK = """
task: mmvp_here
dataset_path: parquet
dataset_kwargs: {{data_files: {{train: {path}}}}}
test_split: train
output_type: generate_until
doc_to_visual: !function utils.mmvp_doc_to_visual
doc_to_text: !function utils.mmvp_doc_to_text
doc_to_target: !function utils.mmvp_doc_to_target
process_results: !function utils.mmvp_process_results
metric_list:
  - metric: mmvp_accuracy
    aggregation: !function utils.mmvp_aggregate_results
    higher_is_better: true
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
metadata: {{version: 0}}
"""
"""lmms-eval's own MMVP, with its functions, on a file here."""
COLOURS = ("red", "green", "blue", "white")


def write_mmvp(path, questions):
    """As ``lmms-lab-eval/MMVP`` is on the hub, with what makes ``datasets`` decode the pictures."""
    pictures = []
    for colour in COLOURS:
        PILImage.new("RGB", (32, 32), colour).save(file := BytesIO(), "png")
        pictures.append({"bytes": file.getvalue(), "path": None})
    columns = {
        "Index": pa.array(range(1, len(questions) + 1)),
        "Question": pa.array(questions),
        "Options": pa.array(["(a) Yes (b) No"] * len(questions)),
        "Correct Answer": pa.array(["(a)"] * len(questions)),
        "image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    }
    features = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    features |= {"Index": {"dtype": "int64", "_type": "Value"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_of_the_real_lmms_eval(tmp_path):
    """It finds the model by the entry point, asks it, and writes down what it replies."""
    python = os.environ.get("VISUAL_OPSD_LMMS_EVAL")
    if not python:
        pytest.skip("set VISUAL_OPSD_LMMS_EVAL to a Python that has lmms-eval and this project")
    assert Path(python).is_file(), f"VISUAL_OPSD_LMMS_EVAL={python}: it takes the path of a Python"
    questions = [f"Is the square {colour}?" for colour in COLOURS]
    path = tmp_path / "mmvp.parquet"
    write_mmvp(path, questions)
    task = tmp_path / "tasks"  # a folder of the name of its task would be read as for simple models
    task.mkdir()
    (task / "mmvp_here.yaml").write_text(TASK.format(path=path))
    (task / "utils.py").write_text("from lmms_eval.tasks.mmvp.utils import *\n")
    model_args = f"model={TINY_BASE.resolve()},max_new_tokens=40,answer_only=False"
    arguments = ["--model", "visual_opsd", "--model_args", model_args, "--tasks", "mmvp_here"]
    arguments += ["--include_path", str(task), "--output_path", str(tmp_path / "out")]
    ran = subprocess.run(
        [python, "-m", "lmms_eval", *arguments, "--log_samples"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    (written,) = (tmp_path / "out").rglob("*samples_mmvp_here.jsonl")
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    respondent = respond.load(str(TINY_BASE), "paper", "text_only").limited(40)
    for line in lines:
        number = line["doc_id"]
        asked = respond.Asked(
            pictures=(PILImage.new("RGB", (32, 32), COLOURS[number]),),
            prompt=f"{questions[number]}\nA. Yes\nB. No",
            seed=row_seed(42, "mmvp_here", str(number)),
        )
        assert line["resps"] == respondent.answer([asked])[0].text
    assert len(lines) == len(questions)
    assert len({line["resps"] for line in lines}) > 1  # else the order would show nothing
