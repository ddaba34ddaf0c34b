// The view Experts: the map layers × experts, choosing from it, and one expert's card.

import { useMemo, useState } from "preact/hooks";
import { useLoaded } from "moeworks/data";
import { ExpertCard } from "moeworks/experts-card";
import { ExpertGrid } from "moeworks/experts-grid";
import { chooseMap, fetchMap, firstValue, KINDS_OF_MAP, mapCommand, strongest } from "moeworks/experts-map";
import { ExpertSearch, findExperts, PickBar } from "moeworks/experts-pick";
import { useKeys } from "moeworks/keys";
import { Button, Command, Empty, Failure, formatNumber, html, labelWords, Legend, Loading, Select, Table, TraceSelect } from "moeworks/parts";
import { change, formatAddresses, hashOf, navigate, parseAddresses } from "moeworks/state";

/** @param {{route: import("moeworks/state").Route, sources: any}} props */
export function View({ route, sources }) {
  if (sources.traces.length === 0) {
    return html`<${Empty} title="There are no routes to map yet" command="moeworks record MODEL --text FILE -o TRACE && moeworks view TRACE">
      <p>The map shows how often each expert runs, and for what. It needs a trace: record one from your own texts, or start <code>moeworks view</code> without anything to look at a small model.</p>
    <//>`;
  }
  const { params } = route;
  const trace = sources.traces.find((one) => one.id === params.trace) ?? (params.trace ? null : sources.traces[0]);
  if (!trace) return html`<${Failure} error=${`There is no trace “${params.trace}” here. Choose one of: ${sources.traces.map((one) => one.id).join(", ")}.`} />`;
  return html`<${Experts} key=${trace.id} trace=${trace} sources=${sources} params=${params} />`;
}

