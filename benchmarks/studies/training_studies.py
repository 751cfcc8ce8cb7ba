"""What training choices are worth on small data: five seeds each, paired, with intervals.

In: nothing but a folder to work in (and, for one study, a folder of photographs). Out: a JSON file
a study, and from all of them docs/training-studies.md. Every run is a run folder; what is finished
there is not trained again, so a stopped study goes on. All arms of a study answer the same test
images; the unit that is repeated is the training (`cascade_train.paired`). Figures are of the torch
network: certificates are made on engines.

    python benchmarks/studies/training_studies.py scores --work build/studies
    python benchmarks/studies/training_studies.py scores --work build/studies --data PHOTOGRAPHS
    python benchmarks/studies/training_studies.py adapters --work build/studies
    python benchmarks/studies/training_studies.py explora --work build/studies
    python benchmarks/studies/training_studies.py exits --work build/studies
    python benchmarks/studies/training_studies.py page --work build/studies
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import numpy.typing as npt
import torch

from cascade_calib.metrics import augrc
from cascade_calib.splits_file import SPLITS, read_splits
from cascade_runtime.errors import CascadeError
from cascade_train.adapters import merge
from cascade_train.checkpoint import load_network
from cascade_train.config import request_of, train_config
from cascade_train.data.sources import load_split_pixels
from cascade_train.explora.config import ExploraConfig
from cascade_train.explora.run import ExploraRequest, run_explora
from cascade_train.fit import run_fit
from cascade_train.gates import ExitReadout, read_exits
from cascade_train.paired import Outputs, image_variances, paired_estimate
from cascade_train.posthoc import exit_rows, fit_scores
from cascade_train.record import show_run
from cascade_train.score_choice import ScoreConfig

PAGE = Path("docs/training-studies.md")
COMMAND = "python benchmarks/studies/training_studies.py"
EVERY_BLOCK = [1, 2, 3, 4, 5, 6]
SCORES = ("softmax", "gate", "posthoc", "blend", "shipped")


class Row(msgspec.Struct, kw_only=True):
    """One arm's figure over the seeds, and its paired difference from a reference."""

    arm: str
    figure: str
    values: list[float]
    reference: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Study(msgspec.Struct, kw_only=True):
    """The rows of a study and how they were made."""

    title: str
    command: str
    setting: str
    rows: list[Row]


def trained(work: Path, name: str, settings: dict[str, Any]) -> Path:
    """The finished run of these settings, trained now if it is not there."""
    run = work / name
    if (run / "scores.json").exists():
        return run
    shutil.rmtree(run, ignore_errors=True)
    started = time.monotonic()
    request, config = request_of(train_config(None, settings | {"threads": 1}), run)
    run_fit(request, config, say=lambda line: None)
    click.echo(f"{name}: {time.monotonic() - started:.0f} s", err=True)
    return run


def readouts(run: Path, split: str) -> tuple[list[ExitReadout], npt.NDArray[np.int8]]:
    """What every exit of the run's network computes on a split, and the labels."""
    model, config = load_network(run, scores=False)
    data = load_split_pixels(run / "splits.json", split, config.preprocess)
    return read_exits(model, data.pixels), data.labels


def outputs(exit_: ExitReadout, score: npt.NDArray[Any], labels: npt.NDArray[np.int8]) -> Outputs:
    """One exit under one score."""
    return Outputs((1,), exit_.logits[None], np.asarray(score, np.float32)[None], labels)


def shipped(run: Path) -> tuple[list[Outputs], npt.NDArray[np.int8]]:
    """Every exit of a run on val_test with the score that it ships."""
    model, config = load_network(run)
    data = load_split_pixels(run / "splits.json", "val_test", config.preprocess)
    plain, labels = readouts(run, "val_test")
    with torch.no_grad():
        gates = [o.gate.numpy() for o in model(torch.from_numpy(data.pixels))]
    return [outputs(out, gate, labels) for out, gate in zip(plain, gates, strict=True)], labels


