// A training run in a process of its own, to be killed or starved of disk: train-child.ts '<options as JSON>'. Prints a
// line per step, and at the end one that says how it went.
import { train } from '../../lib/train/loop.ts';

const print = (line: unknown) => process.stdout.write(`${JSON.stringify(line)}\n`);
try {
  const result = await train({ ...JSON.parse(process.argv[2] ?? '{}'), onProgress: ({ step }) => print({ step }) });
  print({ result });
} catch (error) {
  const { code, message } = error as Error & { code?: string };
  print({ error: { code, message } });
  process.exitCode = 1;
}