function Experts({ trace, sources, params }) {
  const choice = chooseMap(trace, sources, params);
  const loaded = useLoaded(choice.problem ? () => null : (signal) => fetchMap(trace.id, choice, signal), [trace.id, choice.by, choice.label, choice.value, choice.scores, choice.problem]);
  const map = loaded.value;
  const [hovered, setHovered] = useState("");
  const [typed, setTyped] = useState("");
  const [cursorNow, setCursor] = useState("");
  const picked = useMemo(() => new Set(parseAddresses(params.picked).map((one) => one.address)), [params.picked]);
  const result = useMemo(() => findExperts(typed, trace, map), [typed, trace, map]);
  const found = useMemo(() => new Set(result.addresses), [result]);
  const cursor = cursorNow || params.expert || "";
  const pick = (addresses, on) => {
    const next = new Set(picked);
    for (const address of addresses) {
      if (on ?? !next.has(address)) next.add(address);
      else next.delete(address);
    }
    change({ picked: formatAddresses(next) }, { replace: true });
  };
  const open = (address) => {
    setCursor(address);
    change({ expert: address }, { replace: true });
  };
  const useLabel = (label, value) => {
    setTyped("");
    change({ by: "specialisation", label, value, scores: null });
  };
  useKeys([
    { keys: "/", what: "search for an expert or a label", run: (event) => event.target.getRootNode().querySelector(".expert-search")?.focus() },
    { keys: "ArrowLeft ArrowRight ArrowUp ArrowDown", what: "move over the map" },
    { keys: "Space", what: "choose an expert, or no longer" },
    { keys: "Shift+ArrowRight", what: "choose a range (or Shift and click)" },
    { keys: "Enter", what: "show an expert's card" },
    { keys: "Escape", what: "choose none", run: () => change({ picked: null }, { replace: true }) },
  ]);
  const asTable = params.as === "table";
  const protectedOnes = useMemo(() => new Set((map?.cells ?? []).filter((cell) => cell.protected).map((cell) => cell.address)), [map]);
  return html`
    <div class="experts">
      <${TryIt} trace=${trace} sources=${sources} choice=${choice} picked=${picked} map=${map} onPick=${(addresses) => change({ picked: formatAddresses(addresses) }, { replace: true })} />
      <div class="controls">
        <${TraceSelect} sources=${sources} value=${trace.id} onChange=${(id) => navigate("experts", { trace: id })} />
        <${MapChoice} trace=${trace} choice=${choice} />
        <${ExpertSearch} text=${typed} result=${result} onText=${setTyped} onOpen=${open} onLabel=${useLabel} />
        <${Button} pressed=${asTable} onClick=${() => change({ as: asTable ? null : "table" })}>As a table<//>
      </div>
      ${choice.problem && html`<${Problem} trace=${trace} choice=${choice} />`}
      ${loaded.error && html`<${Failure} error=${loaded.error} again=${loaded.again} />`}
      <div class=${`experts-main ${params.expert ? "with-card" : ""}`}>
        <section class="experts-map card" aria-label="Map of experts">
          <p class="quiet map-says">${saysOf(choice)}</p>
          ${!map && loaded.loading && html`<${Loading} what="Counting" />`}
          ${map &&
          html`<${Legend} scale=${map.twoSided ? "two-sided" : "amount"} low=${formatNumber(map.range[0])} middle=${map.twoSided ? "0" : ""} high=${formatNumber(map.range[1])}>
              ${map.cells.some((cell) => cell.passes) && html`<span>• passes the test</span>`}
              ${protectedOnes.size > 0 && html`<span>◥ protected</span>`}
              ${map.cells.some((cell) => cell.value === null) && html`<span>□ no number</span>`}
            <//>
            ${asTable
              ? html`<${MapTable} map=${map} picked=${picked} onPick=${pick} onOpen=${open} found=${found} />`
              : html`<${ExpertGrid} map=${map} cursor=${cursor} picked=${picked} found=${found} onCursor=${setCursor} onOpen=${open} onPick=${pick} onHover=${setHovered}
                  label=${`Map of ${map.cells.length} experts by ${KINDS_OF_MAP[choice.by].label}. Arrow keys move, Space chooses, Enter shows the card.`}
                  says=${cellInWords(map.byAddress.get(hovered || cursor), choice, picked)} />`}
            <${PickBar} trace=${trace} value=${choice.value} picked=${picked} protectedOnes=${protectedOnes} canPick=${strongest(map, 1).length}
              onClear=${() => change({ picked: null }, { replace: true })} onStrongest=${(count) => change({ picked: formatAddresses(strongest(map, count)) }, { replace: true })} />
            <${Command} command=${mapCommand(trace, sources, choice)} />`}
        </section>
        ${params.expert && html`<aside class="experts-side card" aria-label="Card of an expert"><${ExpertCard} trace=${trace} address=${params.expert} picked=${picked.has(params.expert)} onPick=${() => pick([params.expert])} /></aside>`}
      </div>
    </div>
  `;
}

function MapChoice({ trace, choice }) {
  const { by, label, value, scores, labels, files } = choice;
  const kinds = Object.entries(KINDS_OF_MAP).map(([name, one]) => ({
    value: name,
    label: one.label,
    disabled: (name === "score" && files.length === 0) || (name === "specialisation" && labels.length === 0) || (name === "weight" && !trace.weights),
  }));
  const values = Object.entries(trace.labels[label] ?? {}).map(([name, count]) => ({ value: name, label: `${name} (${count})` }));
  const setLabel = (next) => change({ label: next, value: next ? firstValue(trace, next) : null });
  return html`
    <${Select} label="Map by" value=${by} options=${kinds} title=${KINDS_OF_MAP[by].says} onChange=${(next) => change({ by: next, label: next === "specialisation" ? label : null, value: next === "specialisation" ? value : null, scores: null })} />
    ${by === "score" && html`<${Select} label="Scores" value=${scores} options=${files.map((one) => ({ value: one.id, label: one.name }))} onChange=${(next) => change({ scores: next })} />`}
    ${by !== "score" && Object.keys(trace.labels).length > 0 && html`<${Select} label=${by === "specialisation" ? "Label" : "Only texts with"} value=${label} options=${[...(by === "specialisation" ? [] : [{ value: "", label: "any label" }]), ...(by === "specialisation" ? labels : Object.keys(trace.labels))]} onChange=${setLabel} />`}
    ${by !== "score" && label && html`<${Select} label="Value" value=${value} options=${values} onChange=${(next) => change({ label, value: next })} />`}
  `;
}