def area(found: Outputs) -> float:
    wrong = found.logits[0].argmax(axis=1) != found.labels
    return augrc(found.score[0], wrong)


def accuracy(found: Outputs) -> float:
    return float((found.logits[0].argmax(axis=1) == found.labels).mean())


def compared(
    arm: str, figure: str, mine: Sequence[Outputs], other: Sequence[Outputs] | None, reference: str
) -> Row:
    """A row of AUGRC (times 1,000) or accuracy (in per cent), seed by seed against another arm."""
    measure: Callable[[Outputs], float] = area if "AUGRC" in figure else accuracy
    scale, key = (1000.0, "augrc") if "AUGRC" in figure else (100.0, "accuracy_1")
    values = [scale * measure(o) for o in mine]
    if other is None:
        return Row(arm=arm, figure=figure, values=values)
    differences = [a - scale * measure(b) for a, b in zip(values, other, strict=True)]
    variance = image_variances(list(zip(other, mine, strict=True)))[key] * scale**2
    found = paired_estimate(differences, variance)
    return Row(
        arm=arm,
        figure=figure,
        values=values,
        reference=reference,
        difference=found.difference,
        low=found.interval.low,
        high=found.interval.high,
    )


def rendered(scenes: str, count: int) -> str:
    """Made images, as `--data` takes them."""
    return f"roadworks:{scenes}?n={count}"


def scores_study(work: Path, seeds: int, source: str, name: str, epochs: int) -> Study:
    """Cross-entropy and SelectiveNet, each read by every candidate score."""
    rows: list[Row] = []
    by_arm: dict[str, list[list[Outputs]]] = {}
    for objective in ("ce", "selective"):
        found: dict[str, list[list[Outputs]]] = {score: [] for score in SCORES}
        chosen: list[str] = []
        for seed in range(seeds):
            run = trained(
                work,
                f"scores-{name}-{objective}-{seed}",
                {
                    "data": source,
                    "split_seed": 0,
                    "fit": {"seed": seed, "epochs": epochs, "loss": {"objective": objective}},
                },
            )
            select, y = readouts(run, "val_select")
            test, labels = readouts(run, "val_test")
            ours, _ = shipped(run)
            choice = msgspec.json.decode((run / "scores.json").read_bytes())["exits"]
            chosen.append("/".join(part["chosen"] for part in choice))
            for score in SCORES:
                found[score].append([])
            for index, (seen, new) in enumerate(zip(select, test, strict=True)):
                for score, values in _candidates(seen, y, new).items():
                    found[score][seed].append(outputs(new, values, labels))
                found["shipped"][seed].append(ours[index])
        by_arm[objective] = found["shipped"]
        for exit_ in range(len(found["softmax"][0])):
            reference = [seed_[exit_] for seed_ in found["softmax"]]
            figure = f"AUGRC x 1000, exit {exit_}"
            for score in SCORES:
                mine = [seed_[exit_] for seed_ in found[score]]
                other = None if score == "softmax" else reference
                rows.append(compared(f"{objective}, {score}", figure, mine, other, "softmax"))
        rows[-1].note = f"shipped, by exit: {', '.join(chosen)}"
        rows += by_exit(objective, found["softmax"])
    last = [[seed_[-1] for seed_ in by_arm[o]] for o in ("ce", "selective")]
    figure = "AUGRC x 1000, last exit"
    rows.append(compared("selective, shipped", figure, last[1], last[0], "ce, shipped"))
    return Study(
        title=f"Objectives and exit scores, {name}",
        command=f"{COMMAND} scores" + (" --data PHOTOGRAPHS" if name == "photographs" else ""),
        setting=f"`tiny` from random weights, {epochs} epochs, on {_counts(run)}.",
        rows=rows,
    )


