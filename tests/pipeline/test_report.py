# SPDX-License-Identifier: Apache-2.0
"""The report: one page, no script, equal size equal bytes, whatever the evidence is called."""

from __future__ import annotations

import base64
import doctest
import hashlib
import importlib.util
import re
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from analysis.schema import COVERAGE_WHAT
from evidence_store.errors import IntegrityError
from evidence_store.ledger import Draft
from evidence_store.store import Store
from evidence_store.verify import verify_case
from pipeline.errors import PipelineError
from pipeline.report import chart, render, text
from pipeline.report.chart import MAX_BINS, bins, floor, label, unit_for
from pipeline.report.gaps import MEANINGS
from pipeline.report.text import facts, visible, visible_text


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_by = _sibling("report_case")
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Holds a page against what every page must be; keeps what tests ask for."""

    def __init__(self, raw):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.images, self.tags, self.ids = [], [], [], set(), []
        self.pre, self.texts, self.styles, self.heads = {}, [], [], []
        self.feed(raw.decode())
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *a) for a in attrs]
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "img":
            self.images.append(found)
        if re.fullmatch("h[1-6]", tag):
            self.heads.append(int(tag[1]))
        if tag == "pre" and "id" in found:
            self.pre[found["id"]] = ""
        if tag not in VOID:
            self.open.append((tag, found.get("id")))

    def handle_endtag(self, tag):
        assert self.open, (tag, self.getpos())
        assert self.open[-1][0] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if not self.open:
            assert not data.strip()
            return
        tag, _ = self.open[-1]
        if tag == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)
        for outer, outer_id in self.open:
            if outer == "pre" and outer_id:
                self.pre[outer_id] += data

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))


def check_page(raw):
    """Hold the promises of every page; return it parsed."""
    page = Page(raw)
    outside = re.sub(rb"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", b"PICTURE", raw)
    markup = re.sub(rb">[^<]*<", b"><", outside)  # tags only
    assert "script" not in page.tags
    assert not page.tags & {"iframe", "object", "embed", "form", "base", "link", "svg", "input"}
    assert b"<script" not in outside.lower()
    assert not any(name.startswith("on") or name == "style" for _, name, _ in page.attributes)
    assert not re.search(rb"https?:", markup)
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/svg+xml;base64," if tag == "img" else "#"), value
    targets = {v[1:] for _, name, v in page.attributes if name == "href"}
    assert targets <= set(page.ids)
    labelled = {v for _, name, v in page.attributes if name == "aria-labelledby"}
    assert labelled <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    (style,) = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [v for t, n, v in page.attributes if n == "content" and "default-src" in v]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert all(later - earlier <= 1 for earlier, later in pairwise(page.heads))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]",
                         raw.decode())  # fmt: skip
    return page


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return made_by.quiet(tmp_path_factory.mktemp("quiet"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return made_by.hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def quiet_page(quiet, tmp_path_factory):
    """The report of the quiet case: its folder."""
    return render(quiet.case, tmp_path_factory.mktemp("page") / "out").parent


@pytest.fixture(scope="module")
def hostile_page(hostile, tmp_path_factory):
    return render(hostile.case, tmp_path_factory.mktemp("page") / "out").parent


def read(folder):
    return (folder / "index.html").read_bytes()


def rendered(made, place, **more):
    index = render(made.case, place, **more)
    assert index == place / "index.html"
    return index.read_bytes()


def test_a_page_without_script_that_loads_nothing(quiet, tmp_path):
    raw = rendered(quiet, tmp_path / "new" / "out")
    page = check_page(raw)
    assert {p.name for p in (tmp_path / "new" / "out").iterdir()} <= {"index.html", "verify.sh"}
    checkpoint = quiet.case.latest_checkpoint()
    assert str(checkpoint) in page.text
    assert quiet.case.ledger.ring.first in "".join(page.texts)
    for logged in quiet.case.ledger.entries:
        assert logged.sha256 in page.text
    manifest = quiet.case.manifest("E0001")
    for part in (manifest.image_root, manifest.content["sha256"], "laptop 7", "INC-7", "J. Doe"):
        assert part in page.text
    assert "every actor below is asserted only" in page.text
    assert "one operator holds both keys" in page.text


def test_equal_size_equal_bytes(quiet, quiet_page, tmp_path):
    first = read(quiet_page)
    again = Store(quiet.store.backend).case("T-1")  # nobody who writes, read afresh
    assert render(again, tmp_path / "b").read_bytes() == first
    assert rendered(quiet, tmp_path / "b") == first  # a report of the same case is replaced
    assert str(tmp_path).encode() not in re.sub(rb"path: [^;<]*", b"", first)


@pytest.mark.chaos
def test_as_of_an_older_checkpoint(tmp_path):
    made = made_by.quiet(tmp_path)
    size = made.case.latest_checkpoint().size
    before = rendered(made, tmp_path / "before")
    item = made.take("later.raw", b"later", text="a later source")
    made.analysed("E0001", files=[made_by.file_row("E0001", 7, "/later")], coverage=[])
    made.case.record(lambda: Draft("item.verified", {"item": "E0001", "result": "failed"}))
    assert rendered(made, tmp_path / "unsealed") == before
    made.seal()
    assert rendered(made, tmp_path / "as-of", as_of=size) == before
    after = rendered(made, tmp_path / "after")
    assert after != before
    page = check_page(after)
    assert "a later source" in page.text
    assert f"item-{item}" in page.ids
    assert "/later" in page.text
    assert "file001" not in page.text  # the newest result counts
    assert "are not those that were acquired" in page.text


def test_no_such_checkpoint(tmp_path):
    made = made_by.Made(tmp_path)
    with pytest.raises(PipelineError) as none:
        render(made.case, tmp_path / "out")
    assert none.value.hint == "impound seal T-1"
    made.seal()
    made.case.record(lambda: Draft("review.noted", {"note": "x"}))
    made.seal()
    with pytest.raises(PipelineError) as other:
        render(made.case, tmp_path / "out", as_of=7)
    assert "1, 2" in other.value.hint
    assert other.value.exit_code == 14
    assert not (tmp_path / "out").exists()


def test_an_empty_case(tmp_path):
    made = made_by.Made(tmp_path, title="", authenticated={"arn": "arn:aws:iam::1:role/x"})
    made.seal()
    page = check_page(rendered(made, tmp_path / "out"))
    assert "No item of evidence is recorded." in page.text
    assert "there was nothing to miss" in page.text
    assert "authenticated: arn: arn:aws:iam::1:role/x" in page.text
    assert not page.images


def test_nothing_known_to_be_missing(quiet_page):
    page = check_page(read(quiet_page))
    assert "Nothing is known to be missing." in page.text
    assert "This does not mean" in page.text
    assert "No job reported anything that it could not read." in page.text


def test_what_is_missing_is_said(hostile_page):
    page = check_page(read(hostile_page))
    assert "Nothing is known to be missing" not in page.text
    assert "Some things are known to be missing" in page.text
    for said in (
        "No entry records that the stored copy was read back",
        "not acquired: the acquisition failed and was not continued",
        "cable <b>loose</b>",
        "The job symbols was not run on this item",
        "did not see everything",
        MEANINGS["content"],
        "a kind that this version does not know",
        "byte 4,096",
        "/gone deleted",
    ):
        assert said in page.text, said


def test_coverage_is_counted_and_capped(tmp_path):
    made = made_by.Made(tmp_path)
    item = made.take("disk.raw", b"\x05" * 10)
    gaps = [made_by.gap_row(item, "content", "the same reason", 2, path=f"/{n:03d}")
            for n in range(50)]  # fmt: skip
    gaps += [made_by.gap_row(item, "inode", f"reason {n:03d}") for n in range(230)]
    made.analysed(item, result="failed", coverage=gaps)
    made.seal()
    page = check_page(rendered(made, tmp_path / "out"))
    assert "the same reason100/000/001/002 and others" in page.text.replace("\n", "")
    assert "31 more; run: impound query T-1" in page.text
    assert "reason 198" in page.text
    assert "reason 199" not in page.text
    assert "The job files (entry" in page.text
    assert "made no rows" in page.text


def test_interrupted_and_unreadable(tmp_path, monkeypatch):
    made = made_by.Made(tmp_path)
    path = tmp_path / "bad.raw"
    path.write_bytes(b"\x06" * 20000)
    source = made_by.open_source(str(path), "disk", text="a failing disk")
    plain = source.readinto

    def failing(view, offset):
        if offset <= 8192 < offset + len(view):
            raise OSError(5, "Input/output error")
        return plain(view, offset)

    monkeypatch.setattr(source, "readinto", failing)
    monkeypatch.setattr(source, "changes", lambda: ["was written to while it was read"])
    made.case.ingest("disk", source, segment_size=made_by.SEGMENT)
    made.case.record(lambda: Draft("item.identified", {
        "item": "E0002", "data": {"kind": "disk", "source": "unplugged", "size": 5}}))  # fmt: skip
    made.case.record(lambda: Draft("acquire.started", {"item": "E0002"}))
    made.seal()
    page = check_page(rendered(made, tmp_path / "out"))
    for said in ("The source refused 4,096 bytes in 1 range", "byte 8,192, 4.0 KiB: Input/output",
                 "was written to while it was read", "stored, with gaps or remarks",
                 "was running or was interrupted", "The job files was not run on this item",
                 "acquisition started, no end recorded"):  # fmt: skip
        assert said in page.text, said


def test_hostile_text_is_shown_and_inert(hostile_page):
    raw = read(hostile_page)
    page = check_page(raw)
    shown = "".join(page.texts)
    for name in made_by.HOSTILE:
        expected = visible_text(f"/{name}" if len(name) <= 399 else f"/{name}"[:400])
        assert expected in shown, name
    assert "(4001 characters in all)" in shown
    assert "invoice\\u202egpj.exe" in shown
    assert b'<span class="esc">\\u202e</span>' in raw
    assert "\\x1b[31mred" in shown
    assert "zero\\x00byte" in shown
    assert "49" not in re.findall(r"/(\S+)\{% raw", shown)
    assert b'<bdi dir="ltr">/\xd7\xa9' in raw
    assert "<script>alert(1)</script> \\u202e" in shown


def test_pictures_stand_in_the_page(quiet_page, hostile_page):
    page = check_page(read(quiet_page))
    assert page.images
    for image in page.images:
        svg = base64.b64decode(image["src"].partition(",")[2]).decode()
        assert svg.startswith("<svg")
        assert "<script" not in svg
        assert not re.search(r'(href|src)="(?!#)', svg)
        assert "mtime: content changed" in svg
        assert "dc:date" not in svg
        assert "Histogram" in image["alt"]
        assert "The same numbers" in page.text
    for image in check_page(read(hostile_page)).images:
        assert "\u202e" not in image["alt"]


def test_time_stamps_that_cannot_be_drawn_are_counted(quiet_page):
    page = check_page(read(quiet_page))
    # 59 names: every fifth atime is zero, btime is never known.
    assert "mtime59000" in page.text
    assert "atime480110" in page.text
    assert "btime05900" in page.text


def test_a_stamp_after_the_acquisition_is_remarked(hostile_page):
    raw = read(hostile_page)
    assert b'<span class="warn">1</span></td><td class="gap">' in raw


def test_lists_are_capped_and_say_so(quiet, quiet_page, tmp_path):
    page = check_page(read(quiet_page))
    more = re.findall(r'(\d+) more; run: impound query T-1 "([^"]+)"', page.text)
    assert [count for count, _ in more] == ["39", "39"]
    from analysis.query import query

    for _, sql in more:
        assert len(query(quiet.case, sql).rows) == 59


def test_the_commands_work_without_us(quiet, quiet_page, tmp_path, need_tool):
    """The shell commands of section 6, as they stand on the page, over the real store."""
    need_tool("openssl")
    page = check_page(read(quiet_page))
    size = quiet.case.latest_checkpoint().size
    names = ["start", "chain", "signatures", "checkpoint", "item", "choose", "image"]
    marked = "\n".join(f"echo '== {n}'\n{page.pre[f'sh-{n}']}" for n in names)
    script = marked.replace("cd STORE", f"cd '{quiet.root}'")
    before = sorted(quiet.root.rglob("*"))
    done = subprocess.run(
        ["sh", "-e", "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    entries, manifest = quiet.case.ledger.entries, quiet.case.manifest("E0001")
    assert said["start"].strip() == str(size)
    assert said["chain"].strip() == entries[size - 1].sha256
    assert sorted(said["signatures"].split()[1::2]) == sorted(
        key.sha256 for key in entries[0].event.keys
    )
    lines = said["checkpoint"].split()
    root = quiet.case.latest_checkpoint().root_text
    assert lines == [entries[0].event.origin, str(size), root, root]
    assert f"{manifest.image_root}  segments.sha256" in said["item"]
    assert f"{quiet.case.item('E0001').manifest_sha256}  manifest.json" in said["item"]
    assert said["item"].count(": OK") == manifest.stored_objects == 3
    assert manifest.holes_bytes == 4 * made_by.SEGMENT
    assert said["image"].split()[0] == manifest.content["sha256"]
    assert sorted(quiet.root.rglob("*")) == before


@pytest.mark.chaos
def test_the_commands_notice_a_change(tmp_path, need_tool):
    need_tool("openssl")
    made = made_by.quiet(tmp_path)
    page = check_page(rendered(made, tmp_path / "out"))
    entry = made.root / "cases/T-1/ledger/0000000000000002.note"
    entry.chmod(0o600)
    entry.write_bytes(entry.read_bytes().replace(b'"result":"ok"', b'"result":"no"'))
    script = "\n".join(page.pre[f"sh-{n}"] for n in ("start", "chain", "signatures", "checkpoint"))
    done = subprocess.run(
        ["sh", "-c", script.replace("cd STORE", f"cd '{made.root}'")], capture_output=True,
        text=True, env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert "BROKEN before 0000000000000003.note" in done.stdout
    assert "BAD SIGNATURE ledger/0000000000000002.note" in done.stdout
    assert done.stdout.split()[-1] != made.case.latest_checkpoint().root_text


def test_the_script_beside_the_page(quiet, quiet_page, need_tool):
    need_tool("openssl")
    page = check_page(read(quiet_page))
    script = quiet_page / "verify.sh"
    assert hashlib.sha256(script.read_bytes()).hexdigest() in page.text
    command = page.pre["sh-script"].replace("STORE", str(quiet.root))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=quiet_page)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("OK")


def test_the_destination_is_not_inside_the_store(quiet, tmp_path):
    for place in (quiet.root, quiet.root / "cases" / "T-1" / "report"):
        with pytest.raises(PipelineError, match="inside the evidence store"):
            render(quiet.case, place)
    link = tmp_path / "link"
    link.symlink_to(quiet.root)
    with pytest.raises(PipelineError, match="inside the evidence store"):
        render(quiet.case, link / "x")
    assert verify_case(quiet.case).findings == []


@pytest.mark.parametrize("name", ["index.html", "verify.sh"])
def test_what_is_not_ours_is_not_overwritten(quiet, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(PipelineError, match="not overwritten"):
        render(quiet.case, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_the_report_of_another_case_is_not_overwritten(quiet, hostile, tmp_path):
    first = rendered(quiet, tmp_path)
    with pytest.raises(PipelineError, match="another case"):
        render(hostile.case, tmp_path)
    assert (tmp_path / "index.html").read_bytes() == first


def test_a_destination_that_cannot_be_written(quiet, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PipelineError):
            render(quiet.case, place)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").symlink_to("/etc/passwd")
    with pytest.raises(PipelineError, match="not overwritten"):
        render(quiet.case, tmp_path / "out")


def test_a_changed_table_is_not_reported(tmp_path):
    made = made_by.quiet(tmp_path)
    part = made.root / "cases/T-1/items/E0002/data/files/00000000.parquet"
    part.chmod(0o600)
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(IntegrityError):
        render(made.case, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hostile_matplotlibrc_in_the_working_directory(quiet, quiet_page, tmp_path, monkeypatch):
    first = read(quiet_page)
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\nfont.size: 40\nsvg.hashsalt: evil\n")
    monkeypatch.chdir(tmp_path)
    assert rendered(quiet, tmp_path / "b") == first


def test_other_tables_are_listed(tmp_path, monkeypatch):
    import pyarrow as pa

    from analysis import query
    from analysis.schema import COVERAGE, FILES
    from pipeline.report import files

    schema = pa.schema([("item", pa.string()), ("path", pa.string())])
    tables = {"files": FILES, "coverage": COVERAGE, "persistence": schema}
    monkeypatch.setattr(files, "TABLES", tables)
    monkeypatch.setattr(files, "_LIVE", ())
    monkeypatch.setattr(query, "TABLES", tables)
    made = made_by.Made(tmp_path)
    item = made.take("disk.raw", b"\x05" * 10)
    monkeypatch.setattr(made_by, "TABLES", tables)
    made.analysed(item, job="persist", coverage=[], persistence=[
        {"item": item, "path": f"/etc/<{n:02d}>"} for n in range(25)])  # fmt: skip
    made.seal()
    page = check_page(rendered(made, tmp_path / "out"))
    assert "Table persistence" in page.text
    assert "/etc/<19>" in page.text
    assert "/etc/<20>" not in page.text
    assert '5 more; run: impound query T-1 "FROM persistence"' in page.text


def test_of_a_live_response_what_matters_is_shown(tmp_path):
    made = made_by.Made(tmp_path)
    item = made.take("disk.raw", b"\x05" * 10)
    common = {"item": item, "item_digest": "0" * 64, "tool": "t", "tool_version": "1", "line": 1,
              "collector": "c", "views": "sockets.proc", "comm": "<evil>", "pid": 66}  # fmt: skip
    socket = {**common, "family": "AF_INET", "protocol": "TCP", "state": "LISTEN",
              "local_address": "0.0.0.0", "local_port": 4444,
              "remote_address": "0.0.0.0"}  # fmt: skip
    made.analysed(item, job="live", coverage=[], live_sockets=[
        socket, {**socket, "state": "ESTABLISHED", "local_port": 5555}],
        live_processes=[{**common, "exe": "/tmp/gone", "exe_deleted": True},
                        {**common, "exe": "/bin/there", "exe_deleted": False}],
        live_environment=[{**common, "name": "AWS_SECRET", "value": "s3cr3t"}])  # fmt: skip
    made.seal()
    page = check_page(rendered(made, tmp_path / "out"))
    for shown in ("Sockets on which a running host listens", "4444", "/tmp/gone", "<evil>"):
        assert shown in page.text
    for hidden in ("5555", "/bin/there", "s3cr3t"):
        assert hidden not in page.text


@pytest.mark.parametrize("seconds", [0, 59, 3000, 10**5, 10**6, 10**7, 10**8, 10**9, 9 * 10**9])
def test_bins_cover_the_span(seconds):
    first = datetime(1970, 5, 17, 3, 4, 5, 6, tzinfo=UTC)
    last = datetime.fromtimestamp(first.timestamp() + seconds, UTC)
    unit = unit_for(first, last)
    starts = bins(first, last, unit)
    assert len(starts) <= MAX_BINS + 1
    assert starts[0] <= first
    assert starts[-1] == floor(last, unit)
    assert starts == sorted(set(starts))
    assert all(floor(start, unit) == start for start in starts)
    assert len({label(start, unit) for start in starts}) == len(starts)


def test_limits_of_the_method_are_no_gaps(tmp_path):
    made = made_by.Made(tmp_path)
    item = made.take("disk.raw", b"\x05" * 10)
    limit = made_by.gap_row(item, "content", "slack space is not read", level="limit")
    made.analysed(item, files=[made_by.file_row(item, 1, "/a")], coverage=[limit])
    made.seal()
    page = check_page(rendered(made, tmp_path / "out"))
    assert "Nothing is known to be missing." in page.text
    assert "Limits of the method" in page.text
    assert "slack space is not read" in page.text


def test_every_kind_of_coverage_has_a_meaning():
    assert set(MEANINGS) == set(COVERAGE_WHAT)


def test_examples():
    for module in (text, chart):
        assert doctest.testmod(module).failed == 0


def test_visible():
    assert visible("plain") == "plain"
    assert visible(None) == ""
    assert visible("\udcff") == '<span class="esc">\\xff</span>'
    assert visible("\U000e0041\u2028") == '<span class="esc">\\U000e0041\\u2028</span>'
    assert visible_text("e\u0301\u0302") == "e\u0301\u0302"
    assert visible_text("e\u0301\u0302\u0303") == "e\u0301\u0302\\u0303"
    assert visible("Größe 日本") == "Größe 日本"
    assert facts({"at_ns": 10**9}) == "at: 1970-01-01 00:00:01 UTC"
