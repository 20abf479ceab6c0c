"""Work in a forked process, so that a crash, a hang or a hunger for memory ends that process and not the tests."""

import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import get_context

import torch

SECONDS, GIBIBYTES = 20, 12  # of the processor, so that a busy machine is no fault


def failures_of(work: Callable[[int], None], numbers: Iterable[int], seconds: int = SECONDS) -> list[str]:
    """What went wrong at which of the numbers: an error, a signal that ended the process, or work without an end."""
    left, failures = list(numbers), []
    while left:
        here, there = get_context("fork").Pipe(duplex=False)
        process = get_context("fork").Process(target=_all_of, args=(work, left, seconds, there))
        process.start()
        there.close()
        done = _heard(here, failures)
        process.join()
        if done < len(left):  # it died at the next one
            failures.append(f"{left[done]}: the process ended with {process.exitcode}")
        left = left[done + 1 :]
    return failures


def _heard(here, failures: list[str]) -> int:
    """How many were finished; what failed is added."""
    done = 0
    while True:
        try:
            failure = here.recv()
        except EOFError:
            return done
        done += 1
        if failure:
            failures.append(failure)


def _all_of(work: Callable[[int], None], numbers: list[int], seconds: int, there) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads and would wait for them
    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES * 1024**3,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(20 * seconds)
        failure = None
        try:
            work(number)
        except BaseException:
            failure = f"{number}: {traceback.format_exc()}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        there.send(failure)
    there.close()
    os._exit(0)
