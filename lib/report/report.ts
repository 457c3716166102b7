// Turns the records of a folder into one page and a PNG for each plot.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { DataError, expected } from '../errors.ts';
import { EXPERIMENT_NAMES, type ExperimentName } from '../experiments/experiments.ts';
import { type ExperimentRecord, readRecord } from '../experiments/records.ts';
import { writeFileAtomically } from '../weights/atomic-file.ts';
import { bytesView } from './bytes.ts';
import { computeView } from './compute.ts';
import { draftView } from './draft.ts';
import { lengthView } from './length.ts';
import { noiseView } from './noise.ts';
import { pageOf, type Section } from './page.ts';
import { drawing, rasterising } from './plots.ts';
import { scalingView } from './scaling.ts';
import { speedView } from './speed.ts';
import type { View } from './view.ts';

const VIEWS: Readonly<Record<ExperimentName, (record: ExperimentRecord<never>) => View | undefined>> = {
  compute: computeView,
  scaling: scalingView,
  length: lengthView,
  noise: noiseView,
  speed: speedView,
  draft: draftView,
  bytes: bytesView,
};

export interface ReportFiles {
  page: string;
  pngs: string[];
}

/**
 * Writes `report.html` to `folder`, which holds records, and a PNG for each plot to `pngs`.
 * @throws DataError where there is no result; MambaByteError where an optional package is missing
 */
export async function writeReport(folder: string, pngs = folder): Promise<ReportFiles> {
  const shown: { record: ExperimentRecord; view: View }[] = [];
  for (const name of EXPERIMENT_NAMES) {
    const record = await readRecord(join(folder, `${name}.json`));
    const view = record && VIEWS[name](record as ExperimentRecord<never>);
    if (view) shown.push({ record, view });
  }
  if (shown.length === 0) {
    const got = existsSync(folder) ? 'none there' : 'no such folder';
    const hint = `Make some first: mambabyte experiment all --quick --data <folder> --out ${folder}`;
    throw new DataError(expected('report', folder, 'hold results of experiments', got, hint));
  }
  const [draw, rasterise] = [await drawing(), await rasterising()];
  const sections: Section[] = [];
  const files: string[] = [];
  for (const { record, view } of shown) {
    const drawings: string[] = [];
    for (const { name, spec } of view.plots) {
      const svg = await draw(spec);
      const path = join(pngs, `${name}.png`);
      await writeFileAtomically(path, (append) => append(rasterise(svg)));
      drawings.push(svg);
      files.push(path);
    }
    sections.push({ record, view, drawings });
  }
  const page = join(folder, 'report.html');
  await writeFileAtomically(page, (append) => append(Buffer.from(pageOf(sections))));
  return { page, pngs: files };
}
