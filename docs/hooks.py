"""A hook of MkDocs for what it leaves as it is: links in notebooks to other pages, and images as HTML."""

import re
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


def on_page_content(html: str, page: Page, files: Files, **kwargs: Any) -> str:
    """Replaces source files in links and images by their addresses on the site."""

    def address(match: re.Match[str]) -> str:
        target = files.get_file_from_path(match[2])
        if target is None:
            raise PluginError(f"{page.file.src_uri} has a link to {match[2]}, which does not exist.")
        return f'{match[1]}="{target.url_relative_to(page.file)}{match[3]}"'

    return re.sub(r'(href|src)="([\w/-]+\.(?:ipynb|md|png))(#[^"]*|)"', address, html)
