"""HTML pages of the service: the classifier at / and the API reference at /docs. Neither makes third-party requests."""

import html
from typing import Any

from mlpmixer.page import page, policy, style

HOME = page("server")
POLICY = policy(HOME) + "; frame-ancestors 'none'"


def docs(api: dict[str, Any]) -> str:
    """The OpenAPI description of the service as HTML, with the style of the page."""
    parts = [_operation(path, method, what) for path, methods in api["paths"].items() for method, what in methods.items()]
    schemas = [_schema(name, schema) for name, schema in api["components"]["schemas"].items() if "properties" in schema]
    title = html.escape(api["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{style(HOME)}</head><body><main><h1>{title}</h1>'
        f'<p>Version {html.escape(api["info"]["version"])}. Schema: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}<h2>Responses</h2>{''.join(schemas)}</main></body></html>"
    )


def _operation(path: str, method: str, what: dict[str, Any]) -> str:
    rows = [(f"?{p['name']}", p.get("description", "")) for p in what.get("parameters", ())]
    if body := what.get("requestBody"):
        rows.append(("body", f"{body['description']} {', '.join(body['content'])}"))
    for status, answer in what["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        rows.append((status, schema if status == "200" and schema else answer["description"]))
    title = html.escape(f"{method.upper()} {path}")
    return f"<section><h2><code>{title}</code></h2><p>{html.escape(what['summary'])}</p>{_table(rows)}</section>"


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = [(field, f"{_type(what)} {what.get('description', '')}") for field, what in schema["properties"].items()]
    return f"<section><h3>{html.escape(name)}</h3><p>{html.escape(schema.get('description', ''))}</p>{_table(rows)}</section>"


def _type(what: dict[str, Any]) -> str:
    if ref := what.get("$ref"):
        return str(ref).rpartition("/")[2]
    if options := what.get("anyOf"):
        return " or ".join(map(_type, options))
    inner = what.get("items") or (what.get("prefixItems") or [None])[0]
    return f"{what.get('type', '')}" + (f" of {_type(inner)}" if inner else "")


def _table(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows) + "</table>"
