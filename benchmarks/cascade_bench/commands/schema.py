"""`cascade-bench schema`: the JSON Schema of what the other verbs write."""

from __future__ import annotations

import click

from cascade_bench.schemas import RECORDS


@click.command("schema", short_help="The JSON Schema of what the other verbs write.")
@click.argument("record", type=click.Choice(list(RECORDS)), default="run")
def command(record: str) -> None:
    """Print the JSON Schema of a RECORD: what `--json` prints, or a line of a JSONL file.

    The same texts lie in the installed package, in `cascade_bench/schemas/RECORD.json`.
    """
    from importlib import resources

    folder = resources.files("cascade_bench") / "schemas"
    click.echo((folder / f"{record}.json").read_text("utf-8"), nl=False)
