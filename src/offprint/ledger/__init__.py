"""The ledger: what was measured, when, and on what machine.

SQLite in the user's data folder by default; ``OFFPRINT_LEDGER`` or ``Ledger(url)`` may name any SQLAlchemy URL. Several
processes may write at once, and a killed writer leaves no half-written row.
"""

from __future__ import annotations

import datetime
import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    DateTime,
    Float,
    Integer,
    String,
    create_engine,
    delete,
    event,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from offprint.errors import LedgerError

PACKAGES = ("offprint", "torch", "torchvision", "torch_geometric", "lightning", "numpy", "timm", "monai")


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a figure."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, Any]:
    """System, processor, cores and accelerator."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (r.split(":", 1)[1].strip() for r in info.read_text().splitlines() if r.startswith("model name")), model
        )
    return {
        "system": platform.system(),
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
    }


class Base(DeclarativeBase):
    pass


class Row(Base):
    """One run of one proof."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    slug: Mapped[str] = mapped_column(String(80), index=True)
    mode: Mapped[str] = mapped_column(String(8))
    date: Mapped[str] = mapped_column(String(40))
    ok: Mapped[bool] = mapped_column(Boolean)
    seconds: Mapped[float] = mapped_column(Float)
    figures: Mapped[dict] = mapped_column(JSON)
    bands: Mapped[list] = mapped_column(JSON)
    question: Mapped[str] = mapped_column(String(1000))
    data: Mapped[str] = mapped_column(String(1000))
    source: Mapped[str] = mapped_column(String(16), server_default="", default="")
    versions: Mapped[dict] = mapped_column(JSON)
    machine: Mapped[dict] = mapped_column(JSON)


class Measurement(Base):
    """One run of a claim's own protocol (``offprint reproduce``); its metrics stand or fall together."""

    __tablename__ = "measurements"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    slug: Mapped[str] = mapped_column(String(80), index=True)
    model: Mapped[str] = mapped_column(String(120))
    weights: Mapped[str] = mapped_column(String(400))
    tag: Mapped[str] = mapped_column(String(80), server_default="", default="")
    protocol: Mapped[str] = mapped_column(String(400))
    metrics: Mapped[dict] = mapped_column(JSON)
    items: Mapped[int] = mapped_column(Integer)
    seeds: Mapped[int] = mapped_column(Integer)
    partial: Mapped[bool] = mapped_column(Boolean)
    data_digest: Mapped[str] = mapped_column(String(64))
    seconds: Mapped[float] = mapped_column(Float)
    date: Mapped[str] = mapped_column(String(40))
    modules: Mapped[list] = mapped_column(JSON)
    source: Mapped[str] = mapped_column(String(16))
    versions: Mapped[dict] = mapped_column(JSON)
    machine: Mapped[dict] = mapped_column(JSON)


class Part(Base):
    """A finished unit of a proof that has not ended yet."""

    __tablename__ = "parts"
    run: Mapped[str] = mapped_column(String(160), primary_key=True)
    key: Mapped[str] = mapped_column(String(160), primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)
    written: Mapped[datetime.datetime] = mapped_column(DateTime, server_default=func.now())


def default_url() -> str:
    """``OFFPRINT_LEDGER``, or SQLite in the user's data folder."""
    import platformdirs

    given = os.environ.get("OFFPRINT_LEDGER")
    if given:
        return given if "://" in given else f"sqlite:///{Path(given).expanduser()}"
    return f"sqlite:///{Path(platformdirs.user_data_dir('offprint')) / 'ledger.sqlite'}"


