"""What pages show of the repository outside `docs/` comes along: results, and their pictures. A hook of MkDocs."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"(\]\()\.\./([^)#]+)")
"""A link out of `docs/`, as it works where the repository is read."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each file that a page links to outside, under the path that it has in the repository.

    Raises:
        FileNotFoundError: it is not there.
    """
    docs = Path(config.docs_dir)
    linked = {path for page in docs.glob("*.md") for _, path in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str((docs.parent / path).resolve(strict=True))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links find it there."""
    return OUTSIDE.sub(r"\1\2", markdown)
