"""docs/ as a site: no warning, every page in its place, no link that leads nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.docs import DOCS, ROOT

MKDOCS = ROOT / ".feedloom" / "docs" / "bin" / "mkdocs"
LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Links(HTMLParser):
    """What a page loads, what it leads to, and what on it may be led to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.leads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if name := given.get("id"):
            self.anchors.add(name)
        for attribute in ("src", "href"):
            if address := given.get(attribute):
                unasked = tag == "link" and given.get("rel") in ("canonical", "next", "prev")
                if (tag, attribute) in LOADS and not unasked:
                    self.loads.add(address)
                elif tag == "a":
                    self.leads.add(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    assert MKDOCS.is_file(), "the site's builder is not installed: make docs"
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [str(MKDOCS), "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_built_and_has_a_place_in_the_order(built: dict[Path, Links]) -> None:
    wanted = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert placed() == wanted, "mkdocs.yml: give a new page a place under `nav`"
    assert len(built) == len(wanted)


def placed() -> set[str]:
    """The pages that the navigation names."""
    found: set[str] = set()
    waiting = [yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str):
            assert entry not in found, f"mkdocs.yml names {entry} twice"
            found.add(entry)
        else:
            waiting += entry.values() if isinstance(entry, dict) else entry
    return found


def test_no_page_leads_nowhere(built: dict[Path, Links], site: Path) -> None:
    for page, links in built.items():
        for address in links.leads | links.loads:
            url = urlsplit(address)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            where = f"{page.relative_to(site)}: {address}"
            assert target.is_file(), where
            if url.fragment and target in built and url.fragment != "__skip":
                assert unquote(url.fragment) in built[target].anchors, where


def test_no_page_asks_another_host_for_anything(built: dict[Path, Links], site: Path) -> None:
    for page, links in built.items():
        assert not [address for address in links.loads if urlsplit(address).netloc], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_the_search_knows_every_page(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    titles = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {path.removesuffix(".md") for path in placed()} >= {
        name.removesuffix(".html").replace("operations/index", "operations/README")
        for name in titles
        if name
    }
    assert len(titles) >= len(placed()) - 1


def test_a_link_to_a_file_of_the_repository_shows_that_file(
    built: dict[Path, Links], site: Path
) -> None:
    copied = {path.relative_to(site / "source") for path in (site / "source").rglob("*.txt")}
    assert copied
    for path in copied:
        assert (site / "source" / path).read_bytes() == (
            ROOT / str(path).removesuffix(".txt")
        ).read_bytes()
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(((?:\.\./)+[^)#\s]+)\)", page.read_text()):
            target = (page.parent / link).resolve()
            assert target.is_file(), f"{page.relative_to(ROOT)}: {link}"
            if DOCS not in target.parents:
                assert Path(f"{target.relative_to(ROOT)}.txt") in copied
