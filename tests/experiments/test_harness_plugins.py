"""lmms-eval and VLMEvalKit ask our models, through stubs of the interfaces that they have.

The real packages are heavy: set ``VISUAL_OPSD_LMMS_EVAL=1`` where lmms-eval is installed.
"""

import importlib
import os
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image as PILImage

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


@pytest.mark.slow
def test_the_real_lmms_eval_knows_the_model():
    """It validates the class: a subclass of its own, of the kind that the manifest says."""
    if not os.environ.get("VISUAL_OPSD_LMMS_EVAL"):
        pytest.skip("set VISUAL_OPSD_LMMS_EVAL=1 where lmms-eval is installed")
    registry = importlib.import_module("lmms_eval.models.registry_v2").ModelRegistryV2()
    registry.register_manifest(importlib.import_module("experiments.lmms_eval_model").manifest())
    assert registry.get_model_class("visual_opsd").__name__ == "VisualOPSD"
