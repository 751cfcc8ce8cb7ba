"""Two commits of this repository side by side, each in a git worktree of its own.

In: a checkout and the names of revisions. Out: `Revision`s, whose folders are gone when the block
ends; the checkout itself, and what is not committed in it, is never touched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cascade_runtime.errors import ConfigError

RUNTIME = Path("runtime")


@dataclass(frozen=True)
class Revision:
    """A commit: its hash, when it was made, its first line."""

    commit: str
    date: str
    subject: str


def own_checkout() -> Path:
    """The checkout that this package runs from."""
    return Path(__file__).resolve().parents[2]


def revision(repository: Path, name: str) -> Revision:
    """What a name such as HEAD~3, a branch or a hash stands for.

    Raises:
        ConfigError: no such commit, or no git repository.
    """
    if name.startswith("-"):
        raise ConfigError(f"revision {name!r} is no name of a commit")
    told = _git(repository, "show", "-s", "--format=%H%n%cI%n%s", f"{name}^{{commit}}")
    commit, date, subject = told.split("\n", 2)
    return Revision(commit, date, subject.strip())


@contextmanager
def checked_out(repository: Path, revisions: Sequence[Revision]) -> Iterator[tuple[Path, ...]]:
    """A folder with the files of each revision.

    Raises:
        ConfigError: git refuses, or a revision has no runtime to measure.
    """
    with TemporaryDirectory(prefix="cascade-bench-") as folder, ExitStack() as stack:
        paths = []
        for index, each in enumerate(revisions):
            path = Path(folder).resolve() / f"{index}-{each.commit[:12]}"
            _git(repository, "worktree", "add", "--detach", "--force", str(path), each.commit)
            stack.callback(_git, repository, "worktree", "remove", "--force", str(path))
            if not (path / RUNTIME / "cascade_runtime").is_dir():
                raise ConfigError(f"{each.commit[:12]} has no {RUNTIME}/cascade_runtime to measure")
            paths.append(path)
        yield tuple(paths)


def _git(repository: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *words], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ConfigError(f"git cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        said = next((line for line in lines if line.startswith("fatal:")), lines[-1])
        raise ConfigError(f"{repository}: git {words[0]} says: {said}")
    return done.stdout