def by_exit(arm: str, found: Sequence[Sequence[Outputs]]) -> list[Row]:
    """Accuracy of every exit, each against the last of the same network; found[seed][exit]."""
    last = [exits[-1] for exits in found]
    rows = []
    for index in range(len(found[0])):
        mine, is_last = [exits[index] for exits in found], index == len(found[0]) - 1
        figure = f"accuracy, exit {index}, %"
        rows.append(compared(arm, figure, mine, None if is_last else last, "last exit"))
    return rows


def exits_study(work: Path, seeds: int, source: str, epochs: int) -> Study:
    """An exit after every block: what each knows."""
    found = []
    for seed in range(seeds):
        fit = {"seed": seed, "epochs": epochs}
        settings = {"data": source, "split_seed": 0, "exits": EVERY_BLOCK, "fit": fit}
        run = trained(work, f"exits-{seed}", settings)
        found.append(shipped(run)[0])
    rows = by_exit("ce", found)
    for index in range(len(EVERY_BLOCK)):
        mine = [exits[index] for exits in found]
        rows.append(compared("ce", f"AUGRC x 1000, exit {index}", mine, None, ""))
    return Study(
        title="Early exits against full depth",
        command=f"{COMMAND} exits",
        setting=f"`tiny` from random weights with an exit after each of its six blocks, {epochs} "
        f"epochs, on {_counts(run)}; exit 0 is after the first block.",
        rows=rows,
    )


def _candidates(
    seen: ExitReadout, y: npt.NDArray[np.int8], new: ExitReadout
) -> dict[str, npt.NDArray[Any]]:
    """Every candidate score, fitted on val_select, of new images."""
    config = ScoreConfig()
    rows, basis = exit_rows(seen, y, np.arange(len(y)), config.components)
    fitted = fit_scores(rows, config.folds, config.seed)
    arrays = [torch.from_numpy(a) for a in (new.features, new.logits, new.gate)]
    found = {"softmax": np.abs(new.logits[:, 1] - new.logits[:, 0]), "gate": new.gate}
    for score, formula in (("posthoc", fitted.posthoc), ("blend", fitted.blend)):
        with torch.no_grad():
            found[score] = basis.module(formula)(*arrays).numpy()
    return found


def _counts(run: Path) -> str:
    splits = read_splits(run / "splits.json")
    return ", ".join(f"{len(splits.of(name)):,} {name}" for name in SPLITS)


def adapters_study(work: Path, seeds: int, count: int) -> Study:
    """The day model to night: nothing, all weights, LoRA, DoRA."""
    base = _day_model(work, count)
    night = rendered("night", count)
    arms: dict[str, dict[str, Any]] = {
        "full": {},
        "LoRA": {"adapter": {"kind": "lora"}},
        "DoRA": {"adapter": {"kind": "dora"}},
    }
    found: dict[str, list[list[Outputs]]] = {arm: [] for arm in arms}
    shares: dict[str, str] = {}
    for arm, extra in arms.items():
        rate = _rate(work, f"adapters-{arm}", base, night, extra)
        for seed in range(seeds):
            settings = _from(base, night, rate, seed) | extra
            run = trained(work, f"adapters-{arm}-{rate:g}-{seed}", settings)
            found[arm].append(shipped(run)[0])
        share = show_run(run).summary.share or 0.0
        shares[arm] = f"{100 * share:.1f} % of weights train, peak rate {rate:g}"
    before = _elsewhere(base, run)
    rows = [compared("the day model as it is", "accuracy, last exit, %", [before], None, "")]
    for figure in ("AUGRC x 1000, last exit", "accuracy, last exit, %"):
        reference = [exits[-1] for exits in found["full"]]
        for arm in arms:
            mine = [exits[-1] for exits in found[arm]]
            row = compared(arm, figure, mine, None if arm == "full" else reference, "full")
            row.note = shares[arm]
            rows.append(row)
    rows += [row for arm in arms for row in by_exit(arm, found[arm])[:-1]]
    return Study(
        title="From day to night: full fine-tune, LoRA, DoRA",
        command=f"{COMMAND} adapters",
        setting="`tiny`, rank 16 on all linear layers, 6 epochs on night images: "
        f"{_counts(run)}; each arm's rate is the better of 0.0003 and 0.001 by AUGRC on "
        "val_select, with a seed that is not compared.",
        rows=rows,
    )


