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
  return html`
    <ul class="verdicts" aria-label="U-shape">
      ${found.map(
        (row) => html`<li key=${row.value}>
          <b dir="auto">${row.value}</b>${" "}
          <span class=${row.u_shape ? "verdict-yes" : "verdict-no"}>${row.u_shape ? "U-shaped" : "no U-shape"}</span>${" "}
          <span class="quiet">ends − middle ${digits(row.difference)} [${digits(row.low)}, ${digits(row.high)}], p ${digits(row.p)}</span>
        </li>`,
      )}
    </ul>
  `;
}
