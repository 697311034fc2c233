"""``offprint weights``: the released checkpoints, whose they are, and which of them are on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich import box
from rich.table import Table

from offprint.cli.console import out

WIDTHS = {"tag": 22, "publisher": 11, "stated": 11, "out": 5, "input": 9, "licence": 12, "here": 4}


def _figure(metrics) -> str:
    """The first figure of the first data set; ImageNet-1K goes without saying."""
    for data, row in metrics.items():
        name, value = next(iter(row.items()))
        return ("" if data == "imagenet-1k" else f"{data} ") + f"{name} {value:g}"
    return ""


def _row(model: str, tag: str) -> dict:
    """What is shown of a release: its object, completed from the model, and where it is here."""
    from offprint.api import entry
    from offprint.models.hub import find, places

    spec = entry(model)
    found = find(model, tag)
    release = asdict(spec.release(tag))
    return {"model": model, "tag": tag, "paper": spec.paper, **release, "here": str(found) if found else None,
            "places": [str(p) for p in places(model, tag)]}  # fmt: skip


def weights(
    model: str = typer.Argument(None, help="A model's name; without it, every model with released weights."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """List the released weights; of one model also addresses, digests and where to put a file by hand."""
    from offprint.api import entry, list_models

    names = [model] if model else list_models(pretrained=True)
    if model:
        entry(model).tag()
    rows = [_row(name, tag) for name in names for tag in entry(name).weights]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    present = sum(bool(row["here"]) for row in rows)
    out.print(
        f"{len(rows)} releases of weights for {len(names)} model{'s' * (len(names) > 1)}, {present} on this machine"
    )
    for i, name in enumerate(names):
        table = Table(title=name, title_justify="left", title_style="bold", header_style="bold", show_header=i == 0,
                      box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fmt: skip
        for column, width in WIDTHS.items():
            table.add_column(column, width=width, overflow="fold")
        for row in rows:
            if row["model"] == name:
                size = "x".join(map(str, row["input_size"])) if row["input_size"] else "any"
                classes = "" if row["num_classes"] is None else str(row["num_classes"] or "none")
                table.add_row(row["tag"], row["publisher"], _figure(row["metrics"]), classes, size, row["licence"],
                              "yes" if row["here"] else "no")  # fmt: skip
        out.print(table)
    for row in rows if model else ():
        details = Table(title=f"{row['model']}, {row['tag']}", title_justify="left", show_header=False, box=box.SIMPLE)
        details.add_column(no_wrap=True)
        details.add_column(overflow="fold")
        digest = row["sha256"] + ("" if len(row["sha256"]) in (0, 64) else "...")
        for key, value in (
            ("address", row["url"]),
            ("SHA-256", digest or "not stated"),
            ("tensor names", row["dialect"]),
            ("preprocessing", ", ".join(f"{k} {v}" for k, v in row["preprocessing"].items()) or "none"),
            ("figures", "\n".join(f"{d}: {', '.join(f'{k} {v}' for k, v in m.items())}" for d, m in row["metrics"].items())),
            ("stated in", row["metrics_source"]),
            ("outputs", row["class_map"]),
            ("average", row["average"]),
            ("here", row["here"] or "no"),
            ("by hand", "\n".join(row["places"])),
        ):  # fmt: skip
            if value:
                details.add_row(key, value)
        out.print(details)
