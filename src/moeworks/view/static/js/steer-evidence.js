// The running evidence: what the plan does on held-out texts, beside random experts, and what it breaks.

import { useEffect, useRef, useState } from "preact/hooks";
import { streamEvents } from "moeworks/data";
import { Button, Card, Command, Failure, Field, html, Progress, Select } from "moeworks/parts";
import { change, wholeNumber } from "moeworks/state";
import { scoresOf } from "moeworks/steer-experts";
import { EvidenceResult } from "moeworks/steer-verdict";

const KEPT = "moeworks-steer-evidence"; // the last result, kept for this tab

/** @param {{plan: any, settled: boolean, params: Record<string, string>, sources: any}} props */
export function EvidenceCard({ plan, settled, params, sources }) {
  const [progress, setProgress] = useState(/** @type {any} */ (null));
  const [result, setResult] = useState(readKept);
  const [error, setError] = useState("");
  const stopping = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => stopping.current?.abort(), []);
  if (!sources.can.evaluate || !sources.probes.length) return null;
  const probe = sources.probes.includes(params.probe) ? params.probe : usualProbe(sources, params);
  const limit = Math.max(wholeNumber(params.limit, 24) ?? 24, 1);
  const controls = Math.max(wholeNumber(params.controls, 3) ?? 3, 1);
  const key = JSON.stringify([plan.hash, probe, limit, controls]);

  const start = async () => {
    const stop = new AbortController();
    stopping.current = stop;
    setError("");
    setProgress({ done: 0, total: 0, what: "waiting for the model" });
    let found = null;
    try {
      await streamEvents("api/evidence", { plan: plan.plan, probe, limit, controls }, (event) => {
        if (event.result) found = event.result;
        else setProgress(event);
      }, stop.signal);
      if (found) {
        const kept = { key, probe, result: found };
        setResult(kept);
        sessionStorage.setItem(KEPT, JSON.stringify(kept));
      } else setError("The evidence broke off before it was whole; start it again.");
    } catch (problem) {
      if (stop.signal.aborted) setError("");
      else setError(/** @type {Error} */ (problem).message);
    }
    setProgress(null);
  };
  const fresh = !settled || result?.key === key;
  return html`
    <${Card} title="Evidence" className="steer-evidence">
      <p class="quiet">One text proves little. This measures the plan on held-out texts, beside as many random experts in the same layers, and what it breaks elsewhere.</p>
      <div class="controls">
        <${Select} label="Probe" value=${probe} options=${sources.probes} onChange=${(/** @type {string} */ name) => change({ probe: name }, { replace: true })} />
        <${Field} label="Items">
          ${(/** @type {string} */ id) => html`<input id=${id} type="number" min="1" max="10000" value=${limit} onChange=${(/** @type {any} */ event) => change({ limit: event.currentTarget.value }, { replace: true })} />`}
        <//>
        <${Field} label="Random plans">
          ${(/** @type {string} */ id) => html`<input id=${id} type="number" min="1" max="100" value=${controls} onChange=${(/** @type {any} */ event) => change({ controls: event.currentTarget.value }, { replace: true })} />`}
        <//>
        ${!progress && html`<${Button} onClick=${start} disabled=${!plan.plan || plan.problems.length > 0} title=${plan.plan ? "" : "Choose experts first"}>Measure<//>`}
      </div>
      ${progress && html`<${Progress} done=${progress.done ?? 0} total=${progress.total ?? 0} what=${progress.what ?? ""} onStop=${() => stopping.current?.abort()} />`}
      ${error && html`<${Failure} error=${error} again=${start} />`}
      ${result &&
      !progress &&
      html`${!fresh && html`<p class="older">This evidence is of another plan or probe (${result.probe}).</p>`}
        <${EvidenceResult} result=${result.result} />
        ${result.result.command && html`<${Command} command=${result.result.command} />`}`}
    <//>
  `;
}

/** The probe of the language that the choice of experts came from, else the first. */
function usualProbe(/** @type {any} */ sources, /** @type {Record<string, string>} */ params) {
  const scores = scoresOf(sources, params);
  const value = params.value ?? /=(.+)$/.exec(scores?.contrast ?? "")?.[1];
  const wanted = [`language/${value}`, sources.probes.find((/** @type {string} */ name) => value && name.endsWith(`/${value}`))];
  return wanted.find((name) => name && sources.probes.includes(name)) ?? sources.probes[0];
}

function readKept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  } catch {
    return null;
  }
}
