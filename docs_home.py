"""The site's first page is the README, whose links start one folder higher."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs asks for every page's text before it renders it."""
    if page.file.src_uri == "index.md":
        text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
        return text.replace("[CONTRIBUTING.md](CONTRIBUTING.md)", "`CONTRIBUTING.md`")
    return markdown.replace("[README](../README.md)", "[README](index.md)")
