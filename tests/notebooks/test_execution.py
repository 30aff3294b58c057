"""Every notebook runs top to bottom on the tiny base, and answers a hand at its widgets."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(600)]
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
TRAINS = "05_your_own_data"


@pytest.fixture(autouse=True)
def kernels_import_this_tree(monkeypatch):
    """Not the one that an environment shared by several trees names."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))


def changed(path, **constants):
    """The notebook with other values of the constants that it names."""
    notebook = nbformat.read(path, as_version=4)
    for name, value in constants.items():
        lines = [f"{name} = {value!r}"]
        (cell,) = (
            cell
            for cell in notebook.cells
            if cell.cell_type == "code" and f"\n{name} = " in f"\n{cell.source}"
        )
        kept = [line for line in cell.source.splitlines() if not line.startswith(f"{name} = ")]
        cell.source = "\n".join(kept + lines)
    return notebook


def execute(notebook):
    from nbclient import NotebookClient

    return NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": "notebooks"}}
    ).execute()


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem == TRAINS else [], id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_it_runs_top_to_bottom(path, tmp_path):
    notebook = changed(path)
    for cell in notebook.cells:
        cell.source = cell.source.replace("runs/my_data", str(tmp_path))
    outputs = outputs_of(execute(notebook))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # A callback's error does not end the notebook: it would stand in the widget's output.
    states = execute_state(notebook)
    errors = [
        o for state in states for o in state.get("outputs", ()) if o["output_type"] == "error"
    ]
    assert errors == []
    assert "text/markdown" in notebook.cells[-1].outputs[-1]["data"]


def execute_state(notebook):
    """What the widgets hold."""
    kept = notebook.metadata.get("widgets", {}).values()
    return [model["state"] for one in kept for model in one["state"].values()]


def test_what_is_missing_is_a_line_in_the_cell():
    from nbclient.exceptions import CellExecutionError

    notebook = changed(NOTEBOOKS[0], RUN="runs/nowhere")
    with pytest.raises(CellExecutionError):
        execute(notebook)
    (error,) = (output for output in outputs_of(notebook) if output.output_type == "error")
    assert error.evalue == "no results at runs/nowhere: make demo makes a run folder to read from"
    assert len("\n".join(error.traceback).splitlines()) == 1


# A person at a browser


@pytest.fixture
def page():
    """The first notebook as a live page on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "voila", "notebooks/01_kl_gap.ipynb", "--no-browser", f"--port={port}"]
    server = subprocess.Popen([sys.executable, *command, "--Voila.ip=127.0.0.1"])
    try:
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture
def browser():
    """Debian's Chromium without a screen."""
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not program:
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    found.set_page_load_timeout(500)
    yield found
    found.quit()


def test_figures_render_and_widgets_respond(page, browser):
    """Choosing another control draws another strip; the controls that went before stay."""
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def images():
        return browser.execute_script(
            "return [...document.images].filter(i => i.naturalWidth > 100).map(i => i.src)"
        )

    def menus():
        return [Select(found) for found in browser.find_elements("css selector", "select")]

    def eventually(condition):
        return WebDriverWait(browser, 300, poll_frequency=1).until(lambda _: condition())

    browser.get(page)
    eventually(lambda: len(menus()) == 3 and len(images()) >= 5)
    before = images()
    (teacher_sees,) = (
        menu for menu in menus() if "blank" in [option.text for option in menu.options]
    )
    teacher_sees.select_by_visible_text("blank")
    after = eventually(lambda: images() if len(set(images()) - set(before)) >= 2 else None)
    assert len(after) == len(before)
    assert len(set(after) & set(before)) == len(before) - 2