class Ledger:
    """The book of runs.

    Args:
        url: SQLAlchemy URL; ``None`` for :func:`default_url`.

    Raises:
        LedgerError: the database cannot be opened or written.
    """

    def __init__(self, url: str | None = None):
        self.url = url or default_url()
        try:
            file = make_url(self.url).database if self.url.startswith("sqlite:///") else None
            if (
                file and file != ":memory:" and not file.startswith("file:")
            ):  # file: is SQLite's own address, mode and all
                Path(file).parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(self.url, connect_args={"timeout": 60} if self.url.startswith("sqlite") else {})
            if self.url.startswith("sqlite"):
                event.listen(self.engine, "connect", _wal)
            Base.metadata.create_all(self.engine)
            self._add_missing_columns()
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise self._error("opened", error) from error

    def _add_missing_columns(self) -> None:
        """Columns that tables of an older version lack; each has a default for the rows that are there."""
        having = inspect(self.engine)
        for table in Base.metadata.sorted_tables:
            known = {column["name"] for column in having.get_columns(table.name)}
            for column in table.columns:
                if column.name not in known and column.server_default is not None:
                    kind = column.type.compile(self.engine.dialect)
                    with self.engine.begin() as connection:
                        connection.execute(
                            text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind} NOT NULL DEFAULT ''")
                        )

    def _error(self, what: str, error: Exception) -> LedgerError:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        return LedgerError(
            f"the ledger {self.url} cannot be {what} ({reason}); set OFFPRINT_LEDGER to a file you can write or a SQLAlchemy URL"
        )

    def record(self, verdict) -> int:
        """Enter a verdict of :func:`offprint.prove`; returns its row number."""
        row = Row(
            slug=verdict.slug, mode=verdict.mode, date=verdict.date, ok=verdict.ok, seconds=verdict.seconds,
            figures=verdict.figures, bands=verdict.bands, question=verdict.question, data=verdict.data, source=verdict.source,
            versions=verdict.versions, machine=verdict.machine,
        )  # fmt: skip
        return self._write(row)

    def _write(self, row):
        try:
            with Session(self.engine) as session, session.begin():
                merged = session.merge(row)
                session.flush()
                return getattr(merged, "id", None)
        except SQLAlchemyError as error:
            raise self._error("written", error) from error

    def measure(self, **fields) -> int:
        """Enter a measurement (columns of :class:`Measurement`); date, versions and machine are added. Returns its number."""
        return self._write(Measurement(date=now(), versions=versions(), machine=machine(), **fields))

    def measurements(self, slug: str | None = None) -> list[dict[str, Any]]:
        """Measurements as plain rows, newest first, as :func:`offprint.catalog.evidence.level` takes them."""
        query = select(Measurement).order_by(Measurement.id.desc())
        query = query.where(Measurement.slug == slug) if slug else query
        try:
            with Session(self.engine) as session:
                names = [c.name for c in Measurement.__table__.columns]
                return [{name: getattr(row, name) for name in names} for row in session.scalars(query)]
        except SQLAlchemyError as error:
            raise self._error("read", error) from error

    def check_writable(self) -> None:
        """Fail now, before any work, if a row could not be written later."""
        self.keep_part("-", "writable", now())
        self.forget_parts("-")

    def runs(self, slug: str | None = None, mode: str | None = None) -> list[Row]:
        """All runs, newest first."""
        query = select(Row).order_by(Row.id.desc())
        query = query.where(Row.slug == slug) if slug else query
        query = query.where(Row.mode == mode) if mode else query
        try:
            with Session(self.engine, expire_on_commit=False) as session:
                return list(session.scalars(query))
        except SQLAlchemyError as error:
            raise self._error("read", error) from error

    def latest(self, mode: str | None = None) -> dict[str, Row]:
        """Slug → its newest run."""
        newest: dict[str, Row] = {}
        for row in self.runs(mode=mode):
            newest.setdefault(row.slug, row)
        return newest

    def part(self, run: str, key: str):
        """A kept part, or ``None``."""
        with Session(self.engine) as session:
            found = session.get(Part, (run, key))
            return None if found is None else found.value

    def keep_part(self, run: str, key: str, value) -> None:
        """Keep the result of a unit of work."""
        self._write(Part(run=run, key=key, value=value))

    def forget_parts(self, run: str) -> None:
        """Drop the parts of a run that has ended."""
        try:
            with Session(self.engine) as session, session.begin():
                session.execute(delete(Part).where(Part.run == run))
        except SQLAlchemyError as error:
            raise self._error("written", error) from error


def _wal(connection, _record) -> None:
    """Let readers and a writer work at once, and wait for each other rather than fail."""
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA busy_timeout=60000")
        cursor.execute("PRAGMA journal_mode=WAL")
    except Exception:  # noqa: BLE001  a read-only file keeps its journal mode; writing to it is refused later, with its own message
        pass
    finally:
        cursor.close()
