// The view Tokens: the text of a trace, each token coloured by what its layer did, and one token's whole route.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { column, getTable, useLoaded } from "moeworks/data";
import { useKeys } from "moeworks/keys";
import { Check, Empty, Failure, Field, formatNumber, html, Legend, Loading, Select, TraceSelect } from "moeworks/parts";
import { kindColour, useDark } from "moeworks/colours";
import { change, hashOf, navigate, parseAddresses, wholeNumber } from "moeworks/state";
import { missing, QUANTITIES, rangeOf, valueOf } from "moeworks/tokens-colour";
import { createList } from "moeworks/tokens-list";
import { RoutePanel } from "moeworks/tokens-route";
import { fetchRows, windowOf } from "moeworks/tokens-rows";
import { rowsOf, search } from "moeworks/tokens-search";

/** @param {{route: import("moeworks/state").Route, sources: any}} props */
export function View({ route, sources }) {
  if (sources.traces.length === 0) {
    return html`<${Empty} title="There is no trace to read yet" command="moeworks record MODEL --text FILE -o TRACE && moeworks view TRACE">
      <p>A trace holds what the routers decided for every token of some texts. Record one, or open the page with one.</p>
    <//>`;
  }
  const trace = sources.traces.find((one) => one.id === route.params.trace) ?? (route.params.trace ? null : sources.traces[0]);
  if (!trace) return html`<${Failure} error=${`There is no trace “${route.params.trace}” here. Choose one of: ${sources.traces.map((one) => one.id).join(", ")}.`} />`;
  return html`<${TraceText} key=${trace.id} trace=${trace} params=${route.params} sources=${sources} />`;
}

function TraceText({ trace, params, sources }) {
  const requests = useLoaded((signal) => getTable(`api/traces/${encodeURIComponent(trace.id)}/requests`, { signal }).then(readRequests), [trace.id]);
  if (requests.error) return html`<${Failure} error=${requests.error} again=${requests.again} />`;
  if (!requests.value) return html`<${Loading} what="Reading the trace" />`;
  return html`<${Text} trace=${trace} params=${params} sources=${sources} requests=${requests.value} />`;
}

function Text({ trace, params, sources, requests }) {
  const choice = choose(trace, params, requests);
  const { stretch, quantity, layer, expert, problem } = choice;
  const sample = useLoaded((signal) => fetchRows(trace.id, ...windowOf(stretch.first, stretch), [layer], signal), [trace.id, stretch.first, stretch.stop, layer]);
  const loads = useLoaded(quantity === "load" ? (signal) => fetchLoads(trace.id, layer, signal) : () => null, [trace.id, layer, quantity]);
  const dark = useDark();
  const ready = sample.value?.layers.has(layer) && (quantity !== "load" || loads.value);
  const colouring = useMemo(() => {
    if (!ready) return null;
    const more = { expert, loads: loads.value };
    const data = sample.value.layers.get(layer);
    const range = ["none", "expert"].includes(quantity) ? [0, 1] : rangeOf(quantity, data, sample.value.stop - sample.value.start, more);
    return { quantity, layer, range, ...more };
  }, [ready, sample.value, loads.value, quantity, layer, expert, dark]);
  const found = useSearch(trace, stretch, params.find ?? "");
  const list = useTextList(trace, stretch, requests, colouring, choice.row, found);
  const error = sample.error ?? loads.error ?? list.error ?? found.error;
  const setLayer = (next) => change({ layer: next, expert: quantity === "weight" ? `L${next}.E${expert}` : params.expert }, { replace: true });
  const stepLayer = (step) => {
    const names = trace.layers.map((one) => one.layer);
    setLayer(names[Math.max(0, Math.min(names.length - 1, names.indexOf(layer) + step))]);
  };
  useKeys([
    { keys: "[", what: "the layer before", run: () => stepLayer(-1) },
    { keys: "]", what: "the next layer", run: () => stepLayer(1) },
    { keys: "/", what: "search the text", run: (event) => event.target.getRootNode().querySelector("#find")?.focus() },
    { keys: "n", what: "the next find", run: () => list.toHit(1) },
    { keys: "Shift+N", what: "the find before", run: () => list.toHit(-1) },
    { keys: "ArrowLeft ArrowRight ArrowUp ArrowDown", what: "walk from token to token" },
    { keys: "Home End", what: "first and last token of the line" },
    { keys: "Enter", what: "from a token to its first expert" },
  ]);
  return html`
    <div class="tokens">
      <${Controls} trace=${trace} params=${params} sources=${sources} requests=${requests} choice=${choice} found=${found} onLayer=${setLayer} toHit=${list.toHit} />
      ${problem && html`<${Failure} error=${problem} />`}
      ${error && html`<${Failure} error=${error} again=${() => [sample, loads].forEach((one) => one.error && one.again())} />`}
      ${sample.value?.noText && html`<p class="quiet">Tokens stand as their ids: ${sample.value.noText}</p>`}
      <div class="legend-place">${colouring && html`<${ColourLegend} colouring=${colouring} sample=${sample.value} trace=${trace} />`}</div>
      <div class="tokens-main">
        <div class=${`tokens-frame ${params.marks === "0" ? "" : "marks"}`} ref=${list.frame} tabindex="0" role="region" aria-label="Text; arrow keys walk from token to token"
          onKeyDown=${list.onKeyDown} onMouseMove=${list.onMouseMove} onMouseLeave=${list.onMouseLeave} onClick=${list.onClick} onFocus=${list.onFocus}></div>
        <aside class=${`tokens-side ${list.row >= 0 ? "shows" : ""}`} aria-label="Route of a token">
          <${RoutePanel} key=${trace.id} trace=${trace} row=${list.row} layer=${layer} onRow=${list.choose} onLayer=${setLayer} />
        </aside>
      </div>
    </div>
  `;
}

