"""The JSON Schema of everything that `cascade-bench` writes, made from the records themselves.

In: the name of a record. Out: its schema. The files in `schemas/` are these texts, checked in for
readers in other languages; a test holds them to this module.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

RECORDS = {
    "run": "cascade_bench.record:Record",
    "compare": "cascade_bench.compare.record:Record",
    "targets": "cascade_bench.gates:Gates",
    "roofline": "cascade_bench.roofline.record:Record",
    "project": "cascade_bench.project.record:Record",
    "soak": "cascade_bench.soak_record:Soak",
    "soak-start": "cascade_bench.soak_record:Start",
    "soak-process": "cascade_bench.soak_record:Process",
    "soak-minute": "cascade_bench.soak_record:Minute",
    "history": "cascade_bench.history:Entry",
}
"""By name, the module and its dataclass; the module has FORMAT and VERSION."""


def text(name: str) -> str:
    """The schema of one record, as the JSON text that is checked in."""
    from cascade_bench.forms import schema

    module_name, _, kind = RECORDS[name].partition(":")
    module = import_module(module_name)
    marks = {"format": module.FORMAT, "version": module.VERSION}
    found = schema(getattr(module, kind), f"cascade-bench {name}", marks)
    return json.dumps(found, indent=1) + "\n"


def main() -> None:
    """Write the checked-in files anew."""
    folder = Path(__file__).parent / "schemas"
    for name in RECORDS:
        (folder / f"{name}.json").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
