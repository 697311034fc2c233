"""The catalogue: WHAT each paper is and says. One TOML per paper in ``papers/``, read and checked here.

Nothing is measured here and nothing is imported from the rest of the library; the evidence beside a claim is computed by
:mod:`offprint.catalog.evidence`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from offprint.errors import OffprintError, unknown

FOLDER = Path(__file__).parent / "papers"
ROOMS = {
    "backbone": "models.backbones",
    "segmentation": "models.segmentation",
    "detection": "models.detection",
    "signal": "models.signals",
    "graph": "models.graphs",
    "training": "methods.training",
    "federated": "methods.federated",
    "search": "methods.search",
    "curation": "methods.curation",
    "understanding": "methods.understanding",
}
KINDS = tuple(ROOMS)
COUNTS = ("parameters", "parameters_without_norms", "parameters_deployed", "macs", "macs_deployed")
SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}  # units of counts


class CatalogError(OffprintError):
    """A catalogue file says something that cannot be: the message names the file and the field."""


@dataclass(frozen=True)
class Structural:
    """Evidence by counting a model: ``parameters``, ``parameters_without_norms`` (as TensorFlow's slim counts them),
    ``parameters_deployed`` (of the merged form), or ``macs`` and ``macs_deployed`` (multiply-adds) at an input shape (C, H, W).

    What is counted is compared with the claim's value at its printed digits and in its unit.
    """

    model: str
    count: str
    input: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProofLink:
    """Evidence by a proof: which figure of it.

    ``protocol`` is ``same`` where the figure is the claim's own number measured by the claim's own protocol; ``small`` (the
    default) where it is an effect that supports a statement.
    """

    figure: str
    protocol: str = "small"


@dataclass(frozen=True)
class Basis:
    """What may support a claim: golden records (file stems), a structural count, a proof's figure."""

    golden: tuple[str, ...] = ()
    structural: Structural | None = None
    proof: ProofLink | None = None


@dataclass(frozen=True)
class Protocol:
    """How a claim's figure is measured; two claims of one model whose protocols differ in ``metric`` alone come from one run.

    Args:
        data: id of the data set (``imagenet-1k``, ``set5``, ``cora``, ...).
        metric: name of the figure (``top1``, ``psnr_y``, ``accuracy``, ...).
        split: part of the data, where it has more than the usual one (``public``, ``random``).
        input: pixels of the image's side; 0 where the data or the weights say it.
        crop: share of the resized shorter side that is kept; 0 where the weights say it.
        steps: test-time steps beyond one view: ``10-crop``, ``144-crop``, ``flip``, ``multi-scale``, ``ensemble``.
        scale: factor of super-resolution.
        seeds: independent runs that the paper averages.
    """

    data: str
    metric: str
    split: str = ""
    input: int = 0
    crop: float = 0.0
    steps: str = ""
    scale: int = 0
    seeds: int = 1

    @property
    def key(self) -> str:
        """What one run measures: everything but the metric, as text."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "metric"}
        return " ".join(f"{k}={v}" for k, v in said.items() if v not in ("", 0, 0.0) and (k, v) != ("seeds", 1))


@dataclass(frozen=True)
class Claim:
    """One thing the paper says: a figure (``value``), or a statement in words.

    Args:
        model: name of the model that the figure is about, as :func:`offprint.create_model` takes it.
        digits: printed digits after the point, read off the number as it is typed in the file.
        spread: what the paper prints behind ±, if it does.
    """

    id: str
    data: str
    metric: str
    setting: str = ""
    place: str = ""
    value: float | None = None
    digits: int = 0
    spread: float | None = None
    unit: str = ""
    statement: str = ""
    model: str = ""
    from_memory: bool = False
    protocol: Protocol | None = None
    evidence: Basis = field(default_factory=Basis)

    @property
    def said(self) -> str:
        """The claim as it is printed: ``"82.10 %"``, or the statement."""
        if self.value is None:
            return self.statement
        spread = f" ± {self.spread:g}" if self.spread is not None else ""
        return f"{self.value:,.{self.digits}f}{spread} {self.unit}".strip()


@dataclass(frozen=True)
class Reference:
    """The code the paper's authors, or the field, use."""

    code: str = ""
    commit: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Paper:
    """One paper."""

    slug: str
    title: str
    year: int
    venue: str
    kind: str
    task: str
    summary: str
    authors: tuple[str, ...] = ()
    arxiv: str = ""
    doi: str = ""
    reference: Reference = field(default_factory=Reference)
    claims: tuple[Claim, ...] = ()

    @property
    def module(self) -> str:
        """Dotted name of the paper's one file."""
        return f"offprint.{ROOMS[self.kind]}.{self.slug.replace('-', '_')}"

    @property
    def built(self) -> bool:
        """Whether that file exists; a paper without it is planned."""
        return (Path(__file__).parents[1] / (self.module.removeprefix("offprint.").replace(".", "/") + ".py")).is_file()


_TYPES = {
    "str": (str,), "int": (int,), "bool": (bool,), "float": (int, float), "float | None": (int, float),
    "tuple[str, ...]": (list,), "tuple[int, ...]": (list,), "tuple[Claim, ...]": (list,),
}  # fmt: skip
_NESTED = {
    "Reference": Reference, "Basis": Basis, "Structural | None": Structural, "ProofLink | None": ProofLink,
    "Protocol | None": Protocol,
}  # fmt: skip


class _Number(float):
    """A number of a TOML file that remembers how many digits were printed behind its point."""

    digits: int

    def __new__(cls, text: str):
        self = super().__new__(cls, text)
        mantissa, _, exponent = text.lower().replace("_", "").partition("e")
        self.digits = max(0, len(mantissa.partition(".")[2]) - int(exponent or 0))
        return self


def _make(cls, given: Any, where: str):
    """Build a dataclass from a TOML table, refusing unknown, missing and wrongly typed fields."""
    if not isinstance(given, dict):
        raise CatalogError(f"{where}: expected a table, got {type(given).__name__}")
    known = {f.name: f for f in fields(cls)}
    for name in given:
        if name not in known:
            raise CatalogError(f"{where}: unknown field {name!r}; known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, spec in known.items():
        label = f"{where}: {name}"
        if name not in given:
            if spec.default is MISSING and spec.default_factory is MISSING:
                raise CatalogError(f"{where}: field {name!r} is missing")
            continue
        value: Any = given[name]
        kind = str(spec.type)
        if kind in _NESTED:
            values[name] = _make(_NESTED[kind], value, label)
            continue
        if cls is Claim and name == "value":
            values["digits"] = getattr(value, "digits", 0)
        types = _TYPES[kind]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise CatalogError(f"{label} should be {' or '.join(t.__name__ for t in types)}, got {value!r}")
        if kind == "tuple[Claim, ...]":
            rows: list[Any] = list(given[name])
            value = tuple(_make(Claim, row, f"{where}: claims[{i}]") for i, row in enumerate(rows))
        elif isinstance(value, _Number):
            value = float(value)
        elif isinstance(value, list):
            item = str if "str" in kind else int
            if not all(isinstance(v, item) for v in value):
                raise CatalogError(f"{label} should hold only {item.__name__}, got {value!r}")
            value = tuple(value)
        values[name] = value
    return cls(**values)


def load_file(path: str | Path) -> Paper:
    """Read and check one file.

    Raises:
        CatalogError: names the file and the field that is wrong.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=_Number)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path.name}: not valid TOML: {error}") from error
    if "slug" in table:
        raise CatalogError(f"{path.name}: field 'slug' is the file's name; leave it out")
    paper = _make(Paper, {**table, "slug": path.stem}, path.name)

    def check(good: bool, name: str, why: str) -> None:
        if not good:
            raise CatalogError(f"{path.name}: {name}: {why}")

    for name in ("title", "venue", "task", "summary"):
        check(bool(getattr(paper, name).strip()), name, "is empty")
    check(paper.kind in KINDS, "kind", f"{paper.kind!r} is not one of {', '.join(KINDS)}")
    check(1950 <= paper.year <= 2100, "year", f"{paper.year} is not a year of a paper")
    check(
        paper.arxiv == "" or bool(re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)),
        "arxiv",
        f"{paper.arxiv!r} is not like 2201.03545",
    )
    sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paper.summary.strip()) if s]
    check(len(sentences) == 2, "summary", f"should be two sentences, has {len(sentences)}")
    seen: set[str] = set()
    for i, claim in enumerate(paper.claims):
        where = f"claims[{i}] ({claim.id})"
        check(
            bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id)),
            f"{where}.id",
            "should be lower-case words joined by '-'",
        )
        check(claim.id not in seen, f"{where}.id", "stands twice")
        seen.add(claim.id)
        check((claim.value is None) != (claim.statement == ""), f"{where}.value", "give either a value or a statement")
        link = claim.evidence.proof
        if link is not None:
            check(
                link.protocol in ("same", "small"),
                f"{where}.evidence.proof.protocol",
                f"{link.protocol!r} is not same or small",
            )
            check(
                (link.protocol == "same") == (claim.value is not None),
                f"{where}.evidence.proof.protocol",
                "a number needs a figure of the same protocol, a statement an effect (small)",
            )
        if claim.protocol is not None:
            check(claim.value is not None, f"{where}.protocol", "a statement has no protocol")
            check(claim.protocol.seeds >= 1, f"{where}.protocol.seeds", "is below 1")
        count = claim.evidence.structural
        if count is not None:
            check(count.count in COUNTS, f"{where}.evidence.structural.count", f"give one of {', '.join(COUNTS)}")
            check(claim.value is not None, f"{where}.evidence.structural", "a count supports a number")
            check(claim.unit in SCALES, f"{where}.unit", f"{claim.unit!r} of a count is not one of {', '.join(SCALES)}")
    check(bool(paper.claims), "claims", "a paper claims something; give at least one")
    return paper


def load_dir(folder: str | Path) -> list[Paper]:
    """Read and check every ``*.toml`` of a folder, in the order of their names."""
    return [load_file(p) for p in sorted(Path(folder).glob("*.toml"))]


@cache
def _all() -> dict[str, Paper]:
    return {p.slug: p for p in load_dir(FOLDER)}


def papers(kind: str | None = None, search: str | None = None) -> list[Paper]:
    """The papers, by slug.

    Args:
        kind: only this kind.
        search: only those in whose slug, title, task or summary every one of these words stands.
    """
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    words = (search or "").lower().split()
    return [
        p
        for p in _all().values()
        if (kind is None or p.kind == kind)
        and all(w in f"{p.slug} {p.title} {p.task} {p.summary} {' '.join(p.authors)}".lower() for w in words)
    ]


def paper(slug: str) -> Paper:
    """One paper; ``_`` may stand for ``-``. An unknown slug is refused with the nearest ones."""
    found = _all().get(slug.replace("_", "-"))
    if found is None:
        raise unknown("paper", slug, _all())
    return found
