// Which of several texts does the model find most likely? Bits per byte, lower is likelier: npx tsx examples/classify.ts
import { loadModel } from 'mambabyte';

const model = await loadModel('books');
const texts = ['He opened the door and went out.', 'He out the went opened door and.', 'xq zvkw jjpt oeiu rrtz lkjh.'];
const scored = await Promise.all(texts.map(async (text) => ({ text, bits: (await model.score(text)).bitsPerByte })));
for (const { text, bits } of scored.sort((a, b) => a.bits - b.bits)) console.log(`${bits.toFixed(3)}  ${text}`);
model.dispose();
