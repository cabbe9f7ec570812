"""A hook of mkdocs: a link from a page to a file of the repository outside docs/ works on the site.

The file is copied to ``source/PATH.txt``, so that a browser shows it. mkdocs itself calls such a
link a mistake, and one to a file that is not there still is.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    root = Path(config.config_file_path).parent
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def copied(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if path.startswith(("docs/", "..")) or not (root / path).is_file():
            return link[0]
        copy = f"source/{path}.txt"
        if copy not in files.src_uris:
            files.append(File.generated(config, copy, abs_src_path=str(root / path)))
        return f"]({posixpath.relpath(copy, posixpath.dirname(page.file.src_uri) or '.')})"

    return LINK.sub(copied, markdown)
