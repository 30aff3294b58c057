"""Every jaxtyping annotation is checked while tests run; and a real model of few weights."""

import copy

import pytest
import torch
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 - the hook finds it by name

install_import_hook(
    ["visual_opsd", "lightning_modules", "datamodules", "callbacks"], "tests.typechecker.checked"
)

from tests import tiny  # noqa: E402 - behind the hook
from visual_opsd.contexts import student_context  # noqa: E402
from visual_opsd.models.bagel import checkpoints  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def problems():
    """Mazes of 3 x 3 and 4 x 4 cells in turn."""
    return tiny.some_problems(8)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def base(tokenizer, problems):
    """A fresh model whose completions have some ten tokens; not to be changed."""
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    return tiny.inclined(tiny.make_model(tokenizer, problems), contexts, {tokenizer.marks.end: 0.1})


@pytest.fixture
def model(base):
    """A copy of the base to do anything with."""
    return copy.deepcopy(base)


@pytest.fixture(scope="session")
def base_folder(base, tokenizer, tmp_path_factory):
    """The base as a folder."""
    folder = tmp_path_factory.mktemp("base")
    checkpoints.save(base, tokenizer, folder)
    return folder
