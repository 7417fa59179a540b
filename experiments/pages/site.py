"""Hooks for mkdocs: pages outside of docs/, and links to files that are not on the site."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = {  # file in the repository -> page of the site
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "experiments/README.md": "ledger.md",
    "experiments/LOG.md": "log.md",
}
SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'  # added by the offline plugin, for search without a server
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Remove navigation entries whose page does not exist (yet)."""
    config.nav = _existing(config.nav)
    return config


def _existing(nav: Any) -> Any:
    if isinstance(nav, str):
        return nav if (ROOT / "docs" / nav).exists() or nav in OUTSIDE.values() else None
    if isinstance(nav, dict):
        found = {title: _existing(entry) for title, entry in nav.items()}
        return {title: entry for title, entry in found.items() if entry} or None
    return [entry for entry in map(_existing, nav) if entry]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are outside of docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Rewrite every link to point to a page of the site, or to show the path of a file that is not on the site."""
    name = page.file.src_uri
    source = next((outside for outside, inside in OUTSIDE.items() if inside == name), f"docs/{name}")
    return LINK.sub(lambda match: link(match[1], match[2], match[3] or "", source, name), markdown)


def on_post_page(output: str, *, page: Any, config: MkDocsConfig) -> str:
    """Remove the theme's only external script; as a consequence, pages opened as files have no search."""
    return output.replace(SHIM, "")


def on_post_template(output_content: str, *, template_name: str, config: MkDocsConfig) -> str:
    """Same as ``on_post_page``, for 404.html."""
    return output_content.replace(SHIM, "")


def link(text: str, target: str, anchor: str, source: str, name: str) -> str:
    """The markdown for a link in the repository's file `source`, which is the site's page `name`."""
    path = PurePosixPath(*_normal((PurePosixPath(source).parent / target).parts))
    inside = OUTSIDE.get(str(path)) or (str(path.relative_to("docs")) if path.parts[:1] == ("docs",) else None)
    if inside is None and (ROOT / path).exists():
        return f"`{path}`" if text.strip("`") == str(path) else f"{text} (`{path}`)"
    if inside is None:
        return f"[{text}]({target}{anchor})"  # broken; mkdocs reports it
    return f"[{text}]({'../' * name.count('/')}{inside}{anchor})"


def _normal(parts: tuple[str, ...]) -> list[str]:
    """Parts of a path with `.` and `..` resolved."""
    found: list[str] = []
    for part in parts:
        if part == "..":
            found = found[:-1]
        elif part != ".":
            found.append(part)
    return found
