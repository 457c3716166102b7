// Reads a prompt once and continues it several ways. A state is a few hundred kilobytes, whatever the length of the text;
// toBytes() and model.stateFromBytes() keep it on disk.
import { loadModel } from 'mambabyte';

const model = await loadModel('books');
const state = model.createState();
await model.generate('The old house at the end of the lane', { maxBytes: 0, state });
console.log(`${state.toBytes().length} bytes of state after ${state.position} bytes of text`);
for (const seed of [1, 2, 3]) {
  const { text } = await model.generate('', { maxBytes: 120, temperature: 0.8, seed, state: state.clone() });
  console.log(`${seed}: …${text}`);
}
model.dispose();
