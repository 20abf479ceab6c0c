"""The same computation as a Ray Data job: actors hold the model and compute ranges of cells, the caller writes them.

Results come back in the order of the cells, so that what is finished can be told by one number, as in a single
process: an interrupted job goes on where it stopped, with either engine. A worker that dies is replaced and its range
computed again; a range that kills its workers again and again ends the job with a reason.
"""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError, first_line, require
from .processing.cell_matrix_scmmgpt import parts
from .processing.input_account_scmmgpt import joined_accounts

if TYPE_CHECKING:
    from .embedding import Arrays, CellRun, MakeCompute

CELLS_PER_RANGE = 4096
MAX_RETRIES = 3
OBJECT_STORE_BYTES = 512 * 1024**2
RANGES_PER_WORKER = 2  # one at work, one waiting: more would only lie in memory


@dataclass(frozen=True)
class RayEngine:
    """Where the work runs.

    `address` is a cluster that is there ("ray://head:10001", "auto"); None starts one on this machine and stops it at
    the end. `workers` are copies of the model; None: one for each GPU of the cluster, or else for each CPU. Each
    computes on `device`; None takes the best there is.
    """

    address: str | None = None
    workers: int | None = None
    device: Any = None

    def results(self, run: CellRun, make: MakeCompute, start: int) -> Iterator[tuple[slice, Arrays, dict[str, Any]]]:
        """(rows, their results, the account of all from `start` to them), for all cells from `start` on, in order."""
        assert run.cells.path is not None  # `_engine` hands cells in memory to nobody
        job = CellJob(
            run.cells.path.resolve(), run.loaded.directory, self.device and str(self.device), run.batches.size, make
        )
        account: dict[str, Any] = {}
        size = run.cells_per_chunk or CELLS_PER_RANGE
        for first, last, results, read in self._outcomes(job, list(parts(run.cells.num_cells, start, size))):
            assert first == start, "ranges must come back in order, once each"
            start, account = last, joined_accounts(account, read)
            yield slice(first, last), results, account

    def _outcomes(self, job: CellJob, ranges: list[slice]) -> Iterator[tuple[int, int, Arrays, dict[str, Any]]]:
        if not ranges:
            return
        with self._cluster() as ray, _lost_workers_refused(ray):
            resources = ray.cluster_resources()
            num_gpus = int(resources.get("GPU", 0))
            num_workers = min(self.workers or num_gpus or int(resources.get("CPU", 1)), len(ranges))
            dataset = _in_order(ray).from_items(
                [{"start": rows.start, "stop": rows.stop} for rows in ranges], override_num_blocks=len(ranges)
            )
            with warnings.catch_warnings():
                # Ray deprecates these words before it offers others; without them it would try for ever.
                warnings.simplefilter("ignore", DeprecationWarning)
                outcomes = dataset.map_batches(
                    CellWorker,
                    fn_constructor_args=(job,),
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(
                        size=num_workers, max_tasks_in_flight_per_actor=RANGES_PER_WORKER
                    ),
                    num_gpus=min(1, num_gpus / num_workers) if num_gpus else None,
                    num_cpus=None if num_gpus else 1,
                    max_restarts=MAX_RETRIES,
                    max_task_retries=MAX_RETRIES,
                )
            # Nothing is fetched ahead: a range counts as finished as soon as it is.
            for block in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
                for outcome in map(pickle.loads, block["outcome"]):
                    if isinstance(outcome, str):
                        raise UserError(outcome)
                    yield outcome

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Ray, connected; what was started here is stopped here."""
        ray = import_ray(self.address)
        if ray.is_initialized():
            yield ray
            return
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address is not None:
            try:
                ray.init(self.address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"Cannot reach a Ray cluster at {self.address!r}: {first_line(error)}") from error
        else:
            own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "num_cpus": self.workers}
            ray.init("local", **own, **quiet)
        try:
            yield ray
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class CellJob:
    """What every worker has to know; paths must mean the same on all machines."""

    source: Path
    model: Path
    device: str | None
    batch_size: int
    make: MakeCompute


class CellWorker:
    """An actor: loads the model once, then computes one range of cells after the other."""

    def __init__(self, job: CellJob):
        from .device import Batches
        from .loading import load

        self.job = job
        self.loaded = load(job.model, device=job.device)
        self.compute = job.make(self.loaded)
        self.batches = Batches(self.loaded.device, job.batch_size)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outcomes = [self._outcome(int(start), int(stop)) for start, stop in zip(*batch.values(), strict=True)]
        return {"outcome": np.array([pickle.dumps(outcome) for outcome in outcomes], dtype=object)}

    def _outcome(self, start: int, stop: int) -> tuple[int, int, Arrays, dict[str, Any]] | str:
        """Bounds, results and account; or why these cells are refused, which no other worker would see differently."""
        from .embedding import CELLS_PER_CHUNK, run_chunk

        gene_tokenizer = self.loaded.processor.gene_tokenizer
        results = []
        try:
            for features in gene_tokenizer.iter_chunks(
                self.job.source, CELLS_PER_CHUNK, start=start, stop=stop, packed=True
            ):
                results.append(run_chunk(dict(features), self.compute, self.batches, self.loaded.device))
        except UserError as error:
            return str(error)
        arrays = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
        return start, stop, arrays, dict(gene_tokenizer.account)


def _in_order(ray: Any) -> Any:
    """Ray Data, told to give results in the order of the input, and to keep quiet."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data


def import_ray(address: str | None) -> Any:
    """Ray, or one line that says how to install it.

    A new cluster on this machine wants a token and would write one into the home folder: it is given one for this
    process alone, before the import, which reads the environment for good.
    """
    if address is None and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = require("ray")
    require("ray.data")
    return ray


@contextmanager
def _lost_workers_refused(ray: Any) -> Iterator[None]:
    """Turn workers that died too often into a UserError with a remedy."""
    lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
    try:
        yield
    except lost as error:
        raise UserError(
            f"A worker died {MAX_RETRIES + 1} times over the same cells, most often for want of memory: try fewer "
            "--workers or a smaller --batch-size. What is finished is kept: the same command goes on from there."
        ) from error
