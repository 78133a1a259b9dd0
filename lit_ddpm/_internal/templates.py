"""Text from the Jinja templates of this package."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lit_ddpm._internal.tables import html_table, markdown_table


def render(template: Path, **values: Any) -> str:
    """Returns the text of a template with the filters ``html_table`` and ``markdown_table``; HTML values are escaped.

    Raises:
        jinja2.UndefinedError: If the template needs a value that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=template.name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(html_table=html_table, markdown_table=markdown_table)
    return environment.get_template(template.name).render(values)
