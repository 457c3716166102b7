// JSON.parse keeps the last of two equal keys, silently; headers of weight files must not have two.

/**
 * The first object key that occurs twice in one object of a text that JSON.parse has accepted, if any.
 *
 * One pass, no recursion; keys are compared after their escapes are resolved.
 */
export function duplicateKey(json: string): string | undefined {
  const scopes: (Set<string> | undefined)[] = []; // the keys of each open object; undefined for an open array
  let keyMayFollow = false;
  for (let i = 0; i < json.length; i++) {
    const char = json[i];
    if (char === '"') {
      const end = stringEnd(json, i);
      const keys = scopes.at(-1);
      if (keyMayFollow && keys) {
        const key = JSON.parse(json.slice(i, end + 1)) as string;
        if (keys.has(key)) return key;
        keys.add(key);
      }
      keyMayFollow = false;
      i = end;
    } else if (char === '{' || char === '[') {
      scopes.push(char === '{' ? new Set() : undefined);
      keyMayFollow = true;
    } else if (char === '}' || char === ']') {
      scopes.pop();
    } else if (char === ',') {
      keyMayFollow = true;
    }
  }
  return undefined;
}

function stringEnd(json: string, start: number): number {
  let end = start + 1;
  while (json[end] !== '"') end += json[end] === '\\' ? 2 : 1;
  return end;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
