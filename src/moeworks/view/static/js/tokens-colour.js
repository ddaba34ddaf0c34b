// What a token's colour says: its first expert, an expert's weight, or an amount of its layer.

import { kindColour, scaleColour } from "moeworks/colours";
import { firstExpert } from "moeworks/tokens-rows";

/** The quantities, their names, and what each says of a token in the chosen layer. */
export const QUANTITIES = {
  expert: { label: "first expert", says: "the expert with the largest weight" },
  weight: { label: "weight of one expert", says: "the combine weight that one expert got; none where it did not run" },
  entropy: { label: "entropy", says: "entropy in nats: 0 is certain of its experts" },
  margin: { label: "margin", says: "by how much the last chosen expert beats the first that is not" },
  load: { label: "load of its first expert", says: "the share of all tokens for which its first expert ran" },
  divergence: { label: "divergence", says: "divergence in nats from how the layer routes on the whole" },
  none: { label: "no colour", says: "" },
};

/**
 * Why a quantity cannot be shown of a trace, or "".
 * @param {string} quantity
 * @param {{logits: boolean, weights: boolean}} trace
 * @returns {string}
 */
export function missing(quantity, trace) {
  if (quantity === "margin" && !trace.logits) return "needs a trace with logits";
  if (["weight", "entropy", "divergence"].includes(quantity) && !trace.weights && !trace.logits) return "its source told no weights";
  return "";
}

/**
 * The value of a row, NaN where it has none.
 * @param {string} quantity
 * @param {import("moeworks/tokens-rows").LayerRows} layer
 * @param {number} index of the row in its window
 * @param {{expert: number, loads: Map<number, number> | null}} more
 * @returns {number}
 */
export function valueOf(quantity, layer, index, { expert, loads }) {
  if (quantity === "expert") return firstExpert(layer, index);
  if (quantity === "load") return loads?.get(firstExpert(layer, index)) ?? NaN;
  if (quantity === "weight") {
    for (let slot = index * layer.k; slot < (index + 1) * layer.k; slot += 1) {
      if (layer.ids[slot] === expert && layer.weights[slot] > 0) return layer.weights[slot];
    }
    return NaN;
  }
  return layer[quantity]?.[index] ?? NaN;
}

/**
 * The ends of a scale: from the 2nd to the 98th of a hundred parts of a sample's values.
 * @param {string} quantity
 * @param {import("moeworks/tokens-rows").LayerRows} layer
 * @param {number} count
 * @param {{expert: number, loads: Map<number, number> | null}} more
 * @returns {[number, number]}
 */
export function rangeOf(quantity, layer, count, more) {
  if (quantity === "weight") return [0, 1];
  const values = [];
  for (let i = 0; i < count; i += 1) {
    const value = valueOf(quantity, layer, i, more);
    if (!Number.isNaN(value)) values.push(value);
  }
  values.sort((a, b) => a - b);
  if (values.length === 0) return [0, 1];
  const [low, high] = [0.02, 0.98].map((share) => values[Math.min(values.length - 1, Math.round(share * (values.length - 1)))]);
  return high > low ? [low, high] : [low, low + 1e-9];
}

/**
 * The colour of a value; "" for none.
 * @param {string} quantity
 * @param {number} value
 * @param {[number, number]} range
 * @returns {string}
 */
export function colourOf(quantity, value, [low, high]) {
  if (Number.isNaN(value)) return "";
  if (quantity === "expert") return kindColour(value);
  return scaleColour((value - low) / (high - low), "amount");
}

/**
 * Colour cells. A character of several tokens has their colours side by side.
 * @param {import("moeworks/tokens-text").Cell[]} cells
 * @param {import("moeworks/tokens-rows").Rows} rows
 * @param {{quantity: string, layer: number, expert: number, loads: Map<number, number> | null, range: [number, number]}} colouring
 */
export function colourCells(cells, rows, colouring) {
  const layer = rows.layers.get(colouring.layer);
  for (const cell of cells) {
    const colours = [];
    for (let row = cell.first; row <= cell.row; row += 1) {
      const value = layer && colouring.quantity !== "none" ? valueOf(colouring.quantity, layer, row - rows.start, colouring) : NaN;
      colours.push(colourOf(colouring.quantity, value, colouring.range));
    }
    for (const span of cell.spans) {
      span.style.setProperty("--c", colours.at(-1) || "transparent");
      if (colours.length > 1) span.style.setProperty("--bar", stripes(colours));
    }
  }
}

function stripes(colours) {
  const width = 100 / colours.length;
  const stops = colours.map((colour, i) => `${colour || "transparent"} ${i * width}% ${(i + 1) * width}%`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}