function choose(trace, params, requests) {
  const problems = [];
  const names = trace.layers.map((one) => one.layer);
  const quantity = params.colour in QUANTITIES ? params.colour : "expert";
  if (params.colour && !(params.colour in QUANTITIES)) problems.push(`there is no colour “${params.colour}”: one of ${Object.keys(QUANTITIES).join(", ")}`);
  const named = parseAddresses(params.expert)[0];
  const asked = quantity === "weight" && named && params.layer === undefined ? named.layer : wholeNumber(params.layer);
  if (asked !== null && !names.includes(asked)) problems.push(`this trace has no router in layer ${asked}: one of ${names.join(", ")}`);
  const layer = names.includes(asked) ? asked : names[Math.floor(names.length / 2)];
  const experts = trace.layers.find((one) => one.layer === layer).experts;
  const expert = named && named.layer === layer && named.expert < experts ? named.expert : 0;
  const number = wholeNumber(params.request);
  const request = number === null ? null : requests.byNumber.get(number);
  if (params.request && !request) problems.push(`this trace has no request ${params.request}`);
  const stretch = request ? { first: request.first, stop: request.first + request.rows } : { first: 0, stop: trace.rows };
  const row = wholeNumber(params.row, -1);
  const reason = missing(quantity, trace);
  if (reason) problems.push(`${QUANTITIES[quantity].label} cannot be shown: ${reason}`);
  const problem = problems.length ? `${problems.join("; ")}.` : "";
  return { quantity, layer, experts, expert, request, stretch, row: row < trace.rows ? row : -1, problem };
}

