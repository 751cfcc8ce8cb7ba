"""`cascade-bench`: what a bundle does on this machine, against its targets and its peers.

Results go to stdout, progress to stderr. Exit status: 0 every target met, 6 a target missed,
1 the data or the machine is at fault, 2 the command line, 3 the bundle, 4 it cannot run here.
"""

from __future__ import annotations

from importlib import import_module

import click

from cascade_runtime.command import run_command

DEFAULT_VERB = "run"
VERBS = {
    "run": "cascade_bench.commands.run",
    "compare": "cascade_bench.commands.compare",
    "targets": "cascade_bench.commands.targets",
    "roofline": "cascade_bench.commands.roofline",
    "project": "cascade_bench.commands.project",
    "soak": "cascade_bench.commands.soak",
    "history": "cascade_bench.commands.history",
    "schema": "cascade_bench.commands.schema",
}
"""By name, the module whose `command` is the verb; imported when it is asked for."""


class Verbs(click.Group):
    """The verbs, of which the first argument may leave one out: `cascade-bench X.cascade` is
    `cascade-bench run X.cascade`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        found: click.Command = import_module(VERBS[cmd_name]).command
        return found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for option in self.get_params(ctx) for name in option.opts}
        if args and args[0] not in VERBS and args[0] not in own:
            args = [DEFAULT_VERB, *args]
        return super().parse_args(ctx, args)


@click.group(cls=Verbs, no_args_is_help=True)
@click.version_option(package_name="cascade-edge")
def cli() -> None:
    """Measure a bundle on this machine, against the toolkit's targets and against its peers.

    `cascade-bench X.cascade` is short for `cascade-bench run X.cascade`; its options are in
    `cascade-bench run --help`.
    """


def main() -> None:
    """The console script."""
    run_command(cli)


if __name__ == "__main__":
    main()
