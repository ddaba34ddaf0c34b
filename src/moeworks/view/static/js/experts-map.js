// The numbers of the map layers × experts, fetched and put in order.

import { column, getTable } from "moeworks/data";
import { quoted } from "moeworks/tokens-route";

/** What the map can show. */
export const KINDS_OF_MAP = {
  load: { label: "load", says: "share of the tokens for which an expert ran; chance is even use" },
  weight: { label: "weight", says: "mean share of a token's combine weight that an expert got; chance is even use" },
  specialisation: { label: "specialisation", says: "log ratio of an expert's share of this value's runs to its share of all runs; 0 is general use" },
  score: { label: "scores file", says: "the scores' own number; a dot stands where their test passes" },
};

/**
 * @typedef {{address: string, layer: number, expert: number, value: number | null, chance: number | null, low: number | null,
 *   high: number | null, passes: boolean | null, protected: boolean}} Cell
 * @typedef {{cells: Cell[], layers: number[], widest: number, byAddress: Map<string, Cell>, range: [number, number],
 *   twoSided: boolean}} ExpertMap
 */

/**
 * What the address asks for, with what is missing filled in, and what is wrong with it in words.
 * @param {any} trace @param {any} sources @param {Record<string, string>} params
 */
export function chooseMap(trace, sources, params) {
  const files = sources.scores.filter((one) => one.unit !== "neuron");
  const by = params.by in KINDS_OF_MAP ? params.by : "load";
  const labels = Object.keys(trace.labels).filter((name) => Object.keys(trace.labels[name]).length > 1);
  let label = params.label ?? "";
  let value = params.value ?? "";
  let problem = params.by && !(params.by in KINDS_OF_MAP) ? `There is no map by “${params.by}”: one of ${Object.keys(KINDS_OF_MAP).join(", ")}.` : "";
  if (by === "specialisation") {
    label ||= labels.includes("lang") ? "lang" : labels[0] ?? "";
    if (label && !value) value = firstValue(trace, label);
    if (!label) problem = "Specialisation needs texts with labels, such as languages: record them with a label, or look at the load.";
  }
  const scores = by === "score" ? files.find((one) => one.id === params.scores)?.id ?? (params.scores ? params.scores : files[0]?.id ?? "") : "";
  if (by === "score" && !scores) problem = "There is no scores file here yet. Make one and open the page with it.";
  return { by, label: by === "score" ? "" : label, value: by === "score" ? "" : value, scores, labels, files, problem };
}

/** @param {any} trace @param {string} label @returns {string} a value to begin with: `ru` where there is one */
export function firstValue(trace, label) {
  const values = Object.keys(trace.labels[label] ?? {});
  return values.includes("ru") ? "ru" : values[0] ?? "";
}

/**
 * The command that prints the same map.
 * @param {any} trace @param {any} sources @param {{by: string, label: string, value: string, scores: string}} choice
 * @returns {string}
 */
export function mapCommand(trace, sources, { by, label, value, scores }) {
  const file = sources.scores.find((one) => one.id === scores);
  const more = [label && `--label ${quoted(label)} --value ${quoted(value)}`, by === "score" && `--scores ${quoted(file?.path ?? file?.name ?? scores)}`];
  return ["moeworks inspect", quoted(trace.path ?? trace.name), `--map ${by}`, ...more].filter(Boolean).join(" ");
}

/**
 * @param {string} trace
 * @param {{by: string, label: string, value: string, scores: string}} choice
 * @param {AbortSignal} [signal]
 * @returns {Promise<ExpertMap>}
 */
export async function fetchMap(trace, { by, label, value, scores }, signal) {
  const query = new URLSearchParams({ by });
  if (label && value) {
    query.set("label", label);
    query.set("value", value);
  }
  if (scores) query.set("scores", scores);
  const table = await getTable(`api/traces/${encodeURIComponent(trace)}/map?${query}`, { signal });
  const [layers, experts] = ["layer", "expert"].map((name) => column(table, name));
  const vectors = Object.fromEntries(["value", "chance", "low", "high", "passes", "protected"].map((name) => [name, table.getChild(name)]));
  const cells = Array.from(layers, (layer, i) => {
    const cell = { address: `L${layer}.E${experts[i]}`, layer, expert: experts[i] };
    for (const [name, vector] of Object.entries(vectors)) cell[name] = vector?.get(i) ?? null;
    return cell;
  });
  return arranged(cells, by);
}

function arranged(cells, by) {
  const values = cells.map((cell) => cell.value).filter((value) => value !== null && !Number.isNaN(value)).sort((a, b) => a - b);
  const twoSided = by === "specialisation" || (by === "score" && values[0] < 0);
  const at = (share) => values[Math.round(share * (values.length - 1))] ?? 0;
  const most = twoSided ? Math.max(Math.abs(at(0.005)), Math.abs(at(0.995))) : at(0.995);
  return {
    cells,
    layers: [...new Set(cells.map((cell) => cell.layer))],
    widest: Math.max(0, ...cells.map((cell) => cell.expert + 1)),
    byAddress: new Map(cells.map((cell) => [cell.address, cell])),
    range: twoSided ? [-most || -1, most || 1] : [0, most || 1],
    twoSided,
  };
}

/**
 * The experts with the largest values, those that pass the test where there is one, never protected ones.
 * @param {ExpertMap} map
 * @param {number} count
 * @returns {string[]} addresses
 */
export function strongest(map, count) {
  const tested = map.cells.some((cell) => cell.passes !== null);
  return map.cells
    .filter((cell) => cell.value !== null && !cell.protected && (!tested || cell.passes))
    .sort((a, b) => b.value - a.value)
    .slice(0, count)
    .map((cell) => cell.address);
}
