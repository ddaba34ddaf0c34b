// Finds a text in the rows that are shown, over the borders of tokens and windows.

import { fetchRows } from "moeworks/tokens-rows";

const AT_ONCE = 20_000;
const CARRIED = 96; // rows of the window before, so that a find may begin there
const MOST = 5_000;

/**
 * Find a text, without regard to case, in each request of a stretch of rows.
 * @param {string} trace
 * @param {{first: number, stop: number, layer: number}} stretch layer: whose columns come along, as few as can be asked for
 * @param {string} wanted
 * @param {(found: {hits: {row: number, last: number}[], done: number, total: number, cut: boolean}) => void} onPart
 *   called after each window with all that was found so far
 * @param {AbortSignal} signal
 */
export async function search(trace, { first, stop, layer }, wanted, onPart, signal) {
  const pattern = new RegExp(wanted.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&"), "giu");
  const hits = [];
  let past = -1;
  for (let start = first; start < stop && hits.length < MOST; start += AT_ONCE - CARRIED) {
    const end = Math.min(start + AT_ONCE, stop);
    const rows = await fetchRows(trace, start, end, [layer], signal);
    const { text, begins } = joined(rows);
    for (const match of text.matchAll(pattern)) {
      const row = start + rowAt(begins, match.index);
      if (row <= past || hits.length >= MOST) continue;
      past = row;
      hits.push({ row, last: start + rowAt(begins, match.index + match[0].length - 1) });
    }
    onPart({ hits: [...hits], done: end - first, total: stop - first, cut: hits.length >= MOST });
    if (end === stop) return;
  }
}

function joined(rows) {
  const begins = new Uint32Array(rows.text.length);
  const pieces = [];
  let length = 0;
  rows.text.forEach((piece, i) => {
    // Nothing is found across two requests: the sign between them is in no search.
    if (i > 0 && rows.request[i] !== rows.request[i - 1]) {
      pieces.push("\u0000");
      length += 1;
    }
    begins[i] = length;
    pieces.push(piece);
    length += piece.length;
  });
  return { text: pieces.join(""), begins };
}

// The last row that begins at or before a place; of tokens without text the one that holds the character.
function rowAt(begins, place) {
  let [low, high] = [0, begins.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (begins[middle] <= place) low = middle;
    else high = middle - 1;
  }
  return low;
}

/**
 * All rows that belong to finds.
 * @param {{row: number, last: number}[]} hits
 * @returns {Set<number>}
 */
export function rowsOf(hits) {
  const rows = new Set();
  for (const { row, last } of hits) for (let at = row; at <= last; at += 1) rows.add(at);
  return rows;
}