function TryIt({ trace, sources, choice, picked, map, onPick }) {
  const [shut, setShut] = useState(() => stored("moeworks-hint") === "shut");
  const label = trace.labels.lang ? "lang" : choice.labels[0];
  if (shut || !label || Object.keys(trace.labels[label]).length < 2) return null;
  const value = choice.by === "specialisation" ? choice.value : firstValue(trace, label);
  const here = choice.by === "specialisation" || choice.by === "score";
  const few = map ? strongest(map, 8) : [];
  const close = () => {
    store("moeworks-hint", "shut");
    setShut(true);
  };
  return html`
    <section class="hint" aria-label="First steps">
      <p>Each square is one expert of one layer, and its colour says how much it runs. Try it:</p>
      <ol>
        <li class=${here ? "done" : ""}><a href=${hashOf("experts", { trace: trace.id, by: "specialisation", label, value, picked: formatAddresses(picked) })}>see which experts carry ${labelWords(label, value)}</a></li>
        <li class=${picked.size > 0 ? "done" : ""}>${here && few.length > 0 ? html`<button type="button" class="link" onClick=${() => onPick(few)}>${few.length > 1 ? `choose the ${few.length} strongest` : "choose the strongest"}</button>` : "choose the strongest"}</li>
        <li>${picked.size > 0 ? html`<a href=${hashOf("steer", { trace: trace.id, demote: formatAddresses(picked), value: choice.value })}>switch them off and watch the text change</a>` : "switch them off and watch the text change"}${sources.can?.generate ? "" : " (needs a model behind the page)"}</li>
      </ol>
      <button type="button" class="plain" onClick=${close} aria-label="Close the first steps">×</button>
    </section>
  `;
}

function Problem({ trace, choice }) {
  if (choice.by !== "score") return html`<${Failure} error=${choice.problem} />`;
  return html`<${Empty} title="There is no scores file here yet" command=${`moeworks find ${trace.name} -o SCORES`}><p>Scores say how strongly each expert goes with a behaviour, with a test. Make them, then open the page with the trace and the scores.</p><//>`;
}

function MapTable({ map, picked, onPick, onOpen, found }) {
  const columns = [
    { name: "chosen", show: (cell) => html`<input type="checkbox" aria-label=${`choose ${cell.address}`} checked=${picked.has(cell.address)} onChange=${() => onPick([cell.address])} />`, key: (cell) => Number(picked.has(cell.address)) },
    { name: "expert", show: (cell) => html`<button type="button" class="link" onClick=${() => onOpen(cell.address)}>${cell.address}</button>`, key: (cell) => cell.layer * 100000 + cell.expert },
    ...["value", "chance", "low", "high"].map((name) => ({ name, numeric: true })),
    { name: "passes", show: (cell) => (cell.passes === null ? "–" : cell.passes ? "yes" : "no") },
    { name: "protected", show: (cell) => (cell.protected ? "yes" : "") },
  ];
  return html`<${Table} caption="The same numbers as a table" columns=${columns} rows=${map.cells} sort="value" descending=${true} first=${40} marked=${(cell) => found.has(cell.address)} rowKey=${(cell) => cell.address} />`;
}

function saysOf({ by, label, value }) {
  const { says } = KINDS_OF_MAP[by];
  const only = label && value ? (by === "specialisation" ? ` Of texts with ${labelWords(label, value)}.` : ` Only texts with ${labelWords(label, value)}.`) : "";
  return `${says[0].toUpperCase()}${says.slice(1)}.${only}`;
}

function cellInWords(cell, { by }, picked) {
  if (!cell) return "Point at a square, or move with the arrow keys.";
  const range = cell.low !== null && cell.high !== null ? `, 95 % between ${formatNumber(cell.low)} and ${formatNumber(cell.high)}` : "";
  const chance = cell.chance !== null ? `, chance ${formatNumber(cell.chance)}` : "";
  const test = cell.passes === null ? "" : cell.passes ? ", passes the test" : ", does not pass the test";
  const value = cell.value === null ? "no number" : formatNumber(cell.value);
  return `${cell.address}: ${by === "score" ? "score" : by} ${value}${range}${chance}${test}${cell.protected ? ", protected" : ""}${picked.has(cell.address) ? ", chosen" : ""}`;
}

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function store(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Without storage the hint comes back with the next visit.
  }
}
