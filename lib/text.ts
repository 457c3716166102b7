// Numbers in the words of messages and tables.

/** 1234567 → "1,234,567". Not by toLocaleString, whose first call takes 40 ms. */
export function grouped(value: number): string {
  return `${Math.round(value)}`.replace(/\B(?=(\d{3})+$)/g, ',');
}

/** 1, "byte" → "1 byte"; 1234, "byte" → "1,234 bytes" */
export function counted(value: number, noun: string): string {
  return `${grouped(value)} ${noun}${value === 1 ? '' : 's'}`;
}