def _day_model(work: Path, count: int) -> Path:
    return trained(work, "adapters-base", {"data": rendered("day", count), "fit": {"epochs": 10}})


def _from(base: Path, data: str, rate: float, seed: int) -> dict[str, Any]:
    fit = {"epochs": 6, "lr": rate, "seed": seed}
    return {"data": data, "split_seed": 0, "init": str(base), "fit": fit}


def _rate(work: Path, name: str, base: Path, data: str, extra: dict[str, Any]) -> float:
    """The learning rate with the lower AUGRC on val_select, with a seed that is not compared."""
    areas = {}
    for rate in (3e-4, 1e-3):
        run = trained(work, f"{name}-{rate:g}-100", _from(base, data, rate, 100) | extra)
        areas[rate] = min(
            entry["augrc"]
            for line in (run / "log.jsonl").read_text().splitlines()
            if (entry := msgspec.json.decode(line))["selected"]
        )
    return min(areas, key=lambda rate: areas[rate])


def _elsewhere(base: Path, run: Path) -> Outputs:
    """The last exit of one run on the test images of another."""
    model, config = load_network(base, scores=False)
    data = load_split_pixels(run / "splits.json", "val_test", config.preprocess)
    out = read_exits(merge(model), data.pixels)[-1]
    return outputs(out, np.abs(out.logits[:, 1] - out.logits[:, 0]), data.labels)


def explora_study(work: Path, seeds: int, count: int, images: int, epochs: int) -> Study:
    """Few labels at night: the day backbone as it is, or adapted without labels first."""
    base = _day_model(work, count)
    backbone = work / "day-backbone"
    if not backbone.exists():
        load_network(base, scores=False)[0].backbone.save_pretrained(backbone)
    few = {"data": "roadworks:night?n=2500", "split_seed": 0, "fractions": [0.12, 0.1, 0.2, 0.58]}
    probe = {"freeze": "backbone", "epochs": 60, "batch_size": 64}
    tune = {"epochs": 30, "batch_size": 64, "lr": 5e-4}
    found: dict[tuple[str, str], list[Outputs]] = {}
    for seed in range(seeds):
        start: dict[str, dict[str, Any]] = {"no adaptation": {"weights": str(backbone)}}
        for objective in ("mae", "distill"):
            out = work / f"explora-{objective}-{seed}"
            if not (out / "backbone").exists():
                shutil.rmtree(out, ignore_errors=True)
                started = time.monotonic()
                request = ExploraRequest(
                    data=f"roadworks:night?n={images}&seed=100", out=out, init=base, threads=1
                )
                config = ExploraConfig(objective=objective, epochs=epochs, seed=seed)
                run_explora(request, config, say=lambda line: None)
                click.echo(f"{out.name}: {time.monotonic() - started:.0f} s", err=True)
            start[f"ExPLoRA, {objective}"] = {"init": str(out)}
        for name, extra in start.items():
            ways: dict[str, dict[str, Any]] = {
                "probe": {"fit": probe | {"seed": seed}},
                "fine-tune": {"fit": tune | {"seed": seed}},
            }
            if name == "no adaptation":
                lora = {"fit": tune | {"seed": seed, "lr": 1e-3}, "adapter": {"kind": "lora"}}
                ways["fine-tune, LoRA"] = lora
            for way, settings in ways.items():
                label = f"explora-{name}-{way}-{seed}".replace(", ", "-").replace(" ", "-")
                run = trained(work, label, few | extra | settings)
                found.setdefault((name, way), []).append(shipped(run)[0][-1])
    rows = []
    for figure in ("AUGRC x 1000, last exit", "accuracy, last exit, %"):
        for (name, way), mine in found.items():
            group = "probe" if way == "probe" else "fine-tune"
            reference = ("no adaptation", group)
            other = None if (name, way) == reference else found[reference]
            rows.append(compared(f"{way}: {name}", figure, mine, other, ": ".join(reference[::-1])))
    return Study(
        title="Few labels at night: adaptation without labels",
        command=f"{COMMAND} explora",
        setting=f"`tiny`, the backbone of the day model; {images:,} unlabelled night images, "
        f"{epochs} epochs; then 300 labelled ones, heads alone (60 epochs) or everything (30).",
        rows=rows,
    )


