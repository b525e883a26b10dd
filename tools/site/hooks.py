"""What the site adds to the pages of docs/: those of other folders, diagrams made from the code, and links that hold.

A page of docs/ links to other files of the repository by their paths, as it does where it is read without the site.
Markdown becomes a page of the site (`PAGES`), any other file is copied beside the pages, so that every link holds.
"""

from __future__ import annotations

import importlib
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.config_options import ExtraScriptValue
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import machines

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "deploy/README.md": "deploy.md",
    "xdk/README.md": "xdk.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "SECURITY.md": "reporting.md",
    "README.md": "index.md",
}
"""Files that are pages of the site, and where."""

PUBLIC = (
    "durable_streams",
    "durable_streams.ai",
    "durable_streams.django",
    "durable_streams.embedded",
    "durable_streams.firehose",
    "durable_streams.relay",
    "durable_streams.server",
    "durable_streams.state",
    "durable_streams.stores.base",
    "durable_streams.testing",
    "durable_streams.testing.contract",
)
"""Modules whose public names the reference has."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_MERMAID = Path(__file__).parent / "mermaid.min.js"  # by tools/site/mermaid
_FILES = "files"  # where files of the repository are, beside the pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of other folders, and what is made from the code."""
    for source, place in PAGES.items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "machines.md", content=machines.page()))
    if _MERMAID.exists():
        files.append(File.generated(config, "assets/mermaid.min.js", abs_src_path=str(_MERMAID)))
        config.extra_javascript.append(ExtraScriptValue("assets/mermaid.min.js"))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give llms.txt the sections of the navigation."""
    sections: dict[str, list[Any]] = {}
    for section in config.nav or []:
        for title, item in section.items():
            sections[title] = list(_places(item))
    config.plugins["llmstxt"].config.sections = sections
    return config


def _places(item: Any) -> Iterator[str]:
    """Return the pages of a part of the navigation, as it stands in mkdocs.yml."""
    if isinstance(item, str):
        yield item
    else:
        for child in item.values() if isinstance(item, dict) else item:
            yield from _places(child)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page at pages and copies of the site."""
    place = page.file.src_uri
    sources = {there: here for here, there in PAGES.items()}
    source = sources.get(place, f"docs/{place}")

    def pointed(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if source.startswith("docs/") and target.startswith("docs/"):
            return link[0]
        return posixpath.relpath(_place(target, config, files), posixpath.dirname(place) or ".") + anchor

    return _LINK.sub(pointed, markdown)


def _place(target: str, config: MkDocsConfig, files: Files) -> str:
    """Return where a file of the repository is in the site, as a path below docs/."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    path = ROOT / target
    if path.is_dir():
        return _place(f"{target}/README.md", config, files)
    if target.endswith(".md"):
        raise PluginError(
            f"{target} is linked, and no page of the site: name it in PAGES of tools/site/hooks.py"
        )
    place = f"{_FILES}/{target}"
    if path.is_file() and files.get_file_from_path(place) is None:
        file = File.generated(config, place, abs_src_path=str(path))
        files.append(file)
        # Pages are being made: what is added now is copied here.
        file.copy_file()
    return place


def on_post_build(config: MkDocsConfig) -> None:
    """Check that the reference has every public name."""
    pages = Path(config.site_dir, "reference").rglob("index.html")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    names = [f"{module}.{name}" for module in PUBLIC for name in importlib.import_module(module).__all__]
    missing = [name for name in names if f'id="{name}"' not in text]
    if missing:
        raise PluginError(f"the reference lacks {', '.join(missing)}: name them in docs/reference/")
