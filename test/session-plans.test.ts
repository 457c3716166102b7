import test from 'ava';
import type { BackendName, Device } from '../lib/device.ts';
import { completeConfig } from '../lib/models/config.ts';
import { SessionPlans } from '../lib/session-plans.ts';

/** How a text of so many ids is read: each plan's size, and in brackets how many of its ids count where not all do. */
function reading(backend: BackendName, ids: number, batch = 1): string {
  const device = { info: { backend, target: 'sm_90' } } as Device;
  const plans = new SessionPlans(device, completeConfig({ layers: 1, dModel: 64 }), new Map(), batch, 1);
  const read: string[] = [];
  for (let left = ids; left > 0; ) {
    const { size, ids: count } = plans.next(left, left);
    read.push(size === count ? `${size}` : `${size}(${count})`);
    left -= count;
  }
  return read.join(' ');
}

test('a text is read by plans of whole sizes, on a GPU the last of them padded where that is sooner', (t) => {
  t.is(reading('cpu', 1023), '512 256 128 64 32 16 8 4 2 1');
  t.is(reading('cuda', 8192), '8192');
  t.is(reading('cuda', 8191), '8192(8191)');
  t.is(reading('cuda', 1023), '1024(1023)');
  t.is(reading('cuda', 10_000), '8192 2048(1808)');
  t.is(reading('cuda', 5000), '4096 1024(904)');
  t.is(reading('cuda', 4100), '4096 4', 'few rows have a plan of their own');
  t.is(reading('cuda', 40), '32 8');
  t.is(reading('cuda', 50), '32 16 2');
  t.is(reading('cuda', 60), '64(60)');
  t.is(reading('cuda', 31), '16 8 4 2 1', 'fused blocks take no lengths');
  t.is(reading('cuda', 700, 8), '512 256(188)', 'rows of all sequences count');
});
