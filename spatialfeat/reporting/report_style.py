"""The style sheet of the report: light and dark, narrow and wide screens, print."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #59636e; --line: #d0d7de; --card: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --back: #15181c; --soft: #a3acb6; --line: #3b434c; --card: #20252b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 48rem; }
a { color: inherit; }
nav { font-size: 0.9rem; }
nav a { display: inline-block; margin: 0 0.9rem 0.2rem 0; padding: 0.2rem 0; }
.note, figcaption, caption { color: var(--soft); font-size: 0.9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  overflow-wrap: normal; }
thead th { border-bottom-width: 2px; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; font-weight: 500; }
table.worded td:last-child, table.worded th:last-child { text-align: left; white-space: normal; min-width: 15rem; }
tbody th { position: sticky; left: 0; background: var(--back); max-width: 22rem; white-space: normal; }
table.worded tbody th { white-space: nowrap; }
caption span { display: block; position: sticky; left: 0; max-width: min(48rem, 100vw - 2rem); }
dl.facts { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.15rem 1rem; font-size: 0.9rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0.7rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.6rem 0.8rem; }
.card .what { font-weight: 600; }
.card .value { font-size: 1.6rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.card .how { color: var(--soft); font-size: 0.85rem; }
.tiles { position: absolute; }
.swatch { width: 1.3rem; height: 0.87rem; vertical-align: -0.1rem; margin-right: 0.4rem; }
figure { margin: 1rem 0; }
.picture .scroll, .ribbon .stage { background: #ffffff; border-radius: 0.3rem; }
.picture .scroll { padding: 0.5rem; }
.picture img { display: block; width: 100%; min-width: 34rem; max-width: 60rem; height: auto; margin: 0 auto; }
.picture.small img { max-width: 34rem; min-width: 24rem; }
.picture.middle img { max-width: 46rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0; font-size: 0.9rem; }
.ribbon { margin: 1.3rem 0; }
.ribbon figcaption b { color: var(--text); }
.ribbon .grid { display: grid; grid-template-columns: 9.5rem minmax(0, 1fr); column-gap: 0.6rem; margin-top: 0.3rem; }
.ribbon .names { font-size: 0.8rem; text-align: right; }
.ribbon .names div { height: 23px; line-height: 20px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.ribbon .stage { position: relative; border: 1px solid var(--line); border-radius: 0; align-self: start; }
.ribbon .stage svg { display: block; width: 100%; }
.ribbon .stage span { position: absolute; transform: translateX(-50%); font-size: 11px; line-height: 20px;
  white-space: nowrap; }
.ribbon .unit { text-align: right; color: var(--soft); font-size: 0.75rem; }
.ribbon .axis { position: relative; height: 1.3rem; font-size: 0.75rem; color: var(--soft); }
.ribbon .axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.ribbon .axis span:first-child { transform: none; }
dl.words dt { font-weight: 600; margin-top: 0.6rem; }
dl.words dd { margin: 0 0 0 1rem; max-width: 48rem; }
@media (max-width: 40rem) {
  body { padding: 0.7rem; }
  .ribbon .grid { grid-template-columns: 5.6rem minmax(0, 1fr); column-gap: 0.4rem; }
  .ribbon .names { font-size: 0.72rem; }
  .ribbon .stage span.short { display: none; }
  th, td { padding: 0.25rem 0.5rem; }
  tbody th, table.worded tbody th { min-width: 7rem; max-width: 50vw; white-space: normal; overflow-wrap: break-word; }
}
@media print {
  :root { color-scheme: light; --text: #000000; --back: #ffffff; --soft: #444444; --line: #bbbbbb; --card: #ffffff; }
  @page { margin: 14mm 12mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.12rem 0.35rem; }
  tbody th { position: static; }
  thead { display: table-header-group; }
  tr, figure, .card, .scroll { break-inside: avoid; }
  h1, h2, h3, caption { break-after: avoid; }
  .picture img { min-width: 0; max-width: 100%; max-height: 230mm; width: auto; }
  .picture.small img { max-height: 105mm; }
  .picture.middle img { max-height: 150mm; }
}
"""
