/**
 * Writes the tables of recipe.md anew: tsx scripts/shipped/fill-recipe.ts books=sweep.jsonl books-draft=sweep.jsonl
 *
 * A table stands between `<!-- sweep NAME -->` and `<!-- /sweep NAME -->`, with the command that its rows choose.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expected } from '../../lib/errors.ts';
import { chosenRun, readRows, sweepNote, sweepTable, trainFlags, VERIFY_MS } from './sweep-table.ts';

const recipe = join(dirname(fileURLToPath(import.meta.url)), 'recipe.md');

let text = readFileSync(recipe, 'utf8');
for (const argument of process.argv.slice(2)) {
  const [name = '', path = ''] = argument.split('=');
  text = filled(text, name, path);
}
writeFileSync(recipe, text);

function filled(recipe: string, name: string, path: string): string {
  const [begin, end] = [`<!-- sweep ${name} -->`, `<!-- /sweep ${name} -->`];
  const [from, to] = [recipe.indexOf(begin), recipe.indexOf(end)];
  if (from < 0 || to < from) throw new Error(expected('fill-recipe', name, 'be marked in recipe.md', 'no such marks'));
  const rows = readRows(path);
  const chosen = `Chosen: \`${trainFlags(chosenRun(rows, VERIFY_MS))}\``;
  const parts = [begin, sweepNote(rows), '', sweepTable(rows, VERIFY_MS), '', chosen, ''];
  return recipe.slice(0, from) + parts.join('\n') + recipe.slice(to);
}
