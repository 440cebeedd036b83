# SPDX-License-Identifier: Apache-2.0
"""The report as one page: facts as of a checkpoint, put into templates.

Invariants
    - No script. The page's own policy forbids everything but its one style sheet, named by digest,
      and pictures that stand in the page itself.
    - Every value goes through `text.visible`, as the template engine's `finalize`, and is escaped.
    - Equal ledger up to the checkpoint, equal versions: equal bytes. So there is no clock here, no
      host name, no path of this machine, and no word about entries after the checkpoint.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import duckdb
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.query import tables
from evidence_store.store import Case
from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.report import text
from pipeline.report.chart import pictures
from pipeline.report.facts import Covered, cover
from pipeline.report.files import MAX_VOLUMES, TOP, Other, Volume, others, volumes
from pipeline.report.gaps import Unseen, unseen
from pipeline.report.output import MARK, check_destination, write


@dataclass(frozen=True)
class Script:
    """`verify.sh` as it travels with the report."""

    body: bytes

    @property
    def sha256(self) -> str:
        """Its digest."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass(frozen=True)
class Analysed:
    """What the tables of the case gave."""

    volumes: list[Volume]
    volume_count: int
    others: list[Other]
    unseen: Unseen
    pictures: dict[int, str]  # id of a chart -> its address


def render(case: Case, destination: Path, *, as_of: int | None = None) -> Path:
    """Write the report of `case` into the directory `destination`; return its `index.html`.

    Args:
        case: the case; it is read afresh, and nothing is written to its store.
        destination: a directory; made if absent. A report of the same case in it is replaced.
        as_of: number of entries of a stored checkpoint; None: the newest.

    Raises: PipelineError if there is no such checkpoint, or the destination is inside the store,
    belongs to something else, or cannot be written; IntegrityError if the ledger, a manifest or a
    table is not what was recorded; StoreError.
    """
    covered = cover(case, as_of)
    mark = f"{covered.binding.store_id if covered.binding else ''}/{case.case_id}"
    mark = text.visible_text(mark).replace('"', "").replace("&", "").replace("<", "")
    check_destination(case, destination, mark)
    script = _script()
    page = _page(covered, _analysed(covered), script, mark)
    files = {"index.html": (page.encode(), 0o644)}
    if script is not None:
        files["verify.sh"] = (script.body, 0o755)
    write(destination, files)
    return destination / "index.html"


def _script() -> Script | None:
    file = resources.files("evidence_store").joinpath("verify.sh")
    return Script(file.read_bytes()) if file.is_file() else None


def _analysed(covered: Covered) -> Analysed:
    try:
        with tables(covered.case, as_of=covered.size) as connection:
            shown, count = volumes(connection, covered)
            more = others(connection)
            missing = unseen(connection, covered)
    except duckdb.Error as e:
        raise PipelineError(f"the tables of the case cannot be read: {e}") from e
    charts = [chart for volume in shown for chart in volume.charts]
    drawn = dict(zip(map(id, charts), pictures(charts), strict=True))
    return Analysed(shown, count, more, missing, drawn)


def _page(covered: Covered, analysed: Analysed, script: Script | None, mark: str) -> str:
    environment = _environment()
    style = environment.get_template("report.css").render(case_id=covered.case_id,
                                                          size=covered.size)  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        c=covered, a=analysed, script=script, version=__version__, libraries=_libraries(), top=TOP,
        max_volumes=MAX_VOLUMES, style=Markup(style), style_digest=digest,  # noqa: S704
        mark=Markup(MARK.format(mark)),  # noqa: S704
        picture=lambda chart: analysed.pictures[id(chart)],
    )  # fmt: skip


def _libraries() -> str:
    """What else decides the bytes of the page."""
    found = [f"{name} {metadata.version(name)}" for name in ("DuckDB", "Jinja2", "Matplotlib")]
    return f"{', '.join(found[:-1])} and {found[-1]}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=text.visible, auto_reload=False,
        keep_trailing_newline=False,
    )  # fmt: skip
    environment.filters.update(
        attr=text.visible_text, bytes=text.size, facts=text.facts, flat=text.flat,
        groups=text.groups, moment=text.moment, n=text.number, plural=text.plural,
        short=text.shorten, stamp=text.stamp, without=text.without,
    )  # fmt: skip
    return environment