function Controls({ trace, params, sources, requests, choice, found, onLayer, toHit }) {
  const { quantity, layer, experts, expert } = choice;
  const quantities = Object.entries(QUANTITIES).map(([value, one]) => ({ value, label: one.label, disabled: missing(value, trace) !== "" }));
  const [text, setText] = useState(params.find ?? "");
  useEffect(() => setText(params.find ?? ""), [params.find]);
  const submit = (event) => {
    event.preventDefault();
    if (text === (params.find ?? "")) toHit(1);
    else change({ find: text }, { replace: true });
  };
  return html`
    <div class="controls">
      <${TraceSelect} sources=${sources} value=${trace.id} onChange=${(id) => navigate("tokens", { trace: id, colour: params.colour })} />
      <${RequestChoice} requests=${requests} value=${params.request ?? ""} onChange=${(value) => change({ request: value, row: null })} />
      <${Select} label="Colour" value=${quantity} options=${quantities} onChange=${(value) => change({ colour: value })} title=${QUANTITIES[quantity].says} />
      <${Select} label="Layer" value=${String(layer)} options=${trace.layers.map((one) => ({ value: String(one.layer), label: `L${one.layer}` }))} onChange=${(value) => onLayer(Number(value))} />
      ${quantity === "weight" && html`<${Select} label="Expert" value=${String(expert)} options=${Array.from({ length: experts }, (_, i) => ({ value: String(i), label: `E${i}` }))} onChange=${(value) => change({ expert: `L${layer}.E${value}`, layer })} />`}
      <${Check} label="White space" checked=${params.marks !== "0"} onChange=${(on) => change({ marks: on ? null : "0" }, { replace: true })} />
      <form class="find" role="search" onSubmit=${submit}>
        <${Field} label="Search">${(id) => html`<span class="find-row"><input id="find" aria-labelledby=${id} type="search" aria-label="Search the text" value=${text} size="14" onInput=${(event) => setText(event.currentTarget.value)} />
          ${found.wanted && html`<button type="button" onClick=${() => toHit(-1)} aria-label="Find before">‹</button><button type="button" onClick=${() => toHit(1)} aria-label="Next find">›</button>`}
          <span class="quiet" role="status">${found.says}</span></span>`}<//>
      </form>
    </div>
  `;
}

function RequestChoice({ requests, value, onChange }) {
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  if (requests.all.length > 500) {
    return html`<${Field} label=${`Request (0 to ${requests.all.at(-1).request})`}>${(id) => html`<input id=${id} type="number" min="0" value=${text} placeholder="all" onInput=${(event) => setText(event.currentTarget.value)} onChange=${(event) => onChange(event.currentTarget.value)} />`}<//>`;
  }
  const options = requests.all.map((one) => ({ value: String(one.request), label: [one.request, ...Object.values(one.labels), one.preview.slice(0, 34).replace(/\s+/g, " ")].filter((part) => part !== "").join(" · ") }));
  return html`<span class="request-choice"><${Select} label="Request" value=${value} options=${[{ value: "", label: `all ${requests.all.length}` }, ...options]} onChange=${onChange} /></span>`;
}

function ColourLegend({ colouring, sample, trace }) {
  const { quantity, layer, range, expert } = colouring;
  const kinds = useMemo(() => (quantity === "expert" ? mostUsed(sample, layer) : []), [quantity, sample, layer]);
  if (quantity === "none") return null;
  if (quantity === "expert") {
    return html`<${Legend} title=${`First expert in L${layer}`} kinds=${kinds.map(({ id }) => ({ colour: kindColour(id), label: `E${id}` }))}>
      <span>most used of the first ${(sample.stop - sample.start).toLocaleString("en")} tokens</span>
    <//>`;
  }
  const ends = quantity === "weight" ? "0 to 1" : `2 % to 98 % of the first ${(sample.stop - sample.start).toLocaleString("en")} tokens`;
  const of = quantity === "entropy" && sample.entropyOf === "weights" ? " of the weights" : "";
  const title = quantity === "weight" ? `Weight of L${layer}.E${expert}` : `${QUANTITIES[quantity].label}${of} in L${layer}`;
  return html`<${Legend} title=${title[0].toUpperCase() + title.slice(1)} scale="amount" low=${formatNumber(range[0])} high=${formatNumber(range[1])}>
    <span class="quiet">${ends}</span>
    ${quantity === "weight" && html`<a href=${hashOf("experts", { trace: trace.id, expert: `L${layer}.E${expert}` })}>its card</a>`}
  <//>`;
}