def as_markdown(study: Study) -> str:
    """A study as a section of the page."""
    lines = [f"## {study.title}", "", f"`{study.command}`. {study.setting}", ""]
    lines += ["| arm | figure | mean of seeds | difference | from | note |", "|---" * 6 + "|"]
    for row in study.rows:
        mean = float(np.mean(row.values))
        spread = f"{mean:.2f}" if len(row.values) > 1 else f"{mean:.2f} (one run)"
        moved = ""
        if row.reference:
            moved = f"{row.difference:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        cells = (row.arm, row.figure, spread, moved, row.reference, row.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def page(studies: Sequence[Study], seeds: int) -> str:
    """The whole of docs/training-studies.md, but for what people conclude from it."""
    head = (
        f"{seeds} seeds an arm, paired: all arms of a study answer the same `val_test` images, "
        "and a difference is taken seed by seed. Its 95 % interval is Student's over the seeds, "
        "widened by what other test images would change (`cascade_train.paired`). A difference "
        "whose interval contains 0 is no finding. AUGRC is better when lower. Networks are "
        "measured in torch; certificates are made on engines. The networks and images are small, "
        "and nothing here says what ViT-H+ on a million photographs would do."
    )
    return "\n".join(["# Training studies", "", head, "", *map(as_markdown, studies)])


@click.command()
@click.argument("study", type=click.Choice(["scores", "adapters", "explora", "exits", "page"]))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(2))
@click.option("--data", help="scores: a folder of labelled images instead of roadworks.")
@click.option("--epochs", type=int, help="[default: 10; explora 12]")
@click.option("--count", default=4000, show_default=True, help="Rendered images of a study.")
@click.option("--images", default=1500, show_default=True, help="explora: unlabelled images.")
@click.option("--write", default=PAGE, show_default=True, type=click.Path(path_type=Path))
def main(
    study: str,
    work: Path,
    seeds: int,
    data: str | None,
    epochs: int | None,
    count: int,
    images: int,
    write: Path,
) -> None:
    """Train and compare; `page` writes what the finished studies found."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    if study == "page":
        files = sorted(work.glob("study-*.json"))
        done = [msgspec.json.decode(file.read_bytes(), type=Study) for file in files]
        write.write_text(page(done, seeds))
        click.echo(f"wrote {write}")
        return
    try:
        if study == "scores":
            source, kind = data or rendered("day", count), "photographs" if data else "roadworks"
            result = scores_study(work, seeds, source, kind, epochs or 10)
        elif study == "adapters":
            result = adapters_study(work, seeds, count)
        elif study == "exits":
            result = exits_study(work, seeds, rendered("day", count), epochs or 10)
        else:
            result = explora_study(work, seeds, count, images, epochs or 12)
    except CascadeError as error:
        raise click.ClickException(str(error)) from error
    name = f"study-{study}" + ("-photographs" if data else "")
    (work / f"{name}.json").write_bytes(msgspec.json.encode(result))
    click.echo(as_markdown(result))


if __name__ == "__main__":
    main()
