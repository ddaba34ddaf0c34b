// The view Layers: one diagnostic of a trace over its layers, drawn with intervals and chance levels, and as a table.

import { useState } from "preact/hooks";
import { Chart } from "moeworks/layers-chart";
import { FEW } from "moeworks/layers-draw";
import { digits, facetsOf, firstMetric, metricsOf, seriesOf, shown, words } from "moeworks/layers-series";
import { UShape } from "moeworks/layers-shape";
import { useTheme } from "moeworks/layers-theme";
import { getJson, useLoaded } from "moeworks/data";
import { Command, Empty, Failure, html, Loading, Select, Table, TraceSelect } from "moeworks/parts";
import { change, hashOf } from "moeworks/state";

/** What the view offers, by the question that it answers; names are those of `moeworks inspect --what`. */
const GROUPS = [
  ["Do labels go their own ways?", ["divergence", "u_shape", "specialisation", "committee", "anomalies", "task_correlation"]],
  ["Are experts used evenly?", ["balance", "drops", "sanity"]],
  ["How sure are the routers?", ["confidence", "token_dependence", "vocabulary_specialisation", "position_specialisation"]],
  ["How near in time is reuse?", ["srp", "reuse_distance", "repetition", "sch_rolling", "sch_static", "chunk_sparsity", "token_overlap", "cache"]],
  ["What goes with what?", ["coactivation", "transitions", "paths"]],
  ["How did training move it?", ["saturation", "drift"]],
];
const CACHE = {
  what: "cache", possible: true, why_not: "", labels: [], label: null, values: {}, base: null,
  reading: "share of the experts that a token needs and that a memory of this size holds already, by the rule that decides what is kept; "
    + "chance: any experts are kept; Belady sees the future, which no rule can",
};
const MOST_LINES = 18; // lines that one chart can tell apart; of more, the first are drawn

/** @param {{route: import("moeworks/state").Route, sources: any}} props */
export function View({ route, sources }) {
  const { params } = route;
  if (!sources.traces.length) {
    return html`<${Empty} title="No trace to look at yet" command="moeworks record lab probe:language/ru -o trace && moeworks view trace">
      <p>This view shows what the routers of a model did over many texts, layer by layer. Record some texts and open the page on the trace.</p>
    <//>`;
  }
  const trace = sources.traces.find((/** @type {any} */ one) => one.id === params.trace) ?? sources.traces[0];
  return html`<${OfTrace} key=${trace.id} params=${params} sources=${sources} trace=${trace} />`;
}

