// Trains a small model on files of your own, holding the last one out: npx tsx examples/train.ts run a.txt b.txt c.txt
import { train } from 'mambabyte';

const [out, ...files] = process.argv.slice(2);
if (out === undefined || files.length < 2) {
  console.error('usage: train.ts <folder> <file> <file> [<file> ...]');
  process.exit(2);
}
const result = await train({
  preset: 'mambabyte-tiny',
  data: files.slice(0, -1),
  valid: files.slice(-1),
  out,
  bytes: 2_000_000,
  context: 512,
  sampling: 'uniform',
  onProgress: ({ step, steps, bitsPerByte, validBitsPerByte }) =>
    console.log(`${step}/${steps}  ${bitsPerByte.toFixed(3)} bits/byte  ${validBitsPerByte?.toFixed(3) ?? ''}`),
});
console.log(`best: ${result.best?.bitsPerByte.toFixed(4)} bits per byte on ${files.at(-1)}, in ${out}/best`);
