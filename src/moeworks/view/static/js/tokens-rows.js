// Rows of a trace, fetched in windows when they are needed.

import { column, getTable } from "moeworks/data";
import { hashOf } from "moeworks/state";

/** Rows fetched at once for the text, and so many more that two windows agree on where a line is broken. */
export const WINDOW = 2048;
export const OVERLAP = 64;
const AROUND = 64;

/**
 * @typedef {{ids: Uint8Array | Uint16Array, weights: Float32Array, k: number, entropy: Float32Array | null,
 *   margin: Float32Array | null, divergence: Float32Array | null}} LayerRows
 * @typedef {{start: number, stop: number, request: Int32Array, position: Int32Array, token: Int32Array,
 *   text: string[], part: boolean[], phase: string[], layers: Map<number, LayerRows>, entropyOf: string,
 *   noText: string}} Rows
 */

const decoded = new WeakMap();

/**
 * Fetch rows `start` to `stop` (not included) with the columns of some layers; null for all of them.
 * @param {string} trace its id
 * @param {number} start
 * @param {number} stop
 * @param {number[] | null} layers
 * @param {AbortSignal} [signal]
 * @returns {Promise<Rows>}
 */
export async function fetchRows(trace, start, stop, layers, signal) {
  const wanted = layers === null ? "" : `&layers=${layers.join(",")}`;
  const url = `api/traces/${encodeURIComponent(trace)}/tokens?start=${start}&stop=${stop}${wanted}`;
  const table = await getTable(url, { signal });
  if (!decoded.has(table)) decoded.set(table, decode(table, start));
  return decoded.get(table);
}

/**
 * The window of rows that a row's text is drawn from, cut to the stretch that is shown.
 * @param {number} row
 * @param {{first: number, stop: number}} stretch
 * @returns {[number, number]}
 */
export function windowOf(row, { first, stop }) {
  const start = first + Math.floor((row - first) / WINDOW) * WINDOW;
  return [start, Math.min(start + WINDOW + OVERLAP, stop)];
}

/**
 * A row with its neighbours and all layers; rows near each other share one answer of the server.
 * @param {string} trace
 * @param {number} row
 * @param {number} total rows of the trace
 * @param {number} reach neighbours on each side
 * @param {AbortSignal} [signal]
 * @returns {Promise<Rows>}
 */
export function fetchAround(trace, row, total, reach, signal) {
  const start = Math.max(0, Math.floor(row / AROUND) * AROUND - reach);
  return fetchRows(trace, start, Math.min(total, Math.floor(row / AROUND) * AROUND + AROUND + reach), null, signal);
}

function decode(table, start) {
  const layers = new Map();
  for (const field of table.schema.fields) {
    const match = /^L(\d+)\.ids$/.exec(field.name);
    if (!match) continue;
    const name = `L${match[1]}`;
    layers.set(Number(match[1]), {
      ids: column(table, `${name}.ids`),
      weights: column(table, `${name}.weights`),
      k: field.type.listSize,
      entropy: column(table, `${name}.entropy`),
      margin: column(table, `${name}.margin`),
      divergence: column(table, `${name}.divergence`),
    });
  }
  return {
    start,
    stop: start + table.numRows,
    request: column(table, "request"),
    position: column(table, "position"),
    token: column(table, "token"),
    text: [...table.getChild("text")],
    part: [...table.getChild("part")],
    phase: [...table.getChild("phase")],
    layers,
    entropyOf: table.schema.metadata.get("entropy") ?? "weights",
    noText: table.schema.metadata.get("no_text") ?? "",
  };
}

/**
 * A row's experts in one layer, the heaviest first.
 * @param {LayerRows} layer
 * @param {number} index of the row in its window
 * @returns {{expert: number, weight: number}[]}
 */
export function routeOf(layer, index) {
  const { k } = layer;
  const found = [];
  for (let slot = index * k; slot < (index + 1) * k; slot += 1) found.push({ expert: layer.ids[slot], weight: layer.weights[slot] });
  return found.sort((a, b) => b.weight - a.weight);
}

/**
 * The expert with the largest weight; of equal ones the first slot.
 * @param {LayerRows} layer
 * @param {number} index
 * @returns {number}
 */
export function firstExpert(layer, index) {
  const { k, ids, weights } = layer;
  let best = index * k;
  for (let slot = best + 1; slot < (index + 1) * k; slot += 1) if (weights[slot] > weights[best]) best = slot;
  return ids[best];
}

/**
 * The address of a token on this page, for links from other views.
 * @param {string} trace @param {number} row @param {Record<string, unknown>} [more]
 * @returns {string}
 */
export function tokenLink(trace, row, more = {}) {
  return hashOf("tokens", { trace, row, ...more });
}
