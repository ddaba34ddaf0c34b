// The routes of both texts: how many rows the plan changed, and recording both for the views Compare and Tokens.

import { tableFromIPC } from "apache-arrow";
import { useState } from "preact/hooks";
import { column, postJson, refreshSources } from "moeworks/data";
import { Button, Card, Failure, html } from "moeworks/parts";
import { change, hashOf } from "moeworks/state";

/**
 * Count the rows whose experts differ, as `moeworks compare` does: row by row until the texts part.
 * @param {{data: string, layers: number[]}} before routes of an answer
 * @param {{data: string, layers: number[]}} after
 * @returns {{rows: number, changed: number, left: number, layers: {layer: number, changed: number}[]}} rows of the same
 *   token after the same tokens; those with another set of experts somewhere; rows left out; changed rows by layer
 */
export function countRoutes(before, after) {
  const [a, b] = [before, after].map((routes) => tableFromIPC(bytesOf(routes.data)));
  const [first, second] = [column(a, "token"), column(b, "token")];
  let rows = 0;
  while (rows < first.length && rows < second.length && first[rows] === second[rows]) rows += 1;
  const anywhere = new Uint8Array(rows);
  const layers = before.layers.map((layer) => {
    const [ids, others] = [column(a, `L${layer}.ids`), column(b, `L${layer}.ids`)];
    const k = ids.length / first.length;
    const changed = countLayer({ ids, others, k, otherK: others.length / second.length, rows, anywhere });
    return { layer, changed };
  });
  return { rows, changed: anywhere.reduce((sum, one) => sum + one, 0), left: Math.max(first.length, second.length) - rows, layers };
}

function countLayer({ ids, others, k, otherK, rows, anywhere }) {
  let changed = 0;
  for (let row = 0; row < rows; row += 1) {
    const set = new Set(ids.subarray(row * k, (row + 1) * k));
    const other = new Set(others.subarray(row * otherK, (row + 1) * otherK));
    if (set.size === other.size && [...set].every((id) => other.has(id))) continue;
    changed += 1;
    anywhere[row] = 1;
  }
  return changed;
}

/** @param {string} text base64 */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** @param {{texts: any, now: string, plan: any, params: Record<string, string>}} props */
export function RoutesCard({ texts, now, plan, params }) {
  const [busy, setBusy] = useState("");
  const [error, setError] = useState("");
  const { shown, running } = texts;
  if (!shown?.after || running) return null;
  const counted = shown.counted;
  const present = shown.key === now;
  const record = async () => {
    setError("");
    try {
      const [prompt, tokens, chat] = JSON.parse(shown.key);
      const body = { ...(chat ? { messages: [{ role: "user", content: prompt }] } : { text: prompt }), max_tokens: tokens };
      setBusy("Recording the text without the plan …");
      const a = await postJson("api/record", body);
      setBusy("Recording the text with the plan …");
      const b = await postJson("api/record", { ...body, plan: plan.plan });
      refreshSources();
      change({ a: a.trace, b: b.trace }, { replace: true });
    } catch (problem) {
      setError(/** @type {Error} */ (problem).message);
    }
    setBusy("");
  };
  return html`
    <${Card} title="Routes" className="steer-routes">
      ${counted &&
      html`<p role="status">
        <b>${counted.changed.toLocaleString("en")}</b> of ${counted.rows.toLocaleString("en")} rows that both texts share are routed
        differently${counted.left ? `; from there on the texts are different ones (${counted.left.toLocaleString("en")} rows)` : ""}.
      </p>
      <${LayerBars} counted=${counted} />`}
      <div class="controls">
        ${params.a && params.b
          ? html`<a class="button" href=${hashOf("compare", { a: params.a, b: params.b })}>Compare the routes</a>
              <a class="button" href=${hashOf("tokens", { trace: params.a })}>Tokens without the plan</a>
              <a class="button" href=${hashOf("tokens", { trace: params.b })}>Tokens with the plan</a>`
          : html`<${Button} onClick=${record} disabled=${Boolean(busy) || !present || !plan.plan}
              title=${present ? "" : "These texts are of an earlier prompt or plan; generate again first"}>Record both for Compare and Tokens<//>`}
      </div>
      <p class="quiet" role="status">${busy}</p>
      ${error && html`<${Failure} error=${error} again=${record} />`}
    <//>
  `;
}

/** Changed rows by layer as bars, each with its number. */
function LayerBars({ counted }) {
  return html`
    <table class="layer-bars">
      <caption class="unseen">Rows routed differently, by layer</caption>
      <tbody>
        ${counted.layers.map(
          (/** @type {any} */ one) => html`<tr key=${one.layer}>
            <th scope="row">layer ${one.layer}</th>
            <td class="layer-share"><span style=${{ "--share": counted.rows ? one.changed / counted.rows : 0 }}></span></td>
            <td class="numeric">${one.changed.toLocaleString("en")}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  `;
}