function mostUsed(sample, layer) {
  const counts = new Map();
  const data = sample.layers.get(layer);
  for (let i = 0; i < sample.stop - sample.start; i += 1) {
    const id = valueOf("expert", data, i, {});
    counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  return [...counts].map(([id, count]) => ({ id, count })).sort((a, b) => b.count - a.count || a.id - b.id).slice(0, 8);
}

async function fetchLoads(trace, layer, signal) {
  const table = await getTable(`api/traces/${encodeURIComponent(trace)}/map?by=load`, { signal });
  const [layers, experts, values] = ["layer", "expert", "value"].map((name) => column(table, name));
  const loads = new Map();
  layers.forEach((one, i) => one === layer && loads.set(experts[i], values[i]));
  return loads;
}

function readRequests(table) {
  const known = new Set(["request", "first_row", "rows", "prompt_rows", "generated_rows", "preview", "document"]);
  const labels = table.schema.fields.map((field) => field.name).filter((name) => !known.has(name));
  const [number, first, rows] = ["request", "first_row", "rows"].map((name) => column(table, name));
  const preview = table.getChild("preview");
  const all = Array.from(number, (request, i) => ({
    request,
    first: first[i],
    rows: rows[i],
    preview: preview.get(i) ?? "",
    labels: Object.fromEntries(labels.map((name) => [name, table.getChild(name).get(i)]).filter(([, value]) => value !== null && value !== "")),
  }));
  return { all, byNumber: new Map(all.map((one) => [one.request, one])) };
}

function useSearch(trace, stretch, wanted) {
  const [state, setState] = useState({ hits: [], says: "", error: null });
  useEffect(() => {
    if (!wanted) {
      setState({ hits: [], says: "", error: null });
      return undefined;
    }
    const stop = new AbortController();
    setState({ hits: [], says: "searching …", error: null });
    const onPart = ({ hits, done, total, cut }) => {
      const part = done < total && !cut ? ` so far, ${Math.floor((done / total) * 100)} % read` : "";
      setState({ hits, says: `${cut ? "the first " : ""}${hits.length.toLocaleString("en")} found${part}`, error: null });
    };
    search(trace.id, { ...stretch, layer: trace.layers[0].layer }, wanted, onPart, stop.signal).catch((error) => error.name !== "AbortError" && setState({ hits: [], says: "", error }));
    return () => stop.abort();
  }, [trace.id, stretch.first, stretch.stop, wanted]);
  return { ...state, wanted, rows: useMemo(() => rowsOf(state.hits), [state.hits]) };
}

function useTextList(trace, stretch, requests, colouring, chosen, found) {
  const frame = useRef(null);
  const list = useRef(null);
  const [hovered, setHovered] = useState(-1);
  const [row, setRow] = useState(chosen);
  const [error, setError] = useState(null);
  const writing = useRef(0);
  useEffect(() => {
    const headOf = (number, at) => headNode(trace, requests.byNumber.get(number), at);
    list.current = createList(frame.current, { trace: trace.id, ...stretch, headOf, onFail: setError });
    if (colouring) list.current.colour(colouring);
    if (chosen >= 0) list.current.pin(chosen, true);
    list.current.mark(found.rows);
    return () => list.current.close();
  }, [trace.id, stretch.first, stretch.stop]);
  useEffect(() => {
    if (colouring) list.current.colour(colouring);
  }, [colouring]);
  useEffect(() => list.current.mark(found.rows), [found.rows]);
  useEffect(() => {
    if (chosen === row) return;
    setRow(chosen);
    list.current.pin(chosen, true);
  }, [chosen]);
  useEffect(() => () => clearTimeout(writing.current), []);
  // The address follows a little later: browsers allow only so many changes of it in a second.
  const choose = (next, scroll = true) => {
    setRow(next);
    list.current.pin(next, scroll);
    clearTimeout(writing.current);
    writing.current = setTimeout(() => change({ row: next < 0 ? null : next }, { replace: true }), 200);
  };
  const toHit = (step) => {
    const { hits } = found;
    if (hits.length === 0) return;
    const next = step > 0 ? hits.find((hit) => hit.row > row) ?? hits[0] : hits.findLast((hit) => hit.row < row) ?? hits.at(-1);
    choose(next.row);
  };
  const onKeyDown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && row >= 0) {
      frame.current.parentNode.querySelector(".tokens-side .route-row.chosen a")?.click();
      return;
    }
    const next = step(list.current, row, event.key);
    if (next === null) return;
    event.preventDefault();
    setHovered(-1);
    choose(next);
  };
  const rowUnder = (event) => rowOfPoint(event);
  return {
    frame,
    row: hovered >= 0 ? hovered : row,
    error,
    choose,
    toHit,
    onKeyDown,
    onMouseMove: (event) => setHovered(rowUnder(event)),
    onMouseLeave: () => setHovered(-1),
    onClick: (event) => {
      const under = rowUnder(event);
      if (under >= 0 && getSelection().isCollapsed) choose(under, false);
    },
    onFocus: () => row < 0 && frame.current.matches(":focus-visible") && choose(list.current.firstVisible(), false),
  };
}

