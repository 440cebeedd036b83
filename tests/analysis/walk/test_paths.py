# SPDX-License-Identifier: Apache-2.0
"""Patterns against trees: what is found, what is listed for it, links that attack."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.walk import paths
from analysis.walk.content import DamagedError
from analysis.walk.paths import Finder, Ways, parse
from analysis.walk.rows import Recorder, bare_name
from analysis.walk.tree import below
from tests.analysis.conftest import Kept


class Out(Recorder):
    """A recorder whose entries are picked up."""

    def __init__(self, sink):
        super().__init__(sink, None, evidence=("E0001", ""), tool=("", ""))
        self.picked = []

    def add(self, entry):
        self.picked.append(entry)


@dataclass
class Memory:
    """A tree of dicts; a text is a symbolic link, None a file. Counts what is asked of it."""

    tree: dict
    folds: bool = False
    root: int = 0
    inodes: list = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._number(self.tree)

    def _number(self, node):
        self.inodes.append(node)
        return len(self.inodes) - 1

    def begin(self, out):
        pass

    def end(self, out):
        pass

    def listed(self, inum, failed):
        self.asked.append(inum)
        node = self.inodes[inum]
        for name, child in node.items():
            if isinstance(child, Exception):
                raise child
            known = [n for n, one in enumerate(self.inodes) if one is child and child is not None]
            yield name.encode(), known[0] if known else self._number(child), child

    def look(self, out, place, raw, inum, child):
        name, path, path_raw = below(place, raw)
        self.looked.append(path)
        kind = {dict: "dir", str: "symlink"}.get(type(child), "file")
        entry = bare_name((path, path_raw, name), inum, "allocated", kind)
        out.add(entry._replace(link_target=child if kind == "symlink" else None))
        return kind == "dir"

    def small(self, entry):
        raise DamagedError


def find(tree, *patterns, folds=False, most=paths.MAX_FOUND):
    """Return (path -> numbers of its patterns, finder, tree, sink)."""
    memory, sink = Memory(tree, folds=folds), Kept()
    out, found = Out(sink), {}

    def take(one):
        for entry in one.entries:
            assert entry.path not in found, "given twice"
            found[entry.path] = set(one.patterns)

    finder = Finder(memory, out, out.picked, take, most)
    finder.run([parse(pattern) for pattern in patterns])
    out.close()
    return found, finder, memory, sink


names = st.sampled_from(["a", "b", "ab", ".a"])
trees = st.recursive(
    st.none(), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=20
).map(lambda tree: tree or {})
patterns = st.lists(
    st.sampled_from(["a", "b", "ab", "*", "?", "a*", "[ab]", "**"]), min_size=1, max_size=5
).map(lambda parts: "/" + "/".join(parts))


def every(tree, prefix=""):
    """Every path of a tree."""
    for name, node in tree.items():
        yield f"{prefix}/{name}"
        if isinstance(node, dict):
            yield from every(node, f"{prefix}/{name}")


def as_regex(pattern):
    """A pattern as one expression over whole paths: another way than that of the code."""
    text = ""
    for part in pattern.split("/")[1:]:
        if part == "**":
            text += "(?:/[^/]+)*"
        else:
            text += "/" + part.replace(".", r"\.").replace("*", "[^/]*").replace("?", "[^/]")
    return re.compile(text)


@given(trees, st.lists(patterns, min_size=1, max_size=3))
def test_what_is_found_is_what_the_patterns_name(tree, wanted):
    found, finder, _, sink = find(tree, *wanted)
    expected = {
        path: numbers for path in every(tree)
        if (numbers := {n for n, one in enumerate(wanted) if as_regex(one).fullmatch(path)})
    }  # fmt: skip
    assert found == expected
    assert finder.matched == set().union(*expected.values())
    assert sink.gaps == []


@given(trees, st.lists(patterns, min_size=1, max_size=3))
def test_only_directories_that_can_still_match_are_listed(tree, wanted):
    _, _, memory, _ = find(tree, *wanted)
    ways = Ways([paths.Way(n, parse(one)) for n, one in enumerate(wanted)])
    allowed = 0
    for path in ["", *(p for p in every(tree))]:
        states = ways.start()
        for name in path.split("/")[1:]:
            states, _ = ways.step(states, name)
        node = tree
        for name in path.split("/")[1:]:
            node = node[name]
        allowed += isinstance(node, dict) and bool(ways.open(states))
    assert len(memory.asked) == allowed


def test_a_literal_path_lists_its_own_directories_and_looks_at_nothing_else():
    tree = {"etc": {"passwd": None, "shadow": None, "deep": {"x": None}}, "usr": {"y": None}}
    found, _, memory, _ = find(tree, "/etc/passwd")
    assert found == {"/etc/passwd": {0}}
    assert len(memory.asked) == 2
    assert memory.looked == ["/etc", "/etc/passwd"]


TREE = {
    "run": {"utmp": None, "lock": {"l": None}},
    "bin": "usr/bin",
    "usr": {"bin": {"sh": "dash", "dash": None}, "lib": {"x86": {"c": None}}},
    "var": {"run": "/run", "up": "../run", "far": "../../../../run",
            "odd": "../usr/bin/../lib/x86"},
    "lib64": "bin/../lib/x86",
    "l1": "l2", "l2": "/l1",
    "self": ".",
    "out": "../../etc",
}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/var/run/utmp", "/run/utmp"),
        ("/var/up/utmp", "/run/utmp"),
        ("/var/far/utmp", "/run/utmp"),
        ("/bin/sh", "/usr/bin/sh"),
        ("/var/odd/c", "/usr/lib/x86/c"),
        ("/lib64/c", "/usr/lib/x86/c"),  # `bin` is a link: its `..` is /usr, not /
        ("/self/run/utmp", "/run/utmp"),
        ("/self/self/var/up/utmp", "/run/utmp"),
    ],
)
def test_links_on_the_way_are_followed_as_linux_does(pattern, path):
    found, finder, _, _ = find(TREE, pattern)
    assert found[path] == {0}
    assert finder.followed
    assert {p for p, numbers in found.items() if numbers} == {path}


def test_the_links_on_the_way_are_given_too():
    found, finder, _, _ = find(TREE, "/var/run/utmp")
    assert found == {"/var/run": set(), "/run/utmp": {0}}
    assert finder.followed == {"/var/run": "/run"}


def test_the_last_component_is_the_link_itself():
    found, finder, _, _ = find(TREE, "/var/run")
    assert found == {"/var/run": {0}}
    assert finder.followed == {}


def test_any_directories_go_through_no_link():
    found, finder, _, _ = find(TREE, "/var/**")
    assert set(found) == {"/var", "/var/run", "/var/up", "/var/far", "/var/odd"}
    assert finder.followed == {}


def test_any_directories_below_a_link():
    found, _, _, _ = find(TREE, "/var/run/**")
    assert set(found) == {"/var/run", "/run", "/run/utmp", "/run/lock", "/run/lock/l"}


def test_links_in_a_loop_end():
    found, finder, memory, sink = find(TREE, "/l1/x")
    assert {p for p, numbers in found.items() if numbers} == set()
    assert finder.matched == set()
    assert len(memory.asked) < 10
    assert sink.gaps == []  # the same way a second time is no way


def test_a_chain_of_links_has_an_end():
    chain = {f"l{n}": f"l{n + 1}" for n in range(60)} | {"l60": {"x": None}}
    _, finder, _, sink = find(chain, "/l0/x")
    assert finder.matched == set()
    assert "more than 40 links" in sink.reasons()
    assert find(chain, "/l25/x")[1].matched == {0}


def test_links_that_grow_without_end():
    _, finder, _, sink = find({"a": "a/a", "b": {}}, "/a/x")
    assert finder.matched == set()
    assert "more than 40 links" in sink.reasons()


def test_links_that_branch_without_end(monkeypatch):
    monkeypatch.setattr(paths, "MAX_WAYS", 200)
    tree = {f"l{n}": f"./l{(n + 1) % 9}/l{(n + 2) % 9}" for n in range(9)}
    _, _, _, sink = find(tree, "/*/*/*/*/x")
    assert "ways through links" in sink.reasons()


def test_a_link_out_of_the_volume_stays_in_it():
    found, _, _, _ = find(TREE | {"etc": {"hosts": None}}, "/out/hosts")
    assert found["/etc/hosts"] == {0}


def test_a_directory_that_holds_itself():
    tree = {"a": {}}
    tree["a"]["a"] = tree["a"]
    found, _, _, sink = find(tree, "/a/**")
    assert set(found) == {"/a", "/a/a"}
    assert "already entered" in sink.reasons()


def test_a_directory_that_cannot_be_read_is_a_gap_and_the_rest_goes_on():
    tree = {"bad": {"x": DamagedError("broken")}, "good": {"x": None}}
    found, _, _, sink = find(tree, "/*/x")
    assert found == {"/good/x": {0}}
    assert "broken" in sink.reasons()


def test_more_than_is_taken():
    found, _, _, sink = find({str(n): None for n in range(100)}, "/*", most=10)
    assert len(found) == 10
    assert "more entries match" in sink.reasons()


def test_case_counts_only_where_it_does():
    tree = {"Windows": {"System32": {"SAM": None}}}
    assert find(tree, "/windows/system32/s*", folds=True)[1].matched == {0}
    assert find(tree, "/windows/system32/s*")[1].matched == set()


def test_names_that_are_no_utf_8():
    memory, sink = Memory({}), Kept()
    memory.listed = lambda inum, failed: iter([(b"caf\xe9", 1, None), (b"b", 2, None)])
    out, found = Out(sink), []
    Finder(memory, out, out.picked, found.append).run([parse("/caf?")])
    assert [one.entries[0].path_raw for one in found] == [b"/caf\xe9"]


@pytest.mark.parametrize("bad", ["", "etc/passwd", "/", "//", "/a/../b", "/a\0", "/" + "a" * 5000])
def test_patterns_that_mean_nothing(bad):
    with pytest.raises(ValueError, match=r"is |holds|names"):
        parse(bad)
