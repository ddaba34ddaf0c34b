// The text of a whole trace as a list of chunks: those near the window are drawn, the others only keep their height.

import { colourCells } from "moeworks/tokens-colour";
import { fetchRows, OVERLAP, windowOf } from "moeworks/tokens-rows";
import { breakAt, drawRows } from "moeworks/tokens-text";

const CHUNK = 256;
const NEAR = 1400; // px above and below the window that are drawn
const GUESS = 1.1; // px of height for a token, before anything was measured

/**
 * @typedef {{trace: string, first: number, stop: number, headOf: (request: number, row: number) => Node | null,
 *   onFail: (error: Error) => void}} Stretch
 */

/**
 * Make a list in an element that scrolls. It changes the page only through `show`, `colour`, `mark` and `go`.
 * @param {HTMLElement} frame
 * @param {Stretch} stretch
 */
export function createList(frame, stretch) {
  const chunks = makeChunks(stretch);
  const drawn = new Set();
  const waiting = new Set();
  let [colouring, marked, pinned, target, height, frameAsked] = [null, new Set(), -1, -1, GUESS, 0];

  const inner = document.createElement("div");
  inner.className = "chunks";
  inner.append(...chunks.map((chunk) => chunk.node));
  frame.replaceChildren(inner);
  guessHeights();
  const observer = new IntersectionObserver(seen, { root: frame, rootMargin: `${NEAR}px 0px` });
  const byNode = new Map(chunks.map((chunk) => [chunk.node, chunk]));
  const forget = () => {
    target = -1;
  };
  for (const name of ["wheel", "touchmove", "pointerdown"]) frame.addEventListener(name, forget, { passive: true });

  function seen(entries) {
    for (const entry of entries) {
      const chunk = byNode.get(entry.target);
      chunk.near = entry.isIntersecting;
      if (chunk.near) load(chunk);
      else leave(chunk);
    }
  }

  async function load(chunk) {
    const layer = colouring?.layer;
    if (layer === undefined || chunk.layer === layer || chunk.asked === layer) return;
    chunk.stop?.abort();
    chunk.stop = new AbortController();
    chunk.asked = layer;
    try {
      const [start, stop] = windowOf(chunk.start, stretch);
      chunk.rows = await fetchRows(stretch.trace, start, stop, [layer], chunk.stop.signal);
      chunk.layer = layer;
      waiting.add(chunk);
      ask();
    } catch (error) {
      if (error.name !== "AbortError") stretch.onFail(error);
    } finally {
      if (chunk.asked === layer) chunk.asked = null;
    }
  }

  function leave(chunk) {
    chunk.stop?.abort();
    chunk.asked = null;
    waiting.delete(chunk);
    if (drawn.delete(chunk)) {
      chunk.node.style.height = `${chunk.node.offsetHeight}px`;
      chunk.node.className = "chunk blank";
      chunk.node.replaceChildren();
      chunk.cells = null;
    }
    chunk.rows = null;
    chunk.layer = null;
  }

  function ask() {
    frameAsked ||= requestAnimationFrame(work);
  }

  // One chunk a frame, so that scrolling goes on; the one nearest to the middle of the window first.
  function work() {
    frameAsked = 0;
    const chunk = nearest(waiting, frame);
    if (!chunk) return;
    waiting.delete(chunk);
    if (chunk.near) draw(chunk);
    if (waiting.size) ask();
  }

  function draw(chunk) {
    if (!drawn.has(chunk)) {
      const { rows } = chunk;
      chunk.from = chunk.start === stretch.first ? chunk.start : breakAt(rows, chunk.start, stretch.stop, OVERLAP);
      chunk.to = breakAt(rows, chunk.end, stretch.stop, OVERLAP);
      const { nodes, cells } = drawRows(rows, chunk.from, chunk.to, stretch.headOf);
      chunk.cells = cells;
      colourCells(cells, rows, colouring);
      chunk.node.replaceChildren(nodes);
      chunk.node.className = "chunk";
      chunk.node.style.height = "";
      drawn.add(chunk);
      decorate(chunk);
      if (!chunks.measured) {
        chunks.measured = true;
        height = chunk.node.offsetHeight / Math.max(1, chunk.to - chunk.from);
        guessHeights();
      }
    } else {
      colourCells(chunk.cells, chunk.rows, colouring);
    }
    if (target >= 0) goNow();
  }

  function guessHeights() {
    for (const chunk of chunks) if (!drawn.has(chunk)) chunk.node.style.height = `${Math.round((chunk.end - chunk.start) * height)}px`;
  }

  function decorate(chunk) {
    for (const cell of chunk.cells) {
      const isHit = marked.size > 0 && hasAny(marked, cell);
      for (const span of cell.spans) {
        span.classList.toggle("hit", isHit);
        span.classList.toggle("pinned", cell.first <= pinned && pinned <= cell.row);
      }
    }
  }

  function cellOf(row) {
    for (const chunk of drawn) {
      if (chunk.from <= row && row < chunk.to) return chunk.cells.find((cell) => cell.first <= row && row <= cell.row) ?? null;
    }
    return null;
  }

  function goNow() {
    const cell = cellOf(target);
    if (cell) {
      const [box, outer] = [cell.spans[0].getBoundingClientRect(), frame.getBoundingClientRect()];
      if (box.top < outer.top + 40 || box.bottom > outer.bottom - 40) frame.scrollTop += box.top - outer.top - outer.height / 2;
    } else {
      const chunk = chunks[Math.min(chunks.length - 1, Math.floor((target - stretch.first) / CHUNK))];
      const top = chunk.node.offsetTop;
      if (Math.abs(frame.scrollTop - top) > frame.clientHeight) frame.scrollTop = top - frame.clientHeight / 3;
      // The row may stand at the end of the chunk before, where its line ends.
      else if (drawn.has(chunk) && target < chunk.from) frame.scrollTop = top - frame.clientHeight / 2;
    }
  }

  return {
    /** Colour the tokens; the first call begins the drawing. */
    colour(next) {
      const begins = colouring === null;
      const same = colouring?.layer === next.layer;
      colouring = next;
      if (begins) for (const chunk of chunks) observer.observe(chunk.node);
      else if (same) for (const chunk of drawn) colourCells(chunk.cells, chunk.rows, colouring);
      else for (const chunk of chunks) if (chunk.near) load(chunk);
    },
    /** Mark the rows that a search found. */
    mark(rows) {
      marked = rows;
      for (const chunk of drawn) decorate(chunk);
    },
    /** Mark one row as the chosen one; with `scroll` bring it into the window. */
    pin(row, scroll) {
      for (const span of frame.querySelectorAll(".pinned")) span.classList.remove("pinned");
      pinned = row;
      const cell = cellOf(row);
      for (const span of cell?.spans ?? []) span.classList.add("pinned");
      if (scroll && row >= stretch.first && row < stretch.stop) {
        target = row;
        goNow();
      }
    },
    /** The first row whose token stands in the window. */
    firstVisible() {
      const top = frame.getBoundingClientRect().top;
      const cells = [...drawn].sort((a, b) => a.start - b.start).flatMap((chunk) => chunk.cells);
      return cells.find((cell) => cell.spans[0].getBoundingClientRect().top >= top)?.first ?? stretch.first;
    },
    cellOf,
    /** Rows that are drawn, as [first, last] of their cells in order. */
    cells: () => [...drawn].sort((a, b) => a.start - b.start).flatMap((chunk) => chunk.cells),
    close() {
      observer.disconnect();
      cancelAnimationFrame(frameAsked);
      for (const name of ["wheel", "touchmove", "pointerdown"]) frame.removeEventListener(name, forget);
      for (const chunk of chunks) chunk.stop?.abort();
      frame.replaceChildren();
    },
  };
}

function makeChunks({ first, stop }) {
  const chunks = [];
  for (let start = first; start < stop; start += CHUNK) {
    const node = document.createElement("div");
    node.className = "chunk blank";
    chunks.push({ node, start, end: Math.min(start + CHUNK, stop), from: 0, to: 0, near: false, layer: null, asked: null, rows: null, cells: null, stop: null });
  }
  return chunks;
}

function nearest(waiting, frame) {
  const middle = frame.scrollTop + frame.clientHeight / 2;
  let [best, distance] = [null, Infinity];
  for (const chunk of waiting) {
    const away = Math.abs(chunk.node.offsetTop + chunk.node.offsetHeight / 2 - middle);
    if (away < distance) [best, distance] = [chunk, away];
  }
  return best;
}

function hasAny(rows, cell) {
  for (let row = cell.first; row <= cell.row; row += 1) if (rows.has(row)) return true;
  return false;
}
