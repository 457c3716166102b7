// The report: what its sentences say follows from the figures; the page holds everything it shows.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import type { BytesResult } from '../lib/experiments/bytes.ts';
import type { DraftResult } from '../lib/experiments/draft.ts';
import type { LengthResult } from '../lib/experiments/length.ts';
import { MAMBABYTE, SUBWORD } from '../lib/experiments/lineup.ts';
import type { NoiseResult } from '../lib/experiments/noise.ts';
import type { ExperimentRecord } from '../lib/experiments/records.ts';
import type { ScalingResult } from '../lib/experiments/scaling.ts';
import type { SpeedResult } from '../lib/experiments/speed.ts';
import { computeView } from '../lib/report/compute.ts';
import { optional } from '../lib/report/plots.ts';
import { writeReport } from '../lib/report/report.ts';
import { scalingView } from '../lib/report/scaling.ts';
import { speedView } from '../lib/report/speed.ts';
import { folder } from './support/folder.ts';
import { computeResults, RUN, recordOf, trained } from './support/records.ts';

const compute = [
  ...computeResults(MAMBABYTE, 'compute', [2, 2.02]),
  ...computeResults(SUBWORD, 'compute', [2.2, 2.22]),
];
const speed: SpeedResult[] = [MAMBABYTE, 'Transformer'].map((model, i) => ({
  ...{ model, batch: 1, parameters: 1000 },
  points: [1024, 2048].map((context) => ({
    ...{ context, bytesPerSecond: i === 0 ? 500 : 512_000 / context, deviation: 1, repeats: 3, prefillSeconds: 1 },
    stateBytes: i === 0 ? 64 : context,
  })),
}));
const scaling: ScalingResult[] = [MAMBABYTE, 'Transformer'].flatMap((family, i) =>
  [0, 1].map((size) => ({
    ...{ corpus: 'books', family, model: `${family} ${size}`, size, seed: 0 },
    trained: trained(2 - size * 0.5 + i * 0.25, 10 ** (9 + size)),
  })),
);
const noise: NoiseResult[] = [MAMBABYTE, SUBWORD].map((model, i) => ({
  ...{ corpus: 'books', model, seed: 0, clean: { bitsPerByte: 2, wordPerplexity: 40 } },
  noisy: [
    { noise: 'drop', rate: 0.05, bitsPerByte: 2.1 + i, wordPerplexity: 50 },
    { noise: 'antspeak', rate: null, bitsPerByte: 3 + i, wordPerplexity: 60 },
  ],
}));
const length: LengthResult[] = [
  {
    ...{ corpus: 'books', model: MAMBABYTE, seed: 0, context: 64 },
    windows: [1, 2].flatMap((times) => [false, true].map((sliding) => ({ times, sliding, bitsPerByte: 2 }))),
    positions: [0, 0.5, 1].map((from) => ({
      from,
      to: from === 0 ? 0.5 : 2 * from,
      bitsPerByte: 2 - from / 4,
      restarted: 2,
    })),
  },
];
const draft: DraftResult[] = [
  {
    ...{ drafter: 'lookup', mode: 'lossless, greedy', lossless: true, plain: [100, 100], drafted: [150, 170] },
    ...{ identical: 2, passes: 10, proposed: 40, accepted: 30 },
  },
];
const bytes: BytesResult[] = [
  {
    ...{ corpus: 'genome', model: MAMBABYTE, seed: 0, trained: trained(1.9) },
    references: { entropy: 2, gzip: 2.3, brotli: 2.2 },
  },
];
const RECORDS: readonly ExperimentRecord[] = [
  recordOf('compute', compute),
  recordOf('scaling', scaling),
  recordOf('length', length),
  recordOf('noise', noise),
  recordOf('speed', speed),
  recordOf('draft', draft),
  recordOf('bytes', bytes),
];

