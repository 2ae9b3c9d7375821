"""How a page is made of a template: one file with everything in it, readable without a network and safe to open.

Texts of models may hold anything. Jinja2 escapes every value, figures travel as JSON with ``<``, ``>`` and ``&``
escaped, and the page's own content security policy runs only the scripts of ours and loads nothing from anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from nemotron.errors import NotAvailableError
from nemotron.install import install_extra
from nemotron.reports.figures import Figure


def page(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """The HTML of a template with the figures that have something to draw.

    Raises:
        NotAvailableError: jinja2 or plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    drawn = [figure for figure in figures if figure.data]
    return plain_page(
        template,
        figures=drawn,
        figure_data=[{"id": f.id, "data": f.data, "layout": f.layout} for f in drawn],
        plotly=get_plotlyjs(),
        nonce=secrets.token_urlsafe(16),
        **values,
    )


def plain_page(template: str, *, trusted: Sequence[str] = ("plotly",), **values: Any) -> str:
    """The HTML of a template without figures; ``trusted`` names values that are code of ours, and not escaped.

    Raises:
        NotAvailableError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    loader = PackageLoader("nemotron.reports", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = {name: Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js")}
    code = {name: Markup(values.pop(name)) for name in trusted if name in values}
    return environment.get_template(template).render(css=own["report.css"], script=own["report.js"], **code, **values)


def _missing(error: ModuleNotFoundError) -> NotAvailableError:
    return NotAvailableError(f"reports need the package `{error.name}`", hint=install_extra("local"))
