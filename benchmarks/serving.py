"""`scmmgpt serve` under load: eight clients on loopback for a minute, then hostile bodies, then a stop.

    python -m benchmarks.serving --seconds 60

Half of the requests annotate and half embed 40 real cells each (SCMMGPT_DATA names them). Wants `wrk`, and says so
where there is none. Ends with 1 when a request failed, memory grew, a bad body was taken or the server would not stop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import httpx

from benchmarks._measuring import options
from scmmgpt.hub_cards.schema_scmmgpt import MAX_BODY_BYTES

CLIENTS = 8
CELLS_PER_REQUEST = 40
MOST_GROWTH = 1.1  # of memory, from the middle of the run to its end
WRK_SCRIPT = """
local paths, bodies, turn = {}, {}, 0
for line in io.lines(os.getenv("REQUESTS")) do
  local path, body = line:match("^(%S+) (.+)$")
  paths[#paths + 1], bodies[#bodies + 1] = path, body
end
request = function()
  turn = turn % #paths + 1
  return wrk.format("POST", paths[turn], {["Content-Type"] = "application/json"}, bodies[turn])
end
done = function(summary, latency, requests)
  local e = summary.errors
  local figures = {summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
                   latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency.max / 1e3}
  io.write("FIGURES " .. table.concat(figures, " ") .. "\\n")
end
"""
FIGURES = ("requests", "seconds", "refused", "lost", "p50_ms", "p95_ms", "slowest_ms")
BAD_BODIES = {
    "nothing": b"",
    "broken JSON": b"{",
    "no JSON at all": b"\x00\xff" * 1000,
    "nested 100,000 deep": b"[" * 100_000,
    "a number of 10,000 digits": b'{"cells": ' + b"9" * 10_000 + b"}",
    "infinite counts": b'{"cells": [{"CD3D": 1e999}]}',
    "negative counts": b'{"cells": [{"CD3D": -1}]}',
    "no known gene": b'{"cells": [{"NOT_A_GENE": 1}]}',
    "an h5ad that is none": b'{"cells": {"h5ad": "AAAAAAAAAAAA"}}',
    "a label of a megabyte": b'{"cells": [{"CD3D": 1}], "labels": ["' + b"x" * 1_000_000 + b'"]}',
    "a csr that points outside": b'{"cells": {"genes": ["CD3D"], "indptr": [0, 1], "indices": [9], "data": [1]}}',
    "larger than allowed": b" " * (MAX_BODY_BYTES + 1),
}


def real_requests(folder: Path) -> Iterator[str]:
    """Lines "PATH BODY": cells of one study, to be annotated or embedded in turn."""
    cells = anndata.read_h5ad(folder / "real" / "pbmc_facs_zheng2017.h5ad")
    genes = cells.var["feature_name"].astype(str).to_numpy()
    for number, start in enumerate(range(0, 16 * CELLS_PER_REQUEST, CELLS_PER_REQUEST)):
        rows = cells.X[start * 5 : (start + CELLS_PER_REQUEST) * 5 : 5]
        body = {"cells": [dict(zip(genes[row.indices], row.data.tolist(), strict=True)) for row in rows]}
        yield f"{('/annotate', '/embed')[number % 2]} {json.dumps(body)}"


@contextmanager
def running_server(model: str | None) -> Iterator[tuple[str, subprocess.Popen]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "scmmgpt", "serve", "--port", str(port), *(["--model", model] if model else [])]
    server = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            if server.poll() is not None:
                raise SystemExit("The server did not start.")
            time.sleep(0.2)
        yield url, server
    finally:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def megabytes(process: subprocess.Popen) -> int:
    """Resident memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024


def load(url: str, requests: Path, seconds: int) -> dict[str, float]:
    """What wrk measured."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT)
        script.flush()
        command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "30s", "-s", script.name, url]
        environment = {**os.environ, "REQUESTS": str(requests)}
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    numbers = re.findall(r"^FIGURES (.+)$", printed, re.MULTILINE)[0].split()
    return dict(zip(FIGURES, map(float, numbers), strict=True))


def load_and_watch(url: str, server: subprocess.Popen, requests: Path, seconds: int) -> dict[str, float]:
    """The load's figures, and memory at its start, middle and end."""
    memory = {"rss_start_mb": megabytes(server)}
    middle = threading.Timer(seconds / 2, lambda: memory.update(rss_middle_mb=megabytes(server)))
    middle.start()
    figures = load(url, requests, seconds)
    middle.join()
    figures["cells_per_second"] = round(figures["requests"] * CELLS_PER_REQUEST / figures["seconds"], 1)
    return figures | memory | {"rss_end_mb": megabytes(server)}


def answers_to_bad_bodies(url: str) -> dict[str, str]:
    answers = {}
    for name, body in BAD_BODIES.items():
        answer = httpx.post(f"{url}/annotate", content=body, headers={"Content-Type": "application/json"}, timeout=60)
        answers[name] = f"{answer.status_code} {answer.text[:110]}"
    return answers


def faults(figures: dict[str, float], answers: dict[str, str], exit_code: int) -> list[str]:
    found = [f"{name}: {answer}" for name, answer in answers.items() if not answer.startswith("4")]
    if figures["refused"] or figures["lost"] or not figures["requests"]:
        found.append("requests failed under load")
    if figures["rss_end_mb"] > MOST_GROWTH * figures["rss_middle_mb"]:
        found.append("memory grows")
    if exit_code not in (0, -signal.SIGTERM):
        found.append(f"the stop ended with {exit_code}")
    return found


def main() -> int:
    given = options(__doc__, seconds=60, model=str)
    if shutil.which("wrk") is None or "SCMMGPT_DATA" not in os.environ:
        print("Skipped: this wants `wrk` and the development cells that SCMMGPT_DATA names.")
        return 0
    with tempfile.TemporaryDirectory() as folder, running_server(given.model) as (url, server):
        requests = Path(folder) / "requests"
        requests.write_text("\n".join(real_requests(Path(os.environ["SCMMGPT_DATA"]))))
        figures = load_and_watch(url, server, requests, given.seconds)
        answers = answers_to_bad_bodies(url)
        server.send_signal(signal.SIGTERM)
        exit_code = server.wait(timeout=60)
    print(json.dumps(figures, indent=2))
    print(*(f"{name}: {answer}" for name, answer in answers.items()), sep="\n")
    found = faults(figures, answers, exit_code)
    print(*(f"FAULT {fault}" for fault in found), f"stopped with {exit_code}", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
