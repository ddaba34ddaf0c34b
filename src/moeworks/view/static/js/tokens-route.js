// One token's way through all layers: experts and weights as bars, and its neighbours that went elsewhere.

import { useState } from "preact/hooks";
import { inkOn, kindColour, rgb } from "moeworks/colours";
import { useLoaded } from "moeworks/data";
import { Command, Failure, formatNumber, html, Loading, Table } from "moeworks/parts";
import { hashOf } from "moeworks/state";
import { fetchAround, firstExpert, routeOf } from "moeworks/tokens-rows";
import { shown, tokenName } from "moeworks/tokens-text";

const REACH = 6;

/**
 * @param {{trace: any, row: number, layer: number, onRow: (row: number) => void, onLayer: (layer: number) => void}} props
 */
export function RoutePanel({ trace, row, layer, onRow, onLayer }) {
  const around = useLoaded(row < 0 ? () => null : (signal) => fetchAround(trace.id, row, trace.rows, REACH, signal), [trace.id, row]);
  if (row < 0) return html`<p class="quiet">Point at a token, or walk with the arrow keys, to see its route through all layers.</p>`;
  if (around.error) return html`<${Failure} error=${around.error} again=${around.again} />`;
  const rows = around.value ?? around.previous; // of the same trace; whether it holds the row is looked at next
  if (!rows || row < rows.start || row >= rows.stop) return html`<${Loading} />`;
  return html`<${Route} trace=${trace} rows=${rows} row=${row} layer=${layer} onRow=${onRow} onLayer=${onLayer} />`;
}

function Route({ trace, rows, row, layer, onRow, onLayer }) {
  const at = row - rows.start;
  const neighbours = neighboursOf(rows, row);
  const layers = [...rows.layers.keys()];
  const most = Math.max(...layers.map((name) => routeOf(rows.layers.get(name), at).reduce((sum, step) => sum + step.weight, 0)), 1e-9);
  return html`
    <header class="route-head">
      <span class="route-token" dir="auto">${tokenName(rows, row)}</span>
      <span class="quiet">token ${rows.token[at]}, row ${row}, position ${rows.position[at]} of request ${rows.request[at]}, ${rows.phase[at]}</span>
    </header>
    <div class="route" style=${{ "--neighbours": neighbours.length }}>
      <div class="route-row route-names" aria-hidden="true">
        <span></span><span class="quiet">experts and weights</span>
        <span class="cells">${neighbours.map((other) => html`<button type="button" tabindex="-1" class=${other === row ? "self" : ""} title=${`row ${other}`} onClick=${() => onRow(other)}>${other === row ? "●" : shortName(rows, other)}</button>`)}</span>
      </div>
      ${layers.map(
        (name) => html`<${LayerRow} key=${name} trace=${trace} rows=${rows} row=${row} name=${name} chosen=${name === layer} most=${most} neighbours=${neighbours} onLayer=${onLayer} />`,
      )}
    </div>
    <p class="quiet route-says" role="status">${inWords(rows, row, layer, neighbours)}</p>
    <p class="route-key quiet"><i class="same"></i> same experts <i class="half"></i> some of them <i class="other"></i> went elsewhere</p>
    <${AsTable} rows=${rows} row=${row} />
    <${Command} command=${`moeworks trace show ${quoted(trace.path ?? trace.name)} --from ${row} --rows 1`} />
  `;
}

