// The view Compare: two traces of the same texts, what they have in common, where they part, and the tokens that changed.

import { Chart } from "moeworks/layers-chart";
import { digits, seriesOf } from "moeworks/layers-series";
import { useTheme } from "moeworks/layers-theme";
import { ComparedTokens } from "moeworks/compare-tokens";
import { getJson, isExport, useLoaded } from "moeworks/data";
import { Button, Command, Empty, Failure, formatShare, html, Loading, Select, Table, TraceSelect } from "moeworks/parts";
import { change, hashOf } from "moeworks/state";

/** The pictures: name, title, number with interval and chance. */
const PICTURES = {
  flips: { label: "tokens with other experts", metrics: [{ name: "flips", chance: [] }, { name: "first_flips", chance: [] }] },
  overlap: { label: "experts in common", metrics: [{ name: "overlap", low: "low", high: "high", chance: ["chance"] }] },
  margins: { label: "margins of the decisions", metrics: [{ name: "margin", chance: [] }, { name: "flip_margin", chance: [] }] },
};
const LINES = { flips: "other experts", first_flips: "first difference of the token", margin: "all tokens", flip_margin: "tokens that flip first here", overlap: "share of experts in common" };

/** @param {{route: import("moeworks/state").Route, sources: any}} props */
export function View({ route, sources }) {
  const { params } = route;
  if (sources.traces.length < 2) {
    return html`<${Empty} title="Two traces are needed here" command="moeworks view TRACE_A TRACE_B">
      <p>This view compares two traces of the same texts: with and without a plan, two checkpoints, two engines, quantised and not. Open the page on two of them${sources.can.record ? html`, or record two live in the view <a href=${hashOf("steer")}>Steer</a>` : ""}.</p>
    <//>`;
  }
  const known = (/** @type {string | undefined} */ id) => sources.traces.find((/** @type {any} */ one) => one.id === id);
  const a = known(params.a) ?? known(params.trace) ?? sources.traces[0];
  const b = known(params.b) ?? likeliest(sources.traces, a);
  const missing = ["a", "b"].filter((name) => params[name] && !known(params[name]));
  return html`
    <div class="controls">
      <${TraceSelect} label="A, the reference" sources=${sources} value=${a.id} onChange=${(/** @type {string} */ id) => change({ a: id, b: b.id, row: null })} />
      <${Button} onClick=${() => change({ a: b.id, b: a.id, row: null })} title="Exchange A and B">⇄ Exchange<//>
      <${TraceSelect} label="B" sources=${sources} value=${b.id} onChange=${(/** @type {string} */ id) => change({ a: a.id, b: id, row: null })} />
    </div>
    ${missing.length > 0 && html`<${Failure} error=${`The link names the trace ${missing.map((name) => `“${params[name]}”`).join(" and ")}, which this page no longer has; others are shown. Live recordings last as long as the server.`} />`}
    <${Pair} key=${`${a.id} ${b.id}`} a=${a} b=${b} params=${params} />
  `;
}

/** The trace that most likely is of the same texts: as many requests, else as many rows, else any other. */
function likeliest(/** @type {any[]} */ traces, /** @type {any} */ a) {
  const others = traces.filter((one) => one.id !== a.id);
  return others.find((one) => one.requests === a.requests && one.rows === a.rows) ?? others.find((one) => one.requests === a.requests) ?? others[0];
}

