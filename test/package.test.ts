// The package as npm delivers it: its contents, and an installation where no compiler is on the PATH.
import { execFile } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { createModel } from '../lib/model.ts';
import { native, packageRoot } from '../lib/native.ts';
import { folder } from './support/folder.ts';

const run = promisify(execFile);
const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));

/** A PATH with what npm itself needs and nothing else. */
function bareBin(): string {
  const bin = folder();
  const find = (name: string) =>
    (process.env.PATH ?? '')
      .split(delimiter)
      .map((dir) => join(dir, name))
      .find(existsSync);
  for (const name of ['npm', 'sh', 'env']) {
    const found = find(name);
    if (found) symlinkSync(realpathSync(found), join(bin, name));
  }
  symlinkSync(process.execPath, join(bin, 'node'));
  return bin;
}

/** The tarball that MAMBABYTE_TARBALL names, or one of the built tree with the built addon as its prebuild. */
async function tarball(): Promise<string> {
  const given = process.env.MAMBABYTE_TARBALL;
  if (given) return realpathSync(given);
  const stage = folder();
  for (const name of ['package.json', 'README.md', 'LICENSE', ...manifest.files]) {
    if (name !== 'prebuilds' && existsSync(join(packageRoot, name))) {
      cpSync(join(packageRoot, name), join(stage, name), { recursive: true });
    }
  }
  const prebuilds = join(stage, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  cpSync(native().file, join(prebuilds, 'mambabyte.glibc.node'));
  const { stdout } = await run('npm', ['pack', '--ignore-scripts', '--json'], { cwd: stage });
  return join(stage, JSON.parse(stdout)[0].filename);
}

test.serial('the tarball installs without a compiler, and generates', async (t) => {
  if (!existsSync(join(packageRoot, 'dist', 'index.js'))) {
    t.fail('dist/ is not built: run npm run build');
    return;
  }
  const app = folder();
  const env = { ...process.env, PATH: bareBin() };
  const inApp = (file: string, args: string[]) => run(file, args, { cwd: app, env });
  await t.throwsAsync(inApp('c++', ['--version']), { code: 'ENOENT' });
  await inApp('npm', ['install', '--prefer-offline', '--no-audit', '--no-fund', await tarball()]);
  const installed = join(app, 'node_modules', 'mambabyte');
  t.false(existsSync(join(installed, 'build')));
  t.false(existsSync(join(installed, 'binding.gyp')));

  const model = folder();
  using tiny = await createModel({ layers: 2, dModel: 32 }, { seed: 1, threads: 1 });
  await tiny.save(model);
  const script = `
    import { loadModel } from 'mambabyte';
    const model = await loadModel(process.argv[1], { threads: 1 });
    const { bytes } = await model.generate('hello', { maxBytes: 16, seed: 7 });
    process.stdout.write(Buffer.from(bytes).toString('hex'));`;
  const { stdout } = await inApp('node', ['--input-type=module', '-e', script, model]);
  const { bytes } = await tiny.generate('hello', { maxBytes: 16, seed: 7 });
  t.is(stdout, Buffer.from(bytes).toString('hex'));

  const cli = join(app, 'node_modules', '.bin', 'mambabyte');
  const doctor = JSON.parse((await inApp(cli, ['doctor', '--json'])).stdout);
  t.true(doctor.addon.startsWith(realpathSync(join(installed, 'prebuilds'))));
  for (const name of doctor.models) {
    const out = await inApp(cli, ['generate', '--model', name, '--prompt', 'The ', '--max-bytes', '20', '--raw', '-q']);
    t.is(Buffer.byteLength(out.stdout, 'latin1') > 0, true, name);
  }
  const required = await inApp('node', ['-e', "process.stdout.write(typeof require('mambabyte').loadModel)"]);
  t.is(required.stdout, 'function');
});

test('runtime dependencies are pinned, and nothing runs or builds at installation', (t) => {
  const versions = Object.values(manifest.dependencies) as string[];
  t.true(versions.every((version) => /^\d+\.\d+\.\d+$/.test(version)));
  t.false(manifest.files.includes('binding.gyp')); // npm would run node-gyp for whoever installs
  t.is(manifest.scripts.install, undefined);
});

/** A program that says `import ... from 'mambabyte'`, run against the built package in a folder of its own. */
async function runProgram(source: string, name: string, args: string[] = []): Promise<string> {
  const app = folder();
  mkdirSync(join(app, 'node_modules'));
  symlinkSync(packageRoot, join(app, 'node_modules', 'mambabyte'));
  writeFileSync(join(app, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(app, name), source);
  const tsx = import.meta.resolve('tsx');
  const { stdout } = await run(process.execPath, [`--import=${tsx}`, name, ...args], { cwd: app });
  return stdout;
}

test.serial('the twenty lines of the README work as they stand', async (t) => {
  const blocks = [...readFileSync(join(packageRoot, 'README.md'), 'utf8').matchAll(/```ts\n(.*?)```/gs)];
  t.is(blocks.length, 1);
  const source = blocks[0]?.[1] ?? '';
  t.true(source.split('\n').filter(Boolean).length <= 20);
  const out = await runProgram(source, 'readme.ts');
  const losses = out.trim().split('\n').slice(-20).map(Number);
  t.true((losses[19] ?? Number.NaN) < (losses[0] ?? Number.NaN) - 1, out);
});

for (const name of ['stream.ts', 'fork-state.ts', 'classify.ts']) {
  test.serial(`the example works · ${name}`, async (t) => {
    const source = readFileSync(join(packageRoot, 'examples', name), 'utf8');
    t.true((await runProgram(source, name)).length > 20);
  });
}

test.serial('the example works · train.ts', async (t) => {
  const source = readFileSync(join(packageRoot, 'examples', 'train.ts'), 'utf8').replace('2_000_000', '9000');
  const text = join(folder(), 'text.txt');
  writeFileSync(text, 'All happy families are alike. '.repeat(200));
  const out = join(folder(), 'run');
  t.regex(await runProgram(source, 'train.ts', [out, text, text]), /best: \d\.\d+ bits per byte/);
  t.true(readdirSync(join(out, 'best')).includes('model.safetensors'));
});
