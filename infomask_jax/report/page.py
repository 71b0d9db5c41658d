"""report.html: the tables and pictures of a run on one page, which needs no other file and no network."""

import base64
import json
from pathlib import Path

import jinja2

from infomask_jax.report.audit import audit_sheets
from infomask_jax.report.stored import read_audit, read_scores, shown
from infomask_jax.report.table import heading, remarks, sheets

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --dim: #888; --good: #178a3a; --bad: #c0392b }
  body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
  .wide { overflow-x: auto; margin: 1.2rem 0 }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  caption { text-align: left; font-weight: 600; padding: .3rem 0 }
  th, td { padding: .2rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
  th:first-child { text-align: left; font-weight: 500 }
  thead th { font-weight: 600; vertical-align: bottom }
  tr.group th { color: var(--dim); font-style: italic }
  td small { display: block; color: var(--dim); white-space: nowrap }
  .green { color: var(--good) } .red { color: var(--bad) }
  p.note { color: var(--dim); margin: .1rem 0; font-size: .9rem }
  figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto; background: #fff }
  summary { cursor: pointer; margin: 1rem 0; font-weight: 600 } pre { overflow-x: auto; font-size: .85rem }
</style>
{% macro table(sheet) %}
<div class="wide"><table>
  <caption>{{ sheet.title }}</caption>
  <thead><tr>{% for heading in sheet.headings %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in sheet.rows %}
    {% if loop.changed(row.group) and row.group %}
    <tr class="group"><th colspan="{{ sheet.headings | length }}">{{ row.group }}</th></tr>
    {% endif %}
    <tr><th scope="row">{{ row.name }}</th>
      {% for cell in row.cells %}<td class="{{ cell.verdict }}">
        {%- if cell.bold %}<b>{{ cell.text }}</b>{% else %}{{ cell.text }}{% endif %}{{ cell.mark }}
        {%- if cell.below %}<small>{{ cell.below }}</small>{% endif %}</td>{% endfor %}
    </tr>
  {% endfor %}
  </tbody>
</table>{% for note in sheet.notes %}<p class="note">{{ note }}</p>{% endfor %}</div>
{% endmacro %}
<h1>{{ name }}</h1>
<p>{{ made }}</p>
{% for part in parts %}
<h2>{{ part.title }}</h2>
{% for sheet in part.sheets if sheet.kind != "protocol" %}{{ table(sheet) }}{% endfor %}
{% if part.sheets | selectattr("kind", "equalto", "protocol") | list %}
<details><summary>Published protocols</summary>
{% for sheet in part.sheets if sheet.kind == "protocol" %}{{ table(sheet) }}{% endfor %}
</details>
{% endif %}
{% for line in part.lines %}<p>{{ line }}</p>{% endfor %}
{% endfor %}
<h2>Pictures</h2>
{% for title, data in figures %}
<figure><img src="data:image/png;base64,{{ data }}" alt="{{ title }}"></figure>
{% else %}<p>None drawn.</p>
{% endfor %}
<h2>Settings</h2>
<details><summary>config.json and manifest.json</summary><pre>{{ config }}</pre><pre>{{ manifest }}</pre></details>
</html>
"""


def run_page(output: Path, run) -> str:
    """HTML of every scored split, every audit and every figure in `output`, and of how `run` (run.Run) was made.

    Pictures are inside the page. `output` is the run or its on-NAME-FINGERPRINT.
    """
    parts = []
    for path in sorted((output / "eval").glob("[!.]*.json"), key=lambda path: (path.stem != "test", path.stem)):
        try:
            with shown(path):
                if path.stem.startswith("audit_"):
                    title, tables, lines = audit_sheets(read_audit(path))
                else:
                    result = read_scores(path)
                    title, tables, lines = heading(result), sheets(result), remarks(result)
        except ValueError as error:  # of another version, and not what was asked for
            title, tables, lines = path.stem, [], [f"{path.name} is not of this version: score that split again"]
            print(f"report.html goes without {error}")
        parts.append({"title": title, "sheets": tables, "lines": lines})
    manifest = run.manifest
    devices = ", ".join(sorted(set(manifest["devices"])))
    made = (
        f"Seed {manifest['seed']}, trained on {manifest['dataset']['name']}, revision {manifest['git_revision']}, "
        f"jax {manifest['libraries']['jax']}, {len(manifest['devices'])} x {devices}."
    )
    drawn = sorted((output / "figures").rglob("[!.]*.png"))
    figures = [
        (path.relative_to(output).as_posix(), base64.b64encode(path.read_bytes()).decode("ascii")) for path in drawn
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE).render(
        name=f"InfoMask: {output.absolute().name}",
        made=made,
        parts=parts,
        figures=figures,
        config=(run.folder / "config.json").read_text(),
        manifest=json.dumps(manifest, indent=1),
    )
