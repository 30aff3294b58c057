"""The hub is a small server on this machine that speaks as much of its language as is asked for."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import write_mazes
from experiments.prepare_data import main

SHA = "a" * 40
SET = "Spatial_Navigation"


class Hub(ThreadingHTTPServer):
    """Serves ``files`` (path to bytes) as ThinkMorph/Spatial_Navigation."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = files
        self.ranges = []
        self.breaks = False
        """The next file is cut off in the middle, once."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body):
        path = self.path.partition("?")[0]
        repository = f"/api/datasets/ThinkMorph/{SET}"
        if path in (repository, f"{repository}/revision/main", f"{repository}/revision/{SHA}"):
            self._send(json.dumps({"id": f"ThinkMorph/{SET}", "sha": SHA}).encode(), with_body)
        elif path.startswith(f"{repository}/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": "b" * 40,
                    "lfs": {
                        "oid": hashlib.sha256(data).hexdigest(),
                        "size": len(data),
                        "pointerSize": 130,
                    },
                }
                for name, data in self.server.files.items()
            ]
            self._send(json.dumps(entries).encode(), with_body)
        else:
            name = path.partition(f"/resolve/{SHA}/")[2]
            data = self.server.files.get(name)
            if data is None:
                self.send_error(404)
                return
            tag = hashlib.sha256(data).hexdigest()
            if with_body and self.server.breaks:
                self.server.breaks, self.close_connection = False, True
                self._send(data, with_body, {"ETag": f'"{tag}"'}, cut=len(data) // 2)
                return
            self._send(data, with_body, {"ETag": f'"{tag}"', "X-Repo-Commit": SHA})

    def _send(self, data, with_body, more=None, cut=None):
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.server.ranges.append(first)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if with_body:
            self.wfile.write(data[first:cut])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    paths = write_mazes(tmp_path / "made", MazeSettings(sizes=(3,)), "train", 4, num_shards=2)
    server = Hub({f"data/{path.name}": path.read_bytes() for path in paths})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _arguments(folder, *more):
    return ["--to", str(folder), "--sets", SET, *more]


def test_a_set_is_fetched_checked_and_counted(hub, tmp_path, capsys):
    main(_arguments(tmp_path / "to"))
    said = capsys.readouterr().out
    assert said == f"{SET}: 2 files, 4 rows; 6000 were published\n"
    for name, data in hub.files.items():
        assert (tmp_path / "to" / SET / name).read_bytes() == data
    main(_arguments(tmp_path / "to", "--only-check"))
    assert capsys.readouterr().out == said


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    # Our files are smaller than the pieces of 10 MB that the library keeps.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.breaks = True
    main(_arguments(tmp_path / "to"))
    assert [first > 0 for first in hub.ranges] == [True]
    for name, data in hub.files.items():
        assert (tmp_path / "to" / SET / name).read_bytes() == data


def test_a_file_that_has_changed_on_the_disk_is_named(hub, tmp_path):
    main(_arguments(tmp_path / "to"))
    name = next(iter(hub.files))
    changed = tmp_path / "to" / SET / name
    data = changed.read_bytes()
    changed.write_bytes(data[:-1] + b"?")
    with pytest.raises(SystemExit, match=rf"{changed.name}.*wrong sha256"):
        main(_arguments(tmp_path / "to"))


def test_without_a_network_it_says_what_to_fetch_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stopped:
        main(_arguments(tmp_path / "to"))
    said = str(stopped.value)
    assert f"https://huggingface.co/datasets/ThinkMorph/{SET}" in said
    assert str(tmp_path / "to" / SET / "data") in said
    assert "Visual_Search" not in said, "that one was not asked for"


def test_a_folder_without_files_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"no ThinkMorph folder at .*Spatial_Navigation"):
        main(_arguments(tmp_path, "--only-check"))