/** Everything about one pair. */
function Pair({ a, b, params }) {
  const labels = isExport() ? [] : Object.keys(a.labels).filter((name) => Object.keys(a.labels[name]).length > 1);
  const label = labels.includes(params.label) ? params.label : "";
  const url = `api/compare/${a.id}/${b.id}${label ? `?label=${encodeURIComponent(label)}` : ""}`;
  const loaded = useLoaded((signal) => getJson(url, { signal }), [url]);
  const theme = useTheme();
  if (loaded.error) {
    return html`<${Failure} error=${loaded.error} again=${loaded.again} />
      <p class="quiet">Two traces can be compared when they are of the same texts, with the same tokenizer and layers.</p>`;
  }
  if (!loaded.value) return html`<${Loading} what="Comparing" />`;
  const found = loaded.value;
  const layers = found.layers;
  const drawable = Object.entries(PICTURES).filter(([, one]) => layers.some((/** @type {any} */ row) => typeof row[one.metrics[0].name] === "number"));
  const name = drawable.some(([key]) => key === params.by) ? params.by : "flips";
  const picture = PICTURES[/** @type {keyof typeof PICTURES} */ (name)];
  const lines = picture.metrics.flatMap((metric) =>
    seriesOf(layers, metric).map((line) => ({ ...line, key: metric.name, label: LINES[/** @type {keyof typeof LINES} */ (metric.name)] })),
  );
  return html`
    <${Summary} found=${found} a=${a} b=${b} />
    <div class="compare-body">
      <section class="compare-layers">
        ${drawable.length > 1 &&
        html`<div class="controls"><${Select} label="Picture" value=${name} options=${drawable.map(([key, one]) => ({ value: key, label: one.label }))} onChange=${(/** @type {string} */ by) => change({ by }, { replace: true })} /></div>`}
        <${Chart} title=${picture.label.replace(/^./, (letter) => letter.toUpperCase())} series=${lines} theme=${theme} zero=${true} height=${240} />
        ${name === "overlap" && html`<p class="quiet">Dashed: two routers that know nothing of each other. Whiskers: 95 % intervals from resampled documents.</p>`}
      </section>
      <section class="compare-numbers">
        <details class="numbers" open>
          <summary>The numbers</summary>
          <${Table} caption="By layer" rows=${layers} columns=${columnsOf(layers)} first=${100} />
          ${labels.length > 0 &&
          html`<${Select} label="Told apart by" value=${label} options=${[{ value: "", label: "no label" }, ...labels]}
            onChange=${(/** @type {string} */ name) => change({ label: name }, { replace: true })} />`}
          ${found.labels?.length > 0 && html`<${Table} caption="By label" rows=${found.labels} columns=${Object.keys(found.labels[0]).map((one) => ({ name: one, numeric: typeof found.labels[0][one] === "number", show: (/** @type {any} */ row) => digits(row[one]) }))} />`}
        </details>
        ${found.command && html`<${Command} command=${found.command} />`}
      </section>
      <${ComparedTokens} a=${a} b=${b} params=${params} layers=${layers.length} />
    </div>
  `;
}

/** What the comparison says, in sentences. */
function Summary({ found, a, b }) {
  const layers = found.layers;
  const overlap = layers.reduce((/** @type {number} */ sum, /** @type {any} */ one) => sum + one.overlap, 0) / layers.length;
  const parting = layers.reduce((/** @type {number} */ sum, /** @type {any} */ one) => sum + one.first_flips, 0);
  const first = layers.reduce((/** @type {any} */ best, /** @type {any} */ one) => (one.first_flips > best.first_flips ? one : best), layers[0]);
  const words = found.words ?? found.reading;
  return html`
    <section class="compare-summary" aria-label="Summary">
      <dl class="figures">
        <div><dt>tokens compared</dt><dd>${found.rows.toLocaleString("en")}</dd></div>
        <div><dt>experts in common</dt><dd>${found.identical ? "all" : formatShare(overlap)}</dd></div>
        <div><dt>tokens that part somewhere</dt><dd>${formatShare(parting)}</dd></div>
        <div><dt>most part first in</dt><dd>${parting ? `layer ${first.layer}` : "–"}</dd></div>
      </dl>
      ${words
        ? html`<div class="sentences">${String(words).split("\n").filter(Boolean).map((line) => html`<p key=${line}>${line}</p>`)}</div>`
        : html`<div class="sentences">
            ${found.identical && html`<p>They route alike: the same experts, in the same slots, with the same weights.</p>`}
            ${found.after_divergence > 0 && html`<p>${found.after_divergence.toLocaleString("en")} tokens are left out: their texts had become different texts before them.</p>`}
            ${(found.only_first > 0 || found.only_second > 0) && html`<p>${found.only_first.toLocaleString("en")} tokens are in ${a.name} alone, ${found.only_second.toLocaleString("en")} in ${b.name} alone.</p>`}
            ${causes(layers).map((line) => html`<p key=${line}>${line}</p>`)}
          </div>`}
    </section>
  `;
}

/** @param {any[]} layers @returns {string[]} the probable causes, the commonest first */
function causes(layers) {
  return [["cause", "flips"], ["weight_cause", "weight errors"]].flatMap(([column, what]) => {
    const counts = new Map();
    for (const one of layers) if (one[column]) counts.set(one[column], (counts.get(one[column]) ?? 0) + 1);
    return [...counts].sort((x, y) => y[1] - x[1]).map(([cause, count]) => `Probable cause of ${what} in ${count === 1 ? "one layer" : `${count} layers`}: ${cause}.`);
  });
}

/** @param {any[]} layers @returns {any[]} columns of the table: those that have anything to say */
function columnsOf(layers) {
  const names = ["layer", "overlap", "low", "high", "chance", "flips", "first_flips", "near_ties", "near_ties_of_all", "margin", "flip_margin", "reordered", "largest_weight_error", "cause", "weight_cause"];
  return names
    .filter((name) => layers.some((one) => one[name] !== null && one[name] !== undefined && one[name] !== ""))
    .map((name) => {
      const numeric = layers.some((one) => typeof one[name] === "number");
      return { name, label: name.replaceAll("_", " "), numeric, show: (/** @type {any} */ row) => (typeof row[name] === "number" ? digits(row[name]) : row[name] || "–") };
    });
}
