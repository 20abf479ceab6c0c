"""`describe` and `chat` by a server of one's own: it is told a dossier, checked, and never trusted."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import anndata
import pytest

from scmmgpt.cli import app
from scmmgpt.console import run_to_exit_code
from scmmgpt.errors import UserError
from scmmgpt.llm_server import LlmServer, ServerConversation, describe_by_server
from scmmgpt.loading import load

CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def cells():
    cells = anndata.read_h5ad(CELLS)
    kind = cells.obs["cell_type"].astype(str)
    cells = cells[kind.isin(["B cell", "natural killer cell"])].copy()
    cells.obs["cluster"] = ["b" if one == "B cell" else "nk" for one in cells.obs["cell_type"].astype(str)]
    return cells


class FakeServer:
    """An OpenAI-compatible server that says what it is told to, and remembers what it was asked."""

    def __init__(self):
        self.reply, self.status, self.asked = "", 200, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(json.dumps({"data": [{"id": "tiny"}]}))

            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                is_raw = isinstance(outer.reply, bytes)
                said = {"choices": [{"message": {"content": outer.reply}}]}
                self._send(outer.reply if is_raw else json.dumps(said))

            def _send(self, content):
                content = content if isinstance(content, bytes) else content.encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(content)))
                if outer.status == 302:
                    self.send_header("Location", "http://192.0.2.1/")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def test_each_cluster_is_described_from_its_dossier(server, cells, model):
    server.reply = "These are B cells."

    told = describe_by_server(cells, LlmServer(server.url), cluster_key="cluster", model=model)

    dossiers = {body["messages"][0]["content"] for body in server.asked}
    assert len(dossiers) == 2
    assert all("genes raised" in one and "runner-up" in one and "species: human" in one for one in dossiers)
    assert any("MS4A1" in one or "CD79A" in one or "CD74" in one for one in dossiers)
    assert server.asked[0]["model"] == "tiny"
    assert told.obs["scmmgpt_description"].notna().all()
    assert told.uns["scmmgpt"]["describe"]["settings"]["llm"] == "tiny"


def test_what_the_cells_contradict_is_not_printed(server, cells, model):
    server.reply = "These cells are hepatocytes from the liver. They come from human cells."

    told = describe_by_server(cells, LlmServer(server.url), cluster_key="cluster", model=model)

    assert not told.obs["scmmgpt_description"].astype(str).str.contains("hepatocyte").any()


def test_a_conversation_keeps_its_turns_and_gives_no_advice(server, cells, model):
    server.reply = "They are B cells."
    talk = ServerConversation.begin(cells, LlmServer(server.url), cluster_key="cluster", select="b", model=model)

    talk.ask("What are these cells?")
    talk.ask("Why do you think so?")
    advice = talk.ask("Which therapy should I take?")

    assert "medical advice" in advice
    assert [len(body["messages"]) for body in server.asked] == [2, 4]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"<html>hello</html>", "does not speak JSON"),
        (b"{}", "gave no answer"),
        (b"[1, 2]", "gave no answer"),
        (b"[" * 100_000, "does not speak JSON"),
        ("   ", "empty answer"),
        (b'"' + b"x" * 1_100_000 + b'"', "more than a megabyte"),
    ],
    ids=["a page", "an empty object", "a list", "deep nesting", "white space", "too much"],
)
def test_nonsense_is_refused_in_one_sentence(reply, reason, server):
    server.reply = reply

    with pytest.raises(UserError, match=reason) as refused:
        LlmServer(server.url, "tiny").answer([])

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("status", "reason"), [(500, "refused: 500"), (401, "refused: 401"), (302, "refused: 302")])
def test_a_refusal_or_a_redirection_is_passed_on_in_one_sentence(status, reason, server):
    server.reply, server.status = "x", status

    with pytest.raises(UserError, match=reason):
        LlmServer(server.url, "tiny").answer([])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9", "does not answer"),
        ("http://192.88.99.1:80", "nowhere else"),
        ("file:///etc/passwd", "no address of a server"),
        ("ftp://localhost/", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://[::1", "no address of a server"),
        ("http://localhost:abc", "no address of a server"),
        ("http://localhost/a b", "does not answer"),
    ],
)
def test_a_server_that_is_down_or_elsewhere_is_refused(url, reason):
    with pytest.raises(UserError, match=reason):
        LlmServer(url, "tiny").answer([])


def test_a_server_of_another_kind_is_said_to_be_none():
    def greet() -> None:
        with other.accept()[0] as client:
            client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            client.recv(10_000)

    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=greet, daemon=True).start()

        with pytest.raises(UserError, match="does not answer"):
            LlmServer(f"http://127.0.0.1:{other.getsockname()[1]}", "tiny").answer([])


def test_a_key_is_never_printed(monkeypatch, server):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    assert LlmServer(server.url).key == "sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\nsecret")

    with pytest.raises(UserError, match="OPENAI_API_KEY") as refused:
        LlmServer(server.url)

    assert "secret" not in str(refused.value)


def test_the_command_describes_by_a_server(server, tmp_path, capsys):
    server.reply = "They are cells of the blood."
    output = str(tmp_path / "out.h5ad")
    command = ["describe", str(CELLS), "--output", output, "--server", server.url, "--json"]

    assert run_to_exit_code(lambda: app(command, standalone_mode=False)) == 0

    assert json.loads(capsys.readouterr().out)["cells"] == 300


def test_the_command_says_in_a_line_that_a_server_is_down(tmp_path, capsys):
    command = ["describe", str(CELLS), "--output", str(tmp_path / "out.h5ad"), "--server", "http://127.0.0.1:9"]

    assert run_to_exit_code(lambda: app(command, standalone_mode=False)) == 2

    assert "does not answer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