// The token under the pointer; inside a character of several tokens, the one whose part of it is pointed at.
function rowOfPoint(event) {
  const span = event.target instanceof Element ? event.target.closest(".t") : null;
  if (!span) return -1;
  const last = Number(span.dataset.row);
  const first = Number(span.dataset.first ?? last);
  if (first === last) return last;
  const box = span.getBoundingClientRect();
  return Math.max(first, Math.min(last, first + Math.floor(((event.clientX - box.left) / box.width) * (last - first + 1))));
}

function step(list, row, key) {
  if (!/^(Arrow(Left|Right|Up|Down)|Home|End)$/.test(key)) return null;
  const cells = list.cells();
  if (cells.length === 0) return null;
  const at = cells.findIndex((cell) => cell.first <= row && row <= cell.row);
  if (at < 0) return list.firstVisible();
  if (key === "ArrowLeft" || key === "ArrowRight") {
    // In a paragraph that runs from right to left, the arrow to the left leads on.
    const rtl = getComputedStyle(cells[at].spans[0]).direction === "rtl";
    const next = row + ((key === "ArrowRight") !== rtl ? 1 : -1);
    return next < cells[0].first || next > cells.at(-1).row ? row : next;
  }
  const box = (cell) => cell.spans.at(-1).getBoundingClientRect();
  const here = box(cells[at]);
  const sameLine = (other) => Math.abs(other.bottom - here.bottom) < here.height / 2;
  if (key === "Home" || key === "End") {
    const way = key === "Home" ? -1 : 1;
    let best = at;
    while (cells[best + way] && sameLine(box(cells[best + way]))) best += way;
    return cells[best].row;
  }
  return acrossLines(cells, at, key === "ArrowDown" ? 1 : -1, here, box);
}

function acrossLines(cells, at, way, here, box) {
  const middle = here.left + here.width / 2;
  let [best, distance, line] = [null, Infinity, null];
  for (let i = at + way; i >= 0 && i < cells.length; i += way) {
    const other = box(cells[i]);
    if (line === null && Math.abs(other.bottom - here.bottom) < here.height / 2) continue;
    line ??= other.bottom;
    if (Math.abs(other.bottom - line) > here.height / 2) break;
    const away = Math.abs(other.left + other.width / 2 - middle);
    if (away < distance) [best, distance] = [cells[i], away];
  }
  return (best ?? cells[at]).row;
}

function headNode(trace, request, row) {
  if (!request || request.first !== row) return null;
  const head = document.createElement("header");
  head.className = "request-head";
  const link = document.createElement("a");
  link.href = hashOf("tokens", { trace: trace.id, request: request.request });
  link.textContent = `Request ${request.request}`;
  head.append(link);
  for (const [name, value] of Object.entries(request.labels)) {
    const label = document.createElement("span");
    label.textContent = `${name} ${value}`;
    head.append(label);
  }
  const count = document.createElement("span");
  count.textContent = `${request.rows.toLocaleString("en")} tokens`;
  head.append(count);
  return head;
}