function LayerRow({ trace, rows, row, name, chosen, most, neighbours, onLayer }) {
  const data = rows.layers.get(name);
  const at = row - rows.start;
  return html`
    <div class=${`route-row ${chosen ? "chosen" : ""}`}>
      <button type="button" class="plain layer" aria-pressed=${chosen} title="Colour the text by this layer" onClick=${() => onLayer(name)}>L${name}</button>
      <span class="bar">
        ${routeOf(data, at).map(({ expert, weight }) => {
          const colour = kindColour(expert);
          const address = `L${name}.E${expert}`;
          const share = weight / most;
          return html`<a href=${hashOf("experts", { trace: trace.id, expert: address })} title=${`${address}, weight ${formatNumber(weight)}`}
            style=${{ flexBasis: `${share * 100}%`, background: colour, color: inkOn(partsOf(colour)) }}>${share > 0.085 ? expert : ""}<span class="unseen">${share > 0.085 ? "" : expert} weight ${formatNumber(weight)}</span></a>`;
        })}
      </span>
      <span class="cells" aria-hidden="true">
        ${neighbours.map((other) => {
          const share = other === row ? 1 : inCommon(data, at, other - rows.start);
          const kind = other === row ? "self" : share >= 1 ? "same" : share > 0 ? "half" : "other";
          return html`<i class=${kind} title=${other === row ? "" : `${tokenName(rows, other)}: ${Math.round(share * data.k)} of ${data.k} experts in common, first L${name}.E${firstExpert(data, other - rows.start)}`}></i>`;
        })}
      </span>
    </div>
  `;
}

function AsTable({ rows, row }) {
  const [open, setOpen] = useState(false);
  const at = row - rows.start;
  const table = () =>
    [...rows.layers].map(([name, data]) => {
      const route = routeOf(data, at);
      return {
        layer: name,
        experts: route.map((step) => step.expert).join(", "),
        weights: route.map((step) => formatNumber(step.weight)).join(", "),
        entropy: data.entropy?.[at] ?? null,
        margin: data.margin?.[at] ?? null,
        divergence: data.divergence?.[at] ?? null,
      };
    });
  const columns = ["layer", "experts", "weights", "entropy", "margin", "divergence"].map((name) => ({ name, numeric: name !== "experts" && name !== "weights" }));
  return html`
    <details onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>As a table</summary>
      ${open && html`<${Table} caption=${`Route of row ${row}`} columns=${columns} rows=${table()} first=${200} />`}
    </details>
  `;
}

function neighboursOf(rows, row) {
  const found = [];
  for (let other = row - REACH; other <= row + REACH; other += 1) {
    if (other >= rows.start && other < rows.stop && rows.request[other - rows.start] === rows.request[row - rows.start]) found.push(other);
  }
  return found;
}

function inCommon(data, a, b) {
  const { ids, weights, k } = data;
  const ran = (at) => {
    const found = new Set();
    for (let slot = at * k; slot < (at + 1) * k; slot += 1) if (weights[slot] !== 0) found.add(ids[slot]);
    return found;
  };
  const [left, right] = [ran(a), ran(b)];
  let both = 0;
  for (const expert of left) if (right.has(expert)) both += 1;
  return both / Math.max(left.size, right.size, 1);
}

function inWords(rows, row, layer, neighbours) {
  const data = rows.layers.get(layer);
  if (!data) return "";
  const at = row - rows.start;
  const others = neighbours.filter((other) => other !== row);
  const elsewhere = others.filter((other) => inCommon(data, at, other - rows.start) === 0);
  const route = routeOf(data, at).map((step) => `E${step.expert} ${formatNumber(step.weight)}`);
  const names = elsewhere.slice(0, 4).map((other) => `“${tokenName(rows, other)}”`);
  const rest = elsewhere.length > 4 ? ` and ${elsewhere.length - 4} more` : "";
  const tail = elsewhere.length ? `${elsewhere.length} of ${others.length} neighbours share no expert with it: ${names.join(", ")}${rest}` : `all ${others.length} neighbours share an expert with it`;
  return `“${tokenName(rows, row)}” in L${layer}: ${route.join(", ")}; ${tail}.`;
}

function shortName(rows, row) {
  const name = rows.part[row - rows.start] ? "…" : shown(rows.text[row - rows.start]).replace(/^␣/, "") || `${rows.token[row - rows.start]}`;
  return [...name].slice(0, 7).join("");
}

function partsOf(colour) {
  return colour.startsWith("#") ? rgb(colour) : colour.match(/\d+/g).map(Number);
}

/** @param {string} text @returns {string} a shell word */
export function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
