"""What the ceilings are measured with: chains of matrix products, and copies of memory.

In: the shapes of a network's stages, a number of threads. Out: `Gemm`s for the libraries to build,
and the traffic that `MemoryTraffic` moves. A chain of products hides what a single one would pay
for its input and output; the library runs it as it runs a stage, through the same engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade_runtime.manifest import StageInfo

MIB_A_THREAD = 64  # of each of three arrays: beyond what a cache holds


@dataclass(frozen=True)
class Gemm:
    """`links` products after another: rows x inner by inner x outer, back to inner, and so on.

    `batch` such chains run at once, as that many images do; weights are the same for all.
    """

    batch: int
    rows: int
    inner: int
    outer: int
    links: int = 8

    @property
    def flops(self) -> int:
        """Of one call."""
        return 2 * self.batch * self.rows * self.inner * self.outer * self.links

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.batch} x {self.rows} x {self.inner} x {self.outer}"

    def weights(self) -> list[npt.NDArray[np.float32]]:
        """[inner, outer] and [outer, inner] in turns; values stay near 1 along the chain."""
        rng = np.random.default_rng(0)
        shapes = [(self.inner, self.outer), (self.outer, self.inner)]
        made = []
        for link in range(self.links):
            shape = shapes[link % 2]
            scaled = rng.standard_normal(shape) * np.sqrt(2 / shape[0])
            made.append(scaled.astype(np.float32))
        return made

    def input(self) -> npt.NDArray[np.float32]:
        """float32 [batch, rows, inner], 0..1."""
        rng = np.random.default_rng(1)
        return rng.random((self.batch, self.rows, self.inner), dtype=np.float32)


LARGE = (Gemm(2, 512, 1024, 1024), Gemm(8, 64, 256, 1024))
"""Where libraries are at their best whatever the network: long rows, and what a cache holds."""


def shapes(stages: Iterable[StageInfo]) -> tuple[Gemm, ...]:
    """The feed-forward products of the stages, one image and eight, and large ones."""
    sizes = dict.fromkeys((stage.tokens, stage.width) for stage in stages)
    typical = [Gemm(batch, n, d, 4 * d) for n, d in sizes for batch in (1, 8)]
    return tuple(dict.fromkeys((*typical, *LARGE)))


class MemoryTraffic:
    """Copies and triads through memory, each thread on arrays of its own; numpy does the work.

    As in STREAM (McCalpin, 1995) a write counts once: what a processor reads before it writes is
    not counted. numpy has no fused triad, so a triad is a scaling and then an addition.
    """

    def __init__(self, threads: int, mib: float = MIB_A_THREAD) -> None:
        size = max(1, int(mib * 2**20) // 4)
        self._arrays = [
            tuple(np.full(size, value, dtype=np.float32) for value in (1.0, 2.0, 0.0))
            for _ in range(threads)
        ]
        self._pool = ThreadPoolExecutor(threads)
        array_bytes = 4 * size * threads
        self.bytes = {"copy": 2 * array_bytes, "triad": 5 * array_bytes}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def copy(self) -> None:
        """c = a."""
        list(self._pool.map(lambda x: np.copyto(x[2], x[0]), self._arrays))

    def triad(self) -> None:
        """c = a + 3 b."""
        list(self._pool.map(_triad, self._arrays))


def _triad(arrays: tuple[npt.NDArray[np.float32], ...]) -> None:
    a, b, c = arrays
    np.multiply(b, np.float32(3), out=c)
    np.add(a, c, out=c)