/** Everything that is chosen within one trace. */
function OfTrace({ params, sources, trace }) {
  const list = useLoaded((signal) => getJson(`api/traces/${trace.id}/layers`, { signal }), [trace.id]);
  const choose = (/** @type {Record<string, any>} */ changes) => change({ trace: trace.id, ...changes });
  if (list.error) return html`<${Failure} error=${list.error} again=${list.again} />`;
  if (!list.value) return html`<${Loading} what="Looking what this trace can tell" />`;
  const offered = new Map([...list.value, CACHE].map((/** @type {any} */ one) => [one.what, one]));
  const possible = (/** @type {string} */ what) => offered.get(what)?.possible;
  const wanted = params.what && offered.has(params.what) ? params.what : ["divergence", "balance"].find(possible) ?? [...offered.keys()][0];
  const about = offered.get(wanted);
  const label = about.labels.includes(params.label) ? params.label : (about.label ?? "");
  const values = about.values[label] ?? [];
  const base = values.includes(params.base) ? params.base : label === about.label ? (about.base ?? "") : (values[0] ?? "");
  const options = GROUPS.flatMap(([group, names]) =>
    names.filter((name) => offered.has(name)).map((name) => ({
      value: name, group, label: possible(name) ? title(name) : `${title(name)} (not here)`,
    })),
  );
  return html`
    <div class="controls">
      <${TraceSelect} sources=${sources} value=${trace.id} onChange=${(id) => change({ trace: id, label: null, base: null, by: null })} />
      <${Select} label="What" value=${wanted} options=${options} onChange=${(what) => choose({ what, metric: null, by: null, sort: null })} />
      ${about.possible && about.labels.length > 0 &&
      html`<${Select} label="Label" value=${label} onChange=${(name) => choose({ label: name, base: null })}
        options=${about.label === null ? [{ value: "", label: "none" }, ...about.labels] : about.labels} />`}
      ${about.possible && values.length > 0 &&
      html`<${Select} label="Compared with" value=${base} options=${values} onChange=${(name) => choose({ base: name })} />`}
    </div>
    ${about.possible
      ? html`<${OneDiagnostic} key=${wanted} what=${wanted} params=${params} trace=${trace} choose=${choose}
          label=${label} base=${values.length ? base : ""} />`
      : html`<${Empty} title=${`${title(wanted)} cannot be told from this trace`}>
          <p>${sentence(about.why_not)}</p>
          <p>Choose another diagnostic above${wanted === "divergence" ? ", or record texts with labels" : ""}.</p>
        <//>`}
  `;
}

/** One diagnostic: choice of number and lines, chart, reading, table, command. */
function OneDiagnostic({ what, params, trace, label, base, choose }) {
  const query = new URLSearchParams(Object.entries({ label, base }).filter(([, value]) => value)).toString();
  const url = what === "cache" ? `api/traces/${trace.id}/cache` : `api/traces/${trace.id}/layers/${what}${query ? `?${query}` : ""}`;
  const loaded = useLoaded((signal) => getJson(url, { signal }), [url]);
  const theme = useTheme();
  if (loaded.error) return html`<${Failure} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value) return html`<${Loading} what=${`Counting ${title(what).toLowerCase()}`} />`;
  const found = loaded.value;
  const rows = found.rows.filter((/** @type {any} */ row) => row.expert === undefined || row.expert === null || what !== "srp");
  const axis = what === "cache" ? "share" : "layer";
  const metrics = metricsOf({ what, shown: found.shown, rows });
  const metric = metrics.find((one) => one.name === params.metric) ?? firstMetric(what, metrics);
  const facets = facetsOf(rows, axis).filter((facet) => facet.values.length <= 64 && !["held", "capacity"].includes(facet.name));
  const by = facets.find((facet) => facet.name === params.by) ?? facets[0];
  const others = facets.filter((facet) => facet !== by);
  const chosen = Object.fromEntries(others.map((facet) => [facet.name, facet.values.includes(params[facet.name]) ? params[facet.name] : facet.values[0]]));
  const drawn = rows.filter((/** @type {any} */ row) => others.every((facet) => shown(row[facet.name]) === chosen[facet.name]));
  const lines = metric ? seriesOf(drawn, metric, { axis, by: by?.name }) : [];
  const drawable = lines.some((line) => line.points.length > 0) && rows.some((/** @type {any} */ row) => axis in row);
  return html`
    ${(metrics.length > 1 || facets.length > 0) && drawable &&
    html`<div class="controls">
      ${metrics.length > 1 &&
      html`<${Select} label="Number" value=${metric.name} options=${metrics.map((one) => ({ value: one.name, label: words(one.name) }))}
        onChange=${(name) => choose({ metric: name })} />`}
      ${facets.length > 1 &&
      html`<${Select} label="A line for each" value=${by?.name} options=${facets.map((facet) => ({ value: facet.name, label: words(facet.name) }))}
        onChange=${(name) => choose({ by: name })} />`}
      ${others.map((facet) => html`<${Select} key=${facet.name} label=${words(facet.name)} value=${chosen[facet.name]} options=${facet.values}
        onChange=${(value) => choose({ [facet.name]: value })} />`)}
    </div>`}
    <div class="layers-view">
    <section class="layers-body">
      ${drawable &&
      html`<${Chart} title=${`${title(what)}: ${words(metric.name)}`} axis=${axis === "share" ? "share of experts kept" : "layer"} theme=${theme}
        series=${lines.slice(0, MOST_LINES)} />`}
      ${lines.length > MOST_LINES && html`<p class="quiet">The first ${MOST_LINES} of ${lines.length} lines are drawn; all are in the table.</p>`}
      ${metric?.chance.length > 0 && drawable &&
      html`<p class="quiet">${lines.length > FEW && !sameChance(lines) ? "Grey: the range of chance levels; a line’s own is dashed while it is read." : `Dashed without points: ${metric.chance.map(words).join("; dotted: ")}.`} ${metric.low ? "Whiskers: 95 % intervals from resampled documents." : ""}</p>`}
      ${metric && drawable && !metric.chance.length && metrics.some((one) => one.chance.length) &&
      html`<p class="quiet">No chance level is known for this number; there is one for ${metrics.filter((one) => one.chance.length).map((one) => words(one.name)).join(", ")}.</p>`}
      <${Reading} text=${found.reading ?? CACHE.reading} />
      ${(what === "divergence" || what === "u_shape") && html`<${UShape} trace=${trace} label=${label} base=${base} rows=${what === "u_shape" ? rows : null} />`}
      ${found.note && html`<p class="quiet">${found.note}</p>`}
    </section>
    <div class="layers-numbers">
    <${Numbers} what=${what} rows=${drawable ? drawn : rows} shown=${found.shown} trace=${trace} />
    <${Command} command=${found.command} />
    </div></div>
  `;
}

