import type { DraftResult } from '../experiments/draft.ts';
import { bars } from './plots.ts';
import { short, spreadOf, spreadWords, type ViewOf } from './view.ts';

export const draftView: ViewOf<DraftResult> = ({ units }) => {
  const results = units.map(({ result }) => result);
  if (results.length === 0) return undefined;
  const ratioOf = ({ plain, drafted }: DraftResult) =>
    spreadOf(drafted.map((rate, i) => rate / (plain[i] ?? Number.NaN)));
  return {
    plots: [
      {
        name: 'draft',
        caption: 'Speed with a drafter, of plain decoding right before it; above 1 drafting pays.',
        spec: bars({
          title: 'speed with a drafter over plain speed',
          y: { title: 'times plain speed', format: '.1f' },
          values: results.map((result) => {
            const { mean, deviation } = ratioOf(result);
            return { group: result.mode, series: result.drafter, value: mean, deviation };
          }),
        }),
      },
    ],
    tables: [
      {
        caption: 'Mean ± standard deviation (prompts). A pass verifies several proposed bytes at once.',
        head: [
          'drafter',
          'rule',
          'plain bytes/s',
          'drafted bytes/s',
          'ratio',
          'bytes a pass',
          'accepted',
          'same bytes',
        ],
        rows: results.map((result) => {
          const { drafter, mode, plain, drafted, passes, proposed, accepted, identical } = result;
          const [slow, fast] = [spreadOf(plain), spreadOf(drafted)];
          const perPass = passes > 0 ? ((accepted + passes) / passes).toFixed(2) : 'no pass';
          const share = proposed > 0 ? `${((100 * accepted) / proposed).toFixed(0)} %` : 'none proposed';
          return [
            ...[drafter, mode, short(slow.mean), short(fast.mean), spreadWords(ratioOf(result), 2)],
            ...[perPass, share, `${identical} of ${plain.length}`],
          ];
        }),
      },
    ],
    findings: results.map((result) => {
      const { drafter, mode, lossless, identical, plain } = result;
      const { mean, deviation } = ratioOf(result);
      const clear = Math.abs(mean - 1) > deviation;
      const verdict = !clear ? 'within the spread over prompts' : mean > 1 ? 'drafting pays' : 'drafting does not pay';
      const same = lossless ? `; ${identical} of ${plain.length} texts are those of plain decoding, byte for byte` : '';
      return `${drafter}, ${mode}: ${mean.toFixed(2)} ± ${deviation.toFixed(2)} times plain speed: ${verdict}${same}.`;
    }),
  };
};
