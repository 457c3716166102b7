/** Counts words as `wc -w` does: runs of bytes that are not white space. Feed a text in pieces. */
export class WordCounter {
  words = 0;
  #inside = false;

  add(bytes: Uint8Array): void {
    for (const b of bytes) {
      const space = b === 0x20 || (b >= 0x09 && b <= 0x0d);
      if (!space && !this.#inside) this.words++;
      this.#inside = !space;
    }
  }
  /** A word does not go on into the next document. */
  endDocument(): void {
    this.#inside = false;
  }
}
