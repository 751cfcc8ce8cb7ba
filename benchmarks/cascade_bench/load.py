"""Many callers at once: throughput over their number, and latency over the rate they arrive at.

In: who answers, and image files. Out: a `Load`, of two kinds of traffic:

    closed loop   N clients, each sends its next image when it has its answer. A slow answer slows
                  the clients down too, so this tells throughput and flatters latency.
    open loop     images arrive at a fixed rate, whatever the answers do. Latency counts from the
                  moment an image was due, not from when somebody was free to send it: what piles up
                  behind a slow answer is counted in full (no coordinated omission, Gil Tene).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from cascade_bench.timing import Latency, percentile, summarise
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade

CLIENTS = (1, 2, 4, 8)
FRACTIONS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
LEAST_REQUESTS = 20
KEPT_UP = 0.95
WARM_UP = 2


@dataclass(frozen=True)
class Closed:
    """N clients that wait for their answers; latency is from sending to answer, one image each."""

    clients: int
    images_per_s: float
    latency: Latency


@dataclass(frozen=True)
class Open:
    """Arrivals at a fixed rate; latency is from when an image was due to its answer.

    offered, achieved: images a second, asked for and answered. waited_p50_ms: the part of the
    latency before anybody was free to send it. kept_up: at least 95 % of the offered were achieved;
    where not, the queue grows for as long as one measures, and so do the percentiles.
    """

    offered: float
    achieved: float
    waited_p50_ms: float
    latency: Latency
    kept_up: bool


@dataclass(frozen=True)
class Load:
    """Both, `clients` sending at most that many images at once in the open loop.

    warm_up: images a client sends first, uncounted.
    """

    closed: tuple[Closed, ...]
    clients: int
    open: tuple[Open, ...]
    warm_up: int


def measure(cascade: Cascade, work: Workload, seconds: float) -> Load:
    """The closed loop over `CLIENTS`, then the open loop at shares of what the best of it reached.

    Args:
        seconds: for everything together.
    """
    share = seconds / (len(CLIENTS) + len(FRACTIONS))

    def answer(index: int) -> object:
        return cascade.classify([work.files[index % len(work)]])

    loops = tuple(closed_loop(answer, clients, share) for clients in CLIENTS)
    best = max(loops, key=lambda loop: loop.images_per_s)
    points = tuple(
        open_loop(answer, best.clients, fraction * best.images_per_s, share)
        for fraction in FRACTIONS
    )
    return Load(loops, best.clients, points, WARM_UP)


def closed_loop(answer: Callable[[int], object], clients: int, seconds: float) -> Closed:
    """`clients` threads, each sending one image after the other for about `seconds`."""
    least = -(-LEAST_REQUESTS // clients)
    times: list[list[float]] = [[] for _ in range(clients)]
    gate = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        for index in range(WARM_UP):
            answer(number + index)
        gate.wait()
        end = time.perf_counter() + seconds
        while len(times[number]) < least or time.perf_counter() < end:
            started = time.perf_counter()
            answer(number + clients * len(times[number]))
            times[number].append(time.perf_counter() - started)

    started = _together(client, clients, gate)
    took = time.perf_counter() - started
    everything = np.concatenate([np.array(own) for own in times])
    return Closed(clients, len(everything) / took, summarise(everything))


def open_loop(answer: Callable[[int], object], clients: int, rate: float, seconds: float) -> Open:
    """Images due every 1/rate seconds; all that were due within `seconds` are answered.

    Args:
        clients: threads that send what is due; with all of them busy an image waits, and the wait
            counts.
    """
    requests = max(LEAST_REQUESTS, int(rate * seconds))
    due, sent, done = (np.zeros(requests) for _ in range(3))
    turn = count()
    gate = threading.Barrier(clients + 1)
    start = [0.0]

    def client(number: int) -> None:
        for index in range(WARM_UP):
            answer(number + index)
        gate.wait()  # everybody is warm
        gate.wait()  # the clock runs
        while (index := next(turn)) < requests:  # one step of the interpreter, so nobody shares one
            due[index] = start[0] + index / rate
            while (early := due[index] - time.perf_counter()) > 0:
                time.sleep(early)
            sent[index] = time.perf_counter()
            answer(index)
            done[index] = time.perf_counter()

    def go() -> None:
        start[0] = time.perf_counter()
        gate.wait()

    _together(client, clients, gate, go)
    achieved = requests / (done.max() - start[0])
    return Open(
        offered=rate,
        achieved=float(achieved),
        waited_p50_ms=1000 * percentile(sent - due, 50),
        latency=summarise(done - due),
        kept_up=bool(achieved >= KEPT_UP * rate),
    )


def knee(points: Sequence[Open]) -> float:
    """The highest offered rate that was kept up with; NaN where none was."""
    return max((point.offered for point in points if point.kept_up), default=float("nan"))


def _together(
    client: Callable[[int], None],
    clients: int,
    gate: threading.Barrier,
    go: Callable[[], None] | None = None,
) -> float:
    """Run the clients; returns when all were warm. What one of them raises is raised here."""
    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            client(number)
        except threading.BrokenBarrierError:
            pass  # another one failed first
        except BaseException as error:
            failed.append(error)
            gate.abort()

    threads = [threading.Thread(target=guarded, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    started = 0.0
    try:
        gate.wait()
        started = time.perf_counter()
        if go is not None:
            go()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return started
