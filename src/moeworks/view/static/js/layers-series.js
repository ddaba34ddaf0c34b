// From the rows of a diagnostic to lines of a chart: which columns are numbers, their intervals and chance levels.

/** Columns that say what a row is about; all others are numbers of it. */
const KEYS = new Set([
  "layer", "value", "phase", "segment", "expert", "chunk", "step", "factor", "group", "next_layer", "rank", "positions",
  "first", "second", "capacity", "relative", "policy", "layers", "last_layer",
  "held", "share",
]);

/** Columns that are kept in the table and not drawn. */
const TABLE_ONLY = new Set(["p", "q", "distance_p", "rank_p", "tokens", "documents", "windows", "threshold", "batches"]);

/** Chance levels that belong to another number than their name and place say. */
const CHANCE_OF = {
  token_overlap: { same_token: ["chance"], different_token: ["chance"], excess: [] },
  token_dependence: { dependence: ["chance", "uniform_chance"], excess: [] },
  specialisation: { rate: ["uniform"] },
};

/** What each diagnostic's first picture shows, where it is not its first number. */
const FIRST = { divergence: "normalised", balance: "max_violation", confidence: "weight_entropy" };

/**
 * @typedef {{name: string, low?: string, high?: string, chance: string[]}} Metric
 * @typedef {{key: string, label: string, points: {x: number, y: number, low?: number, high?: number, chance: number[]}[]}} Series
 */

/**
 * Return the numbers of a diagnostic that can be drawn, each with its interval and the levels it has by chance.
 * @param {{what: string, shown?: {name: string, ends: string[]}[], rows: Record<string, any>[]}} diagnostic
 * @returns {Metric[]}
 */
export function metricsOf({ what, shown: given, rows }) {
  const present = rows[0] ?? {};
  const specs = given ?? Object.keys(present).map((name) => ({ name, ends: [] }));
  const numeric = (/** @type {string} */ name) => rows.some((row) => typeof row[name] === "number");
  /** @type {Metric[]} */
  const found = [];
  for (const { name, ends } of specs) {
    if (KEYS.has(name) || TABLE_ONLY.has(name) || !numeric(name)) continue;
    if (/(^|_)(low|high)$/.test(name)) continue;
    if (/chance$/.test(name)) {
      const owner = found.find((one) => name.startsWith(`${one.name}_`)) ?? found.at(-1);
      if (owner && !owner.chance.includes(name)) owner.chance.push(name);
      continue;
    }
    const low = ends[0] ?? (`${name}_low` in present ? `${name}_low` : undefined);
    const high = ends[1] ?? (`${name}_high` in present ? `${name}_high` : undefined);
    const own = [`${name}_chance`].filter((one) => one in present && numeric(one));
    found.push({ name, low, high, chance: own });
  }
  const fixed = CHANCE_OF[/** @type {keyof typeof CHANCE_OF} */ (what)] ?? {};
  for (const metric of found) {
    if (metric.name in fixed) metric.chance = fixed[metric.name].filter((/** @type {string} */ one) => one in present);
  }
  return found;
}

/**
 * Return the number that is drawn unless another is chosen.
 * @param {string} what
 * @param {Metric[]} metrics
 */
export function firstMetric(what, metrics) {
  const name = FIRST[/** @type {keyof typeof FIRST} */ (what)];
  const withInterval = metrics.find((one) => one.low);
  return metrics.find((one) => one.name === name) ?? withInterval ?? metrics[0];
}

/**
 * Return the columns, other than the layer, that tell rows apart, with their values in order of appearance.
 * @param {Record<string, any>[]} rows
 * @param {string} [axis] the column that runs along the chart
 * @returns {{name: string, values: string[]}[]}
 */
export function facetsOf(rows, axis = "layer") {
  const names = Object.keys(rows[0] ?? {}).filter((name) => KEYS.has(name) && name !== axis && name !== "rank");
  return names
    .map((name) => ({ name, values: [...new Set(rows.map((row) => shown(row[name])))] }))
    .filter((facet) => facet.values.length > 1);
}

/**
 * Return one line for each value of a facet.
 * @param {Record<string, any>[]} rows those that are drawn
 * @param {Metric} metric
 * @param {{axis?: string, by?: string}} options column along the chart, and the one whose values are lines
 * @returns {Series[]}
 */
export function seriesOf(rows, metric, { axis = "layer", by } = {}) {
  /** @type {Map<string, Series>} */
  const lines = new Map();
  for (const row of rows) {
    if (typeof row[axis] !== "number" || typeof row[metric.name] !== "number") continue;
    const key = by ? shown(row[by]) : "";
    if (!lines.has(key)) lines.set(key, { key, label: by && typeof row[by] === "number" ? `${words(by)} ${key}` : key || words(metric.name), points: [] });
    const number = (/** @type {string | undefined} */ name) =>
      name !== undefined && typeof row[name] === "number" ? row[name] : undefined;
    lines.get(key)?.points.push({
      x: row[axis],
      y: row[metric.name],
      low: number(metric.low),
      high: number(metric.high),
      chance: metric.chance.map((name) => number(name) ?? NaN),
    });
  }
  for (const line of lines.values()) line.points.sort((a, b) => a.x - b.x);
  return [...lines.values()];
}

/** @param {any} value @returns {string} */
export function shown(value) {
  return value === null || value === undefined || value === "" ? "all" : String(value);
}

/** @param {string} name a column's name @returns {string} in words */
export function words(name) {
  return name.replaceAll("_", " ");
}

/**
 * Write a number with three significant digits, as the tables do.
 * @param {any} value
 * @returns {string}
 */
export function digits(value) {
  if (typeof value !== "number") return value === null || value === undefined || value === "" ? "–" : String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size !== 0 && size < 0.0005 ? value.toExponential(1) : value.toFixed(size >= 100 ? 1 : 3);
}