test('the page shows every record with its command, machine and data, and needs nothing else', async (t) => {
  const out = folder();
  for (const record of RECORDS) writeFileSync(join(out, `${record.experiment}.json`), JSON.stringify(record));
  const { page, pngs } = await writeReport(out);
  const html = readFileSync(page, 'utf8');
  for (const { experiment, title } of RECORDS) {
    t.true(html.includes(`<h2>${title}</h2>`), title);
    const data = new RegExp(`id="record-${experiment}">(.*?)</script>`).exec(html)?.[1] ?? '';
    t.is(JSON.parse(data).experiment, experiment);
  }
  t.true(
    html.includes('mambabyte experiment compute --out &#39;a &lt;b&gt;&#39;') || html.includes("--out 'a &lt;b&gt;'"),
  );
  t.true(html.includes(RUN.cpu));
  t.is(html.match(/<svg/g)?.length, pngs.length);
  const shown = html.replace(/<script.*?<\/script>/gs, '');
  t.is(/.{0,60}(NaN|undefined|Infinity).{0,60}/.exec(shown)?.[0], undefined);
  const links = [...html.matchAll(/(?:src|href)="([^"]*)"/g)].map(([, link]) => link ?? '');
  t.deepEqual(
    links.filter((link) => !link.startsWith('#') && link !== 'data:,'),
    [],
  );
  for (const png of pngs) t.is(readFileSync(png).subarray(1, 4).toString(), 'PNG', png);
  t.is(readdirSync(out).filter((name) => name.endsWith('.png')).length, pngs.length);
});

const CLAIMS: [title: string, bits: [number[], number[]], claim: RegExp][] = [
  [
    'a clear lead',
    [
      [2, 2.02],
      [2.2, 2.22],
    ],
    /MambaByte is ahead of Mamba, subword by 0\.200 bits per byte \(9\.0 %\), more than twice/,
  ],
  [
    'the other way round',
    [
      [2.2, 2.22],
      [2, 2.02],
    ],
    /Mamba, subword is ahead of MambaByte by 0\.200/,
  ],
  [
    'a lead within the noise',
    [
      [2, 2.4],
      [2.1, 2.5],
    ],
    /which the deviation over seeds can explain/,
  ],
  ['single seeds', [[2], [3]], /of a single seed each/],
];
for (const [title, [own, other], claim] of CLAIMS) {
  test(`a finding follows from the figures · ${title}`, (t) => {
    const results = [...computeResults(MAMBABYTE, 'compute', own), ...computeResults(SUBWORD, 'compute', other)];
    t.regex(computeView(recordOf('compute', results))?.findings.join('\n') ?? '', claim);
  });
}

test('speed: what is left at the longest context, and the ratio of the models', (t) => {
  const said = speedView(recordOf('speed', speed))?.findings.join('\n') ?? '';
  t.regex(said, /MambaByte, one sequence, from 1 KiB to 2 KiB of context: 100 % .* its memory does not change/);
  t.regex(said, /Transformer, one sequence, .*: 50 % .* its memory grows 2 times/);
  t.regex(said, /MambaByte's speed is 1 times at 1 KiB and 2 times at 2 KiB that of Transformer/);
});

test('scaling: compute for the same quality is read between sizes', (t) => {
  const said = scalingView(recordOf('scaling', scaling))?.findings.join('\n') ?? '';
  t.regex(said, /MambaByte: 2\.000 to 1\.500 bits per byte, -0\.500 for ten times the compute/);
  t.regex(said, /Transformer does not reach the 1\.500/);
  const better = scaling.map((r) =>
    r.family === MAMBABYTE ? r : { ...r, trained: trained(1.75 - r.size * 0.5, 10 ** (9 + r.size)) },
  );
  t.regex(
    scalingView(recordOf('scaling', better))?.findings.join('\n') ?? '',
    /Transformer reaches .* with 0\.32 times/,
  );
});

test('a folder without results says how to make some', async (t) => {
  await t.throwsAsync(writeReport(folder()), { code: 'ERR_DATA', message: /none there.*mambabyte experiment all/ });
  await t.throwsAsync(writeReport(join(folder(), 'absent')), { code: 'ERR_DATA', message: /no such folder/ });
});

test('a missing optional package is a typed error that says what to install', async (t) => {
  const message =
    /expected vega, vega-lite and @resvg\/resvg-js to be installed, got no no-such-package\. .*npm install/;
  await t.throwsAsync(optional('no-such-package'), { code: 'ERR_MISSING_PACKAGE', message });
});
