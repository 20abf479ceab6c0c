"""`scmmgpt serve` for ten minutes under clients of all kinds at once: polite, slow, impatient and broken ones.

    python -m benchmarks.mixed_clients --seconds 600

Every endpoint is in use all the time, with cells as names, as a sparse matrix and as h5ad files (SCMMGPT_DATA names
them); beside them are clients that send half a body, that leave before the answer or in the middle of a stream, and that
send nonsense. Prints the median and the 99th percentile of each kind, and memory by the minute. Ends with 1 when an
answer was lost or wrong in kind, or memory grew in the last third.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import anndata
import httpx
import numpy as np

from benchmarks._measuring import OUT, machine, options, row, write_report
from benchmarks.serving import BAD_BODIES, MOST_GROWTH, megabytes, running_server

CELLS_PER_REQUEST = 40
PAUSE = 0.05
JSON = {"Content-Type": "application/json"}
QUERIES = ("B cells", "monocytes of blood", "natural killer cells")
BUSY = 503


class Bodies:
    """Requests of real cells, in each form that the endpoint takes."""

    def __init__(self, folder: Path):
        self.cells = anndata.read_h5ad(folder / "real" / "pbmc_facs_zheng2017.h5ad")
        self.genes = self.cells.var["feature_name"].astype(str).to_numpy()
        self.turns = np.random.default_rng(0)

    def _some(self, number: int = CELLS_PER_REQUEST) -> np.ndarray:
        return self.turns.integers(0, self.cells.n_obs, number)

    def named(self, number: int = CELLS_PER_REQUEST) -> list[dict[str, float]]:
        rows = self.cells.X[self._some(number)]
        return [dict(zip(self.genes[one.indices], one.data.tolist(), strict=True)) for one in rows]

    def sparse(self) -> dict:
        rows = self.cells.X[self._some()]
        arrays = {name: getattr(rows, name).tolist() for name in ("indptr", "indices", "data")}
        return {"genes": self.genes.tolist(), **arrays}

    def h5ad(self) -> dict:
        with tempfile.NamedTemporaryFile(suffix=".h5ad") as file:
            own = anndata.AnnData(self.cells.X[self._some()], var=self.cells.var[["feature_name"]])
            own.write_h5ad(file.name, compression="gzip")
            return {"h5ad": base64.b64encode(Path(file.name).read_bytes()).decode()}


class Clients:
    """Threads that each go on with one kind of visit until the time is over."""

    def __init__(self, url: str, bodies: Bodies):
        self.url, self.bodies = url, bodies
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.busy: dict[str, int] = defaultdict(int)
        self.faults: list[str] = []
        self.end = threading.Event()
        made = bodies
        # Made once: writing a body costs more than reading it.
        h5ad, sparse = [made.h5ad() for _ in range(8)], [made.sparse() for _ in range(8)]
        named = [made.named() for _ in range(16)]
        self.visits: dict[str, Callable[[int], None]] = {
            "annotate": lambda turn: self._post("annotate", {"cells": named[turn % 16]}, "calls"),
            "annotate, h5ad": lambda turn: self._post("annotate, h5ad", {"cells": h5ad[turn % 8]}, "calls"),
            "embed, sparse": lambda turn: self._post("embed, sparse", {"cells": sparse[turn % 8]}, "embeddings"),
            "search": lambda turn: self._post(
                "search", {"cells": named[turn % 16], "text": QUERIES[turn % len(QUERIES)]}, "hits"
            ),
            "describe": lambda turn: self._post("describe", {"cells": named[turn % 16][:4]}, "descriptions"),
            "generate": lambda turn: self._post("generate", {"text": "a B cell", "num_cells": 8}, "cells"),
            "stream": lambda turn: self._stream("stream", named[turn % 16][:1]),
            "leaves a stream": lambda turn: self._stream("leaves a stream", named[turn % 16][:1], most=1),
            "half a body": lambda turn: self._leave("half a body", named[turn % 16], share=0.5),
            "does not wait": lambda turn: self._leave("does not wait", named[turn % 16], share=1.0),
            "nonsense": self._nonsense,
        }

    def stay(self, seconds: float, watch: Callable[[], float]) -> list[float]:
        """Memory once a second, while all clients are at work."""
        threads = [threading.Thread(target=self._keep_on, args=(visit,)) for visit in self.visits.values()]
        for thread in threads:
            thread.start()
        memory, start = [], time.monotonic()
        while time.monotonic() - start < seconds:
            memory.append(watch())
            time.sleep(1)
        self.end.set()
        for thread in threads:
            thread.join()
        return memory

    def _keep_on(self, visit: Callable[[int], None]) -> None:
        turn = 0
        while not self.end.is_set():
            try:
                visit(turn)
            except Exception as error:
                self.faults.append(f"turn {turn}: {type(error).__name__}: {error}"[:300])
                time.sleep(1)
            turn += 1
            time.sleep(PAUSE)

    def _path(self, kind: str) -> str:
        return f"{self.url}/{kind.split(',')[0]}"

    def _post(self, kind: str, body: dict, key: str) -> None:
        start = time.perf_counter()
        answer = httpx.post(self._path(kind), json=body, timeout=120)
        if answer.status_code == BUSY:
            self.busy[kind] += 1
            return
        answer.raise_for_status()
        if not answer.json()[key]:
            raise ValueError(f"{kind}: an empty answer")
        self.seconds[kind].append(time.perf_counter() - start)

    def _stream(self, kind: str, cells: list, most: int | None = None) -> None:
        start = time.perf_counter()
        with httpx.stream("POST", f"{self.url}/describe/stream", json={"cells": cells}, timeout=120) as answer:
            if answer.status_code == BUSY:
                self.busy[kind] += 1
                return
            answer.raise_for_status()
            lines = []
            for line in filter(None, answer.iter_lines()):
                lines.append(line)
                if most is not None and len(lines) >= most:
                    break
        if most is None and lines[-1] != "data: [DONE]":
            raise ValueError(f"{kind}: cut off after {len(lines)} pieces")
        self.seconds[kind].append(time.perf_counter() - start)

    def _leave(self, kind: str, cells: list, share: float) -> None:
        body, place = json.dumps({"cells": cells}).encode(), urlsplit(self.url)
        head = f"POST /annotate HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        start = time.perf_counter()
        with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            connection.sendall(body[: int(share * len(body))])
        self.seconds[kind].append(time.perf_counter() - start)

    def _nonsense(self, turn: int) -> None:
        name = list(BAD_BODIES)[turn % len(BAD_BODIES)]
        start = time.perf_counter()
        answer = httpx.post(f"{self.url}/annotate", content=BAD_BODIES[name], headers=JSON, timeout=120)
        if not 400 <= answer.status_code < 500 and answer.status_code != BUSY:
            raise ValueError(f"{name}: {answer.status_code} {answer.text[:100]}")
        self.seconds["nonsense"].append(time.perf_counter() - start)


def rows_of(clients: Clients, seconds: float) -> list[dict]:
    """One line for each kind of client."""
    return [
        row(
            "mixed clients",
            kind,
            {"rate": round(len(took) / seconds, 2)},
            "visits/s",
            p50_ms=round(1e3 * float(np.quantile(took, 0.5)), 1),
            p99_ms=round(1e3 * float(np.quantile(took, 0.99)), 1),
            busy=clients.busy[kind],
        )
        for kind, took in sorted(clients.seconds.items())
    ]


def growth_of(memory: list[float]) -> float:
    """The most memory of the last third over that of the second."""
    third = max(len(memory) // 3, 1)
    return max(memory[-third:]) / max(memory[third : 2 * third] or memory[:1])


def main() -> int:
    given = options(__doc__, seconds=600, model=str)
    if "SCMMGPT_DATA" not in os.environ:
        print("Skipped: this wants the development cells that SCMMGPT_DATA names.")
        return 0
    about = machine()
    with running_server(given.model) as (url, server):
        clients = Clients(url, Bodies(Path(os.environ["SCMMGPT_DATA"])))
        memory = clients.stay(given.seconds, lambda: megabytes(server))
        waiting = httpx.get(f"{url}/health").json()["waiting"]
        server.send_signal(signal.SIGTERM)
        exit_code = server.wait(timeout=60)
    rows, growth = rows_of(clients, given.seconds), round(growth_of(memory), 3)
    never = sorted(set(clients.visits) - {line["way"] for line in rows})
    faults = clients.faults + [f"{kind}: never answered" for kind in never]
    if growth > MOST_GROWTH:
        faults.append(f"memory grew {growth} times")
    if exit_code not in (0, -signal.SIGTERM):
        faults.append(f"the stop ended with {exit_code}")
    minutes = memory[::60]
    more = {"memory_mb": minutes, "growth": growth, "waiting_at_end": waiting, "faults": faults}
    write_report(OUT / "mixed_clients.json", rows, machine=about, **more)
    for line in rows:
        print(f"{line['way']:<18} p50 {line['p50_ms']:>9,.1f} ms, p99 {line['p99_ms']:>9,.1f} ms, busy {line['busy']}")
    print(f"Memory by the minute: {minutes} MB, growth {growth}", *(f"FAULT {fault}" for fault in faults), sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
