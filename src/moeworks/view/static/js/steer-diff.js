// Where two texts differ, piece by piece: the longest common sequence of their tokens, the rest marked.

const MOST = 4_000_000; // cells of the table; beyond, only the common beginning counts as the same

/**
 * Mark each piece of two texts as shared or not.
 * @param {string[]} before pieces of the one text, as they were streamed
 * @param {string[]} after pieces of the other
 * @returns {{before: boolean[], after: boolean[], common: number, first: number}} whether each piece is also in the
 *   other text in the same order; how many are; the place of the first difference (-1: none so far)
 */
export function diffPieces(before, after) {
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) start += 1;
  const marks = { before: before.map((_, i) => i < start), after: after.map((_, i) => i < start) };
  const rows = before.length - start;
  const columns = after.length - start;
  let common = start;
  if (rows && columns && rows * columns <= MOST) {
    const width = columns + 1;
    const longest = new Uint16Array((rows + 1) * width); // (rows + 1, columns + 1): of what follows each pair of places
    for (let i = rows - 1; i >= 0; i -= 1) {
      for (let j = columns - 1; j >= 0; j -= 1) {
        longest[i * width + j] =
          before[start + i] === after[start + j]
            ? longest[(i + 1) * width + j + 1] + 1
            : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      }
    }
    for (let i = 0, j = 0; i < rows && j < columns; ) {
      if (before[start + i] === after[start + j]) {
        marks.before[start + i] = true;
        marks.after[start + j] = true;
        common += 1;
        i += 1;
        j += 1;
      } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i += 1;
      else j += 1;
    }
  }
  const first = rows || columns ? start : -1;
  return { ...marks, common, first };
}
