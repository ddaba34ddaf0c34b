// Whether divergence is larger at both ends of the model than in its middle, said for each value of a label.

import { getJson, useLoaded } from "moeworks/data";
import { digits } from "moeworks/layers-series";
import { html } from "moeworks/parts";

/** @param {{trace: any, label: string, base: string, rows: any[] | null}} props `rows` of `u_shape`, if they are here already */
export function UShape({ trace, label, base, rows }) {
  const query = new URLSearchParams(Object.entries({ label, base }).filter(([, value]) => value)).toString();
  const loaded = useLoaded(
    (signal) => (rows || trace.layers.length < 3 ? null : getJson(`api/traces/${trace.id}/layers/u_shape${query ? `?${query}` : ""}`, { signal })),
    [trace.id, query, rows === null],
  );
  const found = rows ?? loaded.value?.rows;
  if (!found?.length) return null; // a trace that cannot tell it has its divergence all the same
  const shaped = found.filter((/** @type {any} */ row) => row.u_shape).map((/** @type {any} */ row) => row.value);
  return html`
    <p>
      ${shaped.length ? html`U-shaped for certain – larger at both ends than in the middle: <b>${shaped.join(", ")}</b>; not so: ${found.length - shaped.length} of ${found.length}.` : `For none of ${found.length} is the curve U-shaped for certain, which is larger at both ends than in the middle.`}
    </p>
    <details open=${found.length <= 4}><summary>Ends less middle, for each</summary>
    <ul class="verdicts" aria-label="U-shape">
      ${found.map(
        (row) => html`<li key=${row.value}>
          <b dir="auto">${row.value || "all"}</b>${" "}
          <span class=${row.u_shape ? "verdict-yes" : "verdict-no"}>${row.u_shape ? "U-shaped" : "no U-shape"}</span>${" "}
          <span class="quiet">${digits(row.difference)}${typeof row.low === "number" ? ` [${digits(row.low)}, ${digits(row.high)}]` : ", too few documents for an interval"}, p ${digits(row.p)}</span>
        </li>`,
      )}
    </ul></details>
  `;
}
