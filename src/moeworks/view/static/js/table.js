// A table that sorts by its headings and shows long lists piece by piece.

import { html } from "moeworks/markup";
import { useState } from "preact/hooks";

/**
 * @typedef {{name: string, label?: string, numeric?: boolean, title?: string, show?: (row: any) => any, key?: (row: any) => any}} Column
 *   show: what stands in the cell; key: what is sorted by (the value under `name` without).
 */

/**
 * @param {{caption?: string, columns: Column[], rows: any[], sort?: string, descending?: boolean, first?: number,
 *   marked?: (row: any) => boolean, rowKey?: (row: any) => string, onPick?: (row: any) => void}} props
 *   first: rows shown before "show more"; sort: the column the rows are sorted by at first
 */
export function Table({ caption, columns, rows, sort = "", descending = false, first = 50, marked, rowKey, onPick }) {
  const [order, setOrder] = useState({ name: sort, down: descending });
  const [shown, setShown] = useState(first);
  const by = columns.find((column) => column.name === order.name);
  const sorted = by ? [...rows].sort(comparing(by.key ?? ((row) => row[by.name]), order.down)) : rows;
  const turn = (column) =>
    setOrder({ name: column.name, down: order.name === column.name ? !order.down : Boolean(column.numeric) });
  return html`
    <div class="table-frame" tabindex="0" role="region" aria-label=${caption ?? "table"}>
      <table>
        ${caption && html`<caption>${caption}</caption>`}
        <thead>
          <tr>
            ${columns.map(
              (column) => html`
                <th scope="col" class=${column.numeric ? "numeric" : ""}
                  aria-sort=${order.name !== column.name ? undefined : order.down ? "descending" : "ascending"}>
                  <button type="button" class="plain" title=${column.title} onClick=${() => turn(column)}>
                    ${column.label ?? column.name}<span class="sorted" aria-hidden="true">${order.name !== column.name ? "" : order.down ? " ▾" : " ▴"}</span>
                  </button>
                </th>
              `,
            )}
          </tr>
        </thead>
        <tbody>
          ${sorted.slice(0, shown).map(
            (row, i) => html`
              <tr key=${rowKey ? rowKey(row) : i} class=${marked?.(row) ? "marked" : ""} onClick=${onPick && (() => onPick(row))}>
                ${columns.map(
                  (column) => html`<td class=${column.numeric ? "numeric" : ""} dir=${column.numeric ? undefined : "auto"}>${column.show ? column.show(row) : plain(row[column.name])}</td>`,
                )}
              </tr>
            `,
          )}
        </tbody>
      </table>
      ${rows.length > shown &&
      html`<p class="more">
        <button type="button" onClick=${() => setShown(shown + 200)}>Show more</button>
        <span class="quiet">${shown} of ${rows.length.toLocaleString("en")} rows</span>
      </p>`}
    </div>
  `;
}

function plain(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function comparing(key, down) {
  const sign = down ? -1 : 1;
  return (a, b) => {
    const [left, right] = [key(a), key(b)];
    const [noLeft, noRight] = [left ?? null, right ?? null].map((value) => value === null || Number.isNaN(value));
    if (noLeft || noRight) return Number(noLeft) - Number(noRight);
    if (typeof left === "number" && typeof right === "number") return sign * (left - right);
    return sign * String(left).localeCompare(String(right), "en", { numeric: true });
  };
}
