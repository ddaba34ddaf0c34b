// Which experts are to be turned how: addresses read, kept in the page's address, counted.

import { formatAddresses } from "moeworks/state";

/** The five operations of this view, in the order in which they are shown. */
export const OPERATIONS = [
  { op: "demote", word: "Demote", does: "never chosen; the router’s next best run instead" },
  { op: "promote", word: "Promote", does: "always chosen, in place of the router’s last choices" },
  { op: "mask", word: "Mask", does: "switched off; the router’s next best run instead" },
  { op: "add", word: "Add", does: "chosen more easily (or less, below 0): logits + strength × the token’s deviation" },
  { op: "scale", word: "Scale", does: "chosen as before; what they say is multiplied by the factor" },
];

const NAMES = OPERATIONS.map((one) => one.op);
const PATTERN = /^L(\d+)\.E(\d+)(?:-(\d+))?$/;
const MOST = 100_000; // experts that one list may name; the largest models have about 50,000

/**
 * Read a comma- or space-separated list of expert addresses; `L3.E4-7` stands for four experts.
 * @param {string} text
 * @returns {string[]} single addresses, each once, by layer and expert
 * @throws {Error} with one sentence on the first word that is no address
 */
export function readAddresses(text) {
  /** @type {Map<string, [number, number]>} */
  const found = new Map();
  for (const word of text.split(/[,;\s]+/).filter(Boolean)) {
    const match = PATTERN.exec(word.toUpperCase());
    if (!match) throw new Error(`“${word.slice(0, 40)}” is not an expert address; write layer and expert as in L3.E5, or L3.E0-5.`);
    const layer = Number(match[1]);
    const first = Number(match[2]);
    const last = match[3] === undefined ? first : Number(match[3]);
    if (last < first) throw new Error(`“${word}” counts backwards; write the smaller expert first.`);
    if (found.size + last - first >= MOST) throw new Error(`“${word.slice(0, 40)}” names too many experts.`);
    for (let expert = first; expert <= last; expert += 1) found.set(`L${layer}.E${expert}`, [layer, expert]);
  }
  return sorted([...found.values()]).map(([layer, expert]) => `L${layer}.E${expert}`);
}

/** @param {string} address @returns {[number, number]} layer and expert */
export function numbers(address) {
  const match = PATTERN.exec(address);
  return [Number(match?.[1]), Number(match?.[2])];
}

/** @param {[number, number][]} pairs */
function sorted(pairs) {
  return pairs.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
}

/**
 * Read the picks from the page's address: one parameter an operation.
 * @param {Record<string, string | undefined>} params
 * @returns {{picks: Record<string, string[]>, problems: string[]}} operation → addresses
 */
export function picksOf(params) {
  /** @type {Record<string, string[]>} */
  const picks = {};
  const problems = [];
  for (const op of NAMES) {
    if (!params[op]) continue;
    try {
      picks[op] = readAddresses(String(params[op]));
    } catch (error) {
      problems.push(String(/** @type {Error} */ (error).message));
    }
  }
  return { picks, problems };
}

/**
 * Return the parameters that keep the picks in the page's address; operations without experts are taken out.
 * @param {Record<string, string[]>} picks
 * @returns {Record<string, string | undefined>}
 */
export function paramsOf(picks) {
  return Object.fromEntries(NAMES.map((op) => [op, picks[op]?.length ? formatAddresses(picks[op]) : undefined]));
}

/**
 * Put experts under an operation; each expert is under one operation only, the last.
 * @param {Record<string, string[]>} picks
 * @param {string} op
 * @param {string[]} addresses
 * @returns {Record<string, string[]>}
 */
export function withPicks(picks, op, addresses) {
  const taken = new Set(addresses);
  const rest = Object.entries(picks).map(([name, list]) => [name, list.filter((one) => !taken.has(one))]);
  const next = Object.fromEntries(rest.filter(([, list]) => list.length));
  if (addresses.length) next[op] = readAddresses([...(next[op] ?? []), ...addresses].join(","));
  return next;
}

/**
 * Take one expert, or a whole operation, out of the picks.
 * @param {Record<string, string[]>} picks
 * @param {string} op
 * @param {string} [address]
 */
export function withoutPicks(picks, op, address) {
  const left = address === undefined ? [] : (picks[op] ?? []).filter((one) => one !== address);
  const { [op]: _gone, ...rest } = picks;
  return left.length ? { ...rest, [op]: left } : rest;
}

/**
 * Return the picks as the server takes them.
 * @param {Record<string, string[]>} picks
 * @param {{strength: number, factor: number}} amounts
 */
export function operationsOf(picks, { strength, factor }) {
  return NAMES.filter((op) => picks[op]?.length).map((op) => ({
    op,
    experts: picks[op],
    ...(op === "add" ? { strength } : {}),
    ...(op === "scale" ? { factor } : {}),
  }));
}

/**
 * Count what is touched.
 * @param {Record<string, string[]>} picks
 * @returns {{experts: number, layers: number}}
 */
export function countPicks(picks) {
  const all = Object.values(picks).flat();
  return { experts: new Set(all).size, layers: new Set(all.map((one) => numbers(one)[0])).size };
}
