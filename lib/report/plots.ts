// The plots of the report, as Vega-Lite specifications (Satyanarayan et al. 2017), and how they become SVG and PNG.
import { describe, expected, MambaByteError } from '../errors.ts';

/** A Vega-Lite specification; its own types would make every reader of this package's types install it. */
export type Spec = Readonly<Record<string, unknown>>;

/** A point of a line; several of one x and series are averaged and get error bars. */
export interface LinePoint {
  series: string;
  x: number;
  y: number;
  /** Which line of the series; default: it has one. */
  line?: string;
  /** For points that are means already. */
  deviation?: number;
}

export interface Axis {
  title: string;
  log?: boolean;
  /** Of d3-format. */
  format?: string;
  /** Where its ticks are. */
  ticks?: readonly number[];
}

export interface LinePlot {
  title: string;
  x: Axis;
  y: Axis;
  points: readonly LinePoint[];
}

/** Okabe & Ito 2008: told apart by most people who see colours otherwise. */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#f0e442'];
const SIZE = { width: 500, height: 300 };
const CONFIG = {
  font: 'DejaVu Sans, Arial, sans-serif',
  axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal', gridColor: '#e5e5e5' },
  legend: { labelFontSize: 11, labelLimit: 240, orient: 'bottom', columns: 4 },
  title: { fontSize: 13, fontWeight: 'normal', anchor: 'start' },
  view: { stroke: null },
} as const;

const axisOf = (field: string, { title, log = false, format = '~s', ticks }: Axis) =>
  ({
    field,
    type: 'quantitative',
    title,
    scale: log ? { type: 'log', nice: false } : { zero: false },
    axis: { format, ...(log && { tickCount: 6 }), ...(ticks && { values: ticks }), labelOverlap: true },
  }) as const;

function colourOf(series: readonly string[]) {
  const domain = [...new Set(series)];
  const range = domain.map((_, i) => COLOURS[i % COLOURS.length] ?? '#000000');
  return { field: 'series', type: 'nominal', title: null, scale: { domain, range } } as const;
}

/** A line for each series, with a bar of one standard deviation either way. */
export function lines({ title, x, y, points }: LinePlot): Spec {
  const values = averaged(points);
  const bars = values.filter(({ low, high }) => high > low);
  const colour = colourOf(points.map(({ series }) => series));
  const encoding = { x: axisOf('x', x), color: colour, detail: { field: 'line', type: 'nominal' } } as const;
  return {
    ...SIZE,
    background: 'white',
    title,
    config: CONFIG,
    data: { values },
    layer: [
      { mark: { type: 'line', strokeWidth: 2 }, encoding: { ...encoding, y: axisOf('y', y) } },
      { mark: { type: 'point', filled: true, size: 40, opacity: 1 }, encoding: { ...encoding, y: axisOf('y', y) } },
      ...(bars.length === 0
        ? []
        : [
            {
              data: { values: bars },
              mark: { type: 'rule', strokeWidth: 1.5 },
              encoding: { ...encoding, y: axisOf('low', y), y2: { field: 'high' } },
            } as const,
          ]),
    ],
  };
}

interface Averaged {
  series: string;
  line: string;
  x: number;
  y: number;
  low: number;
  high: number;
}

function averaged(points: readonly LinePoint[]): Averaged[] {
  const groups = new Map<string, LinePoint[]>();
  for (const point of points) {
    const key = `${point.series} ${point.line} ${point.x}`;
    groups.set(key, [...(groups.get(key) ?? []), point]);
  }
  return [...groups.values()].map((group) => {
    const [{ series, line = '', x, deviation = 0 } = { series: '', x: 0 }] = group;
    const y = group.reduce((sum, point) => sum + point.y, 0) / group.length;
    const square = group.reduce((sum, point) => sum + (point.y - y) ** 2, 0);
    const spread = group.length > 1 ? Math.sqrt(square / (group.length - 1)) : deviation;
    return { series, line, x, y, low: y - spread, high: y + spread };
  });
}

export interface Bar {
  /** Bars of a group stand together. */
  group: string;
  series: string;
  value: number;
  deviation?: number;
}

/** Bars in groups, a colour for each series. */
export function bars({ title, y, values }: { title: string; y: Axis; values: readonly Bar[] }): Spec {
  const data = values.map(({ deviation = 0, ...bar }) => ({
    ...bar,
    low: bar.value - deviation,
    high: bar.value + deviation,
  }));
  const colour = colourOf(values.map(({ series }) => series));
  const x = {
    field: 'group',
    type: 'nominal',
    title: null,
    sort: null,
    axis: { labelAngle: -30, labelLimit: 240 },
  } as const;
  const xOffset = { field: 'series', sort: null } as const;
  const axis = { ...axisOf('value', y), scale: y.log ? ({ type: 'symlog', constant: 1 } as const) : { zero: true } };
  return {
    width: Math.max(SIZE.width, 60 * new Set(values.map(({ group }) => group)).size),
    height: SIZE.height,
    background: 'white',
    title,
    config: CONFIG,
    data: { values: data },
    layer: [
      { mark: { type: 'bar' }, encoding: { x, xOffset, y: axis, color: colour } },
      { mark: { type: 'rule' }, encoding: { x, xOffset, y: { ...axis, field: 'low' }, y2: { field: 'high' } } },
    ],
  };
}

interface VegaLite {
  compile(spec: Spec): { spec: Spec };
}
interface Vega {
  parse(spec: Spec): object;
  View: new (runtime: object, options: { renderer: 'none' }) => { toSVG(): Promise<string> };
}
interface ResvgPackage {
  Resvg: new (svg: string, options: object) => { render(): { asPng(): Uint8Array } };
}

/** Draws specifications as SVG. @throws MambaByteError where vega and vega-lite are not installed */
export async function drawing(): Promise<(spec: Spec) => Promise<string>> {
  const { compile } = await optional<VegaLite>('vega-lite');
  const { parse, View } = await optional<Vega>('vega');
  return (spec) => new View(parse(compile(spec).spec), { renderer: 'none' }).toSVG();
}

/** Turns SVG into PNG, twice as large. @throws MambaByteError where @resvg/resvg-js is not installed */
export async function rasterising(): Promise<(svg: string) => Uint8Array> {
  const { Resvg } = await optional<ResvgPackage>('@resvg/resvg-js');
  const options = { fitTo: { mode: 'zoom', value: 2 }, font: { loadSystemFonts: true } };
  return (svg) => new Resvg(svg, options).render().asPng();
}

/** Packages that only the report needs, which are not installed for those who never make one. */
export async function optional<T>(name: string): Promise<T> {
  try {
    return (await import(name)) as T;
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code !== 'ERR_MODULE_NOT_FOUND') throw cause;
    const what = 'vega, vega-lite and @resvg/resvg-js';
    const hint = 'They are optional: npm install vega@6 vega-lite@6 @resvg/resvg-js@2.';
    const got = /'([^']+)'/.exec(message)?.[1] ?? describe(message);
    throw new MambaByteError('ERR_MISSING_PACKAGE', expected('report', what, 'be installed', `no ${got}`, hint), {
      cause,
    });
  }
}
