/** A table whose columns sort; the twin of every chart, and what league tables are shown in. */

import { useMemo, useState } from "preact/hooks";
import { html } from "moeworks/parts";
import { digits, words } from "moeworks/layers-series";

const SHOWN = 200; // rows at first; more on demand, so that a long table does not hold the page up

/**
 * @typedef {{name: string, title?: string, hint?: string, cell?: (row: any) => any, value?: (row: any) => any}} Column
 * @param {{
 *   columns: (string | Column)[], rows: Record<string, any>[], caption: string,
 *   sort?: string, onSort?: (sort: string) => void, marked?: (row: any) => boolean
 * }} props `sort` is a column's name, with `-` before it for the largest first
 */
export function SortableTable({ columns, rows, caption, sort, onSort, marked }) {
  const [own, setOwn] = useState("");
  const [shown, setShown] = useState(SHOWN);
  const order = sort ?? own;
  const choose = onSort ?? setOwn;
  const full = columns.map((one) => (typeof one === "string" ? { name: one } : one));
  const by = full.find((one) => one.name === order.replace(/^-/, ""));
  const sorted = useMemo(() => (by ? sortRows(rows, by, order.startsWith("-")) : rows), [rows, order, by?.name]);
  const numeric = new Set(full.filter((one) => rows.some((row) => typeof valueOf(row, one) === "number")).map((one) => one.name));
  return html`
    <div class="table-box" tabindex="0" role="region" aria-label=${caption}>
      <table class="data-table">
        <caption class="visually-hidden">${caption}</caption>
        <thead>
          <tr>
            ${full.map((one) => {
              const state = by?.name === one.name ? (order.startsWith("-") ? "descending" : "ascending") : "none";
              return html`<th scope="col" key=${one.name} aria-sort=${state} class=${numeric.has(one.name) ? "number" : ""}>
                <button type="button" title=${one.hint} onClick=${() => choose(next(order, one.name, numeric.has(one.name)))}>
                  ${one.title ?? words(one.name)}<span class="sort-mark" aria-hidden="true"
                    >${state === "descending" ? "▾" : state === "ascending" ? "▴" : ""}</span
                  >
                </button>
              </th>`;
            })}
          </tr>
        </thead>
        <tbody>
          ${sorted.slice(0, shown).map(
            (row, place) => html`<tr key=${place} class=${marked?.(row) ? "marked" : ""}>
              ${full.map((one) => html`<td key=${one.name} class=${numeric.has(one.name) ? "number" : ""}>${one.cell ? one.cell(row) : plain(row[one.name])}</td>`)}
            </tr>`,
          )}
        </tbody>
      </table>
      ${sorted.length > shown &&
      html`<button type="button" class="more" onClick=${() => setShown(shown * 5)}>
        Show more of the ${sorted.length.toLocaleString("en")} rows
      </button>`}
    </div>
  `;
}

/** @param {any} row @param {Column} column */
function valueOf(row, column) {
  return column.value ? column.value(row) : row[column.name];
}

/** @param {any} value @returns {string} */
export function plain(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (value && typeof value === "object") return Object.entries(value).map(([name, one]) => `${name} ${plain(one)}`).join(", ");
  return digits(value);
}

/** Sort by a column; what has no value comes last either way. */
function sortRows(/** @type {any[]} */ rows, /** @type {Column} */ column, /** @type {boolean} */ down) {
  const collator = new Intl.Collator(undefined, { numeric: true });
  const missing = (/** @type {any} */ value) => value === null || value === undefined || Number.isNaN(value);
  return [...rows].sort((a, b) => {
    const [first, second] = [valueOf(a, column), valueOf(b, column)];
    if (missing(first) || missing(second)) return Number(missing(first)) - Number(missing(second));
    const order = typeof first === "number" && typeof second === "number" ? first - second : collator.compare(plain(first), plain(second));
    return down ? -order : order;
  });
}

/** @param {string} order @param {string} name @param {boolean} number the next order after a click: large numbers first */
function next(order, name, number) {
  const cycle = number ? [`-${name}`, name, ""] : [name, `-${name}`, ""];
  return cycle[(cycle.indexOf(order) + 1) % 3];
}
