// One HTML page without scripts or links to anywhere: plots are SVG inside it, the records lie in it as JSON.
import type { Environment } from '../experiments/environment.ts';
import type { ExperimentRecord } from '../experiments/records.ts';
import { runsOf, type Table, type View } from './view.ts';

export interface Section {
  record: ExperimentRecord;
  view: View;
  /** SVG of each of the view's plots. */
  drawings: readonly string[];
}

const STYLE = `
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
.question { font-size: 1.1rem; font-style: italic; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; max-width: 100%; } figure svg { max-width: 100%; height: auto; } figcaption { font-size: .85rem; color: #555; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .85rem; color: #555; padding-bottom: .3rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: .85rem; } details { font-size: .9rem; }
nav a { margin-right: 1rem; }`;

/** The page of some experiments. */
export function pageOf(sections: readonly Section[]): string {
  const links = sections.map(({ record }) => `<a href="#${escaped(record.experiment)}">${escaped(record.title)}</a>`);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>mambabyte: experiments</title>
<style>${STYLE}</style>
</head>
<body>
<h1>mambabyte: experiments</h1>
<nav>${links.join('\n')}</nav>
${sections.map(sectionOf).join('\n')}
</body>
</html>
`;
}

function sectionOf({ record, view, drawings }: Section): string {
  const runs = runsOf(record);
  const figures = view.plots.map(
    ({ name, caption }, i) =>
      `<figure id="${escaped(name)}">${drawings[i] ?? ''}<figcaption>${escaped(caption)}</figcaption></figure>`,
  );
  const seconds = record.units.reduce((sum, unit) => sum + unit.seconds, 0);
  return `<section id="${escaped(record.experiment)}">
<h2>${escaped(record.title)}</h2>
<p class="question">${escaped(record.question)}</p>
<ul>${view.findings.map((finding) => `<li>${escaped(finding)}</li>`).join('\n')}</ul>
<div class="plots">${figures.join('\n')}</div>
${view.tables.map(tableOf).join('\n')}
<p>Scale <b>${record.scale}</b>; ${record.units.length} results in ${seconds.toFixed(0)} s.</p>
<pre>${[...new Set(runs.map(({ command }) => command))].map(escaped).join('\n')}</pre>
<details><summary>Machine, versions, data</summary>
${runs.map(environmentOf).join('\n')}
<script type="application/json" id="record-${escaped(record.experiment)}">${embedded(record)}</script>
</details>
</section>`;
}

function tableOf({ caption, head, rows }: Table): string {
  const row = (cells: readonly string[], kind: 'td' | 'th') =>
    `<tr>${cells.map((cell) => `<${kind}>${escaped(cell)}</${kind}>`).join('')}</tr>`;
  return `<div class="wide"><table><caption>${escaped(caption)}</caption>
<thead>${row(head, 'th')}</thead>
<tbody>${rows.map((cells) => row(cells, 'td')).join('\n')}</tbody>
</table></div>`;
}

function environmentOf(run: Environment): string {
  const { began, commit, version, node, system, cpu, cores, memoryBytes, load, device, driver } = run;
  const rows = [
    ['began', began],
    ['mambabyte', commit === null ? version : `${version}, commit ${commit}`],
    ['device', driver === undefined ? device : `${device}, driver ${driver}`],
    ['machine', `${cpu}, ${cores} cores, ${(memoryBytes / 2 ** 30).toFixed(0)} GiB, ${system}`],
    ['load before', `${load.toFixed(1)} threads`],
    ['node', node],
  ];
  const cells = rows.map(([name = '', value = '']) => `<tr><td>${name}</td><td>${escaped(value)}</td></tr>`);
  return `<table>${cells.join('')}</table>`;
}

function escaped(text: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return text.replaceAll(/[&<>"]/g, (char) => entities[char] ?? char);
}

/** JSON that no HTML parser takes for the end of its element. */
function embedded(value: object): string {
  return JSON.stringify(value).replaceAll('<', '\\u003c');
}