/** @param {import("moeworks/layers-series").Series[]} lines whether all have the same chance levels */
function sameChance(lines) {
  return new Set(lines.map((line) => JSON.stringify(line.points.map((point) => [point.x, point.chance])))).size === 1;
}

/** How to read the numbers: a list of terms, as the command prints it. */
function Reading({ text }) {
  return html`<ul class="reading" aria-label="How to read this">
    ${text.split("; ").map((/** @type {string} */ part) => {
      const [, term, meaning] = /^([^:]{1,40}): (.+)$/s.exec(part) ?? [];
      return html`<li key=${part}>${term ? html`<b>${words(term)}</b>: ${meaning}` : part}</li>`;
    })}
  </ul>`;
}

/** The table twin: all numbers of what is drawn. */
function Numbers({ what, rows, shown: given, trace }) {
  const [all, setAll] = useState(false);
  if (!rows.length) return html`<p class="quiet">There are no rows: this trace has nothing to count here.</p>`;
  const names = all || !given ? Object.keys(rows[0]) : given.map((/** @type {any} */ one) => one.name).filter((/** @type {string} */ one) => one in rows[0]);
  const interval = new Map((given ?? []).map((/** @type {any} */ one) => [one.name, one.ends.length === 2 ? one.ends : undefined]));
  const cell = (/** @type {string} */ name) => (/** @type {any} */ row) => {
    if (name === "expert" && typeof row.expert === "number" && typeof row.layer === "number") {
      const address = `L${row.layer}.E${row.expert}`;
      return html`<a href=${hashOf("experts", { trace: trace.id, expert: address })}>${address}</a>`;
    }
    const range = all ? undefined : interval.get(name);
    const text = plain(row[name]);
    return range && typeof row[range[0]] === "number" ? html`${text} <span class="quiet">[${digits(row[range[0]])}, ${digits(row[range[1]])}]</span>` : text;
  };
  return html`
    <details class="numbers" open>
      <summary>The numbers</summary>
      ${given && html`<label class="check"><input type="checkbox" checked=${all} onChange=${(event) => setAll(event.currentTarget.checked)} /><span>all columns</span></label>`}
      <${Table} caption=${`${title(what)}, ${rows.length.toLocaleString("en")} rows`} first=${100} rows=${rows}
        columns=${names.map((/** @type {string} */ name) => ({ name, label: words(name), numeric: rows.some((/** @type {any} */ row) => typeof row[name] === "number"), show: cell(name) }))} />
    </details>
  `;
}

/** @param {any} value @returns {string} */
function plain(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(plain).join(", ");
  return digits(value);
}

/** @param {string} name */
function title(name) {
  const given = { u_shape: "U-shape", srp: "Segment routing (SRP)", sch_rolling: "Cache hits, rolling (SCH)", sch_static: "Cache hits, static (SCH)", cache: "Cache curve" };
  return given[/** @type {keyof typeof given} */ (name)] ?? words(name).replace(/^./, (letter) => letter.toUpperCase());
}

/** @param {string | undefined} text */
function sentence(text) {
  if (!text) return "";
  const whole = text.replace(/^./, (letter) => letter.toUpperCase());
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
