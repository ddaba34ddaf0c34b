// The plan that the choices make, or that was loaded: checked by the server, in words, counted, saved.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { getJson, postJson, useLoaded } from "moeworks/data";
import { Button, Card, Failure, html, Loading, Select } from "moeworks/parts";
import { change } from "moeworks/state";
import { countPicks, OPERATIONS, operationsOf, paramsOf } from "moeworks/steer-picks";

const KEPT = "moeworks-steer-plan"; // the loaded file, kept for this tab
const LARGEST = 2_000_000; // bytes of a plan file; the server takes no larger body
const MOST_DRY = 100_000; // rows of a trace that decisions are counted on while somebody chooses
const WAIT = 200; // milliseconds without a change before the server is asked

/**
 * @typedef {{source: "none" | "picks" | "name" | "file", plan: any, operations?: any[], hash: string, explanation: string[], problems: string[],
 *   counts: {experts: number, layers: number}, loading: boolean, error: Error | null}} PlanState
 */

/** @type {PlanState} */
const NONE = { source: "none", plan: null, hash: "", explanation: [], problems: [], counts: { experts: 0, layers: 0 }, loading: false, error: null };

/**
 * Return the plan that is in force: of the picks, else the named one, else the loaded file.
 * @param {{picks: Record<string, string[]>, strength: number, factor: number, name: string, loaded: string,
 *   problems: string[]}} what `loaded` changes with every file that is loaded
 * @returns {PlanState}
 */
export function usePlan({ picks, strength, factor, name, loaded, problems }) {
  const operations = useMemo(() => operationsOf(picks, { strength, factor }), [picks, strength, factor]);
  const [state, setState] = useState(NONE);
  const asked = JSON.stringify(operations.length ? operations : [name, loaded]);
  useEffect(() => {
    const stop = new AbortController();
    const settle = (/** @type {Partial<PlanState>} */ found) => !stop.signal.aborted && setState({ ...NONE, ...found });
    const load = async () => {
      try {
        if (operations.length) settle(await ofPicks(operations, picks, stop.signal));
        else if (name) settle(await ofWhole(name, stop.signal));
      } catch (error) {
        if (!stop.signal.aborted) setState({ ...NONE, source: operations.length ? "picks" : "name", counts: countPicks(picks), error: /** @type {Error} */ (error) });
      }
    };
    if (!operations.length && !name) {
      setState(NONE);
      return undefined;
    }
    setState((old) => ({ ...old, counts: operations.length ? countPicks(picks) : old.counts, loading: true, error: null }));
    const timer = setTimeout(load, WAIT);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [asked]);
  return problems.length ? { ...state, problems: [...problems, ...state.problems] } : state;
}

/** @param {any[]} operations @param {Record<string, string[]>} picks @param {AbortSignal} signal */
async function ofPicks(operations, picks, signal) {
  const found = await postJson("api/plan", { operations }, { signal });
  return { source: /** @type {const} */ ("picks"), plan: found.plan, operations, hash: found.hash, explanation: found.explanation, problems: found.problems, counts: countPicks(picks) };
}

/** @param {string} name a plan of the server, or `file` @param {AbortSignal} signal */
async function ofWhole(name, signal) {
  const file = name === "file";
  const text = file ? sessionStorage.getItem(KEPT) : null;
  if (file && !text) throw new Error("The plan file that this link speaks of is not in this tab; load it again.");
  const plan = file ? JSON.parse(text ?? "") : await getJson(`/moeworks/plans/${encodeURIComponent(name)}`, { signal, fresh: true });
  const check = await postJson("/moeworks/plans/validate", { plan }, { signal });
  const explained = check.hash ? await postJson("/moeworks/plans/explain", { plan }, { signal }) : { text: "" };
  return {
    source: /** @type {const} */ (file ? "file" : "name"), plan: check.valid ? plan : null, hash: check.hash ?? "", problems: check.problems,
    explanation: explained.text.split("\n").filter(Boolean), counts: countPicks(picksOfPlan(plan)),
  };
}

/** @param {any} plan @returns {Record<string, string[]>} operation → addresses, neurons by their expert */
export function picksOfPlan(plan) {
  /** @type {Record<string, string[]>} */
  const found = {};
  for (const one of plan?.operations ?? []) {
    const experts = one.experts ?? (one.neurons ?? []).map((/** @type {string} */ neuron) => neuron.replace(/\.N.*$/, ""));
    found[one.op] = [...(found[one.op] ?? []), ...experts];
  }
  return found;
}

/**
 * The plan in words, what it touches, and its file.
 * @param {{plan: PlanState, name: string, params: Record<string, string>, sources: any,
 *   choose: (picks: Record<string, string[]>) => void}} props
 */
export function PlanCard({ plan, name, params, sources, choose }) {
  const [error, setError] = useState("");
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const load = async (/** @type {any} */ event) => {
    const [file] = event.currentTarget.files;
    event.currentTarget.value = "";
    if (!file) return;
    try {
      const text = await readPlan(file);
      sessionStorage.setItem(KEPT, text);
      setError("");
      change({ ...paramsOf({}), plan: "file", loaded: Date.now() % 1e6 });
    } catch (problem) {
      setError(/** @type {Error} */ (problem).message);
    }
  };
  const { experts, layers } = plan.counts;
  const editable = plan.source === "file" || plan.source === "name" ? picksOfPlan(plan.plan) : {};
  const known = new Set(OPERATIONS.map((one) => one.op));
  return html`
    <${Card} title="Plan" className="steer-plan">
      <p class="touched" role="status">
        ${experts
          ? html`Touches <b>${experts.toLocaleString("en")}</b> ${experts === 1 ? "expert" : "experts"} in <b>${layers}</b> of ${sources.model.layers.length} layers.`
          : plan.source === "none"
            ? "No plan yet: both texts would be the same."
            : "Lists no experts."}
      </p>
      <${DryRun} plan=${plan} sources=${sources} params=${params} />
      ${plan.loading && !plan.explanation.length && html`<${Loading} what="Checking the plan" />`}
      ${plan.error && html`<${Failure} error=${plan.error} />`}
      ${plan.problems.length > 0 &&
      html`<div class="failure" role="alert"><div>
        <p>${plan.problems.length === 1 ? "One thing speaks against this plan:" : `${plan.problems.length} things speak against this plan:`}</p>
        <ul>${plan.problems.map((one) => html`<li key=${one}>${one}</li>`)}</ul>
      </div></div>`}
      ${plan.explanation.length > 0 &&
      html`<details class="explanation" open=${matchMedia("(min-width: 760px)").matches}><summary>In words</summary><ul>${plan.explanation.map((one) => html`<li key=${one} dir="auto">${one}</li>`)}</ul></details>`}
      <div class="controls">
        <${Button} onClick=${() => save(plan.plan)} disabled=${!plan.plan}>Download plan.json<//>
        <${Button} onClick=${() => input.current?.click()}>Load a plan file<//>
        <input ref=${input} type="file" accept=".json,application/json" class="unseen" tabindex="-1" aria-label="Plan file" onChange=${load} />
        ${sources.plans.length > 0 &&
        html`<${Select} label="A plan of this page" value=${name}
          options=${[{ value: "", label: "choose one" }, ...sources.plans.map((/** @type {any} */ one) => ({ value: one.id, label: one.verdict ? `${one.name} (${one.verdict})` : one.name }))]}
          onChange=${(/** @type {string} */ id) => change({ ...paramsOf({}), plan: id })} />`}
        ${Object.keys(editable).length > 0 &&
        html`<${Button} title="Take its experts over as choices of your own; its tokens, gate and evidence stay behind"
          onClick=${() => choose(Object.fromEntries(Object.entries(editable).filter(([op]) => known.has(op))))}>Change its experts<//>`}
        ${(plan.source === "file" || plan.source === "name") && html`<${Button} onClick=${() => change({ plan: null, loaded: null })}>Put it away<//>`}
      </div>
      ${error && html`<${Failure} error=${error} />`}
    <//>
  `;
}

/** How many decisions of a trace the plan would change, told without running the model. */
function DryRun({ plan, sources, params }) {
  const model = sources.model;
  const fits = (/** @type {any} */ one) => one.logits && one.weight_hash === model.hash && one.rows <= MOST_DRY;
  const trace = sources.traces.find((/** @type {any} */ one) => one.id === params.trace && fits(one)) ?? sources.traces.find(fits);
  const operations = plan.source === "picks" && plan.plan && !plan.problems.length ? plan.operations : null;
  const found = useLoaded((signal) => (trace && operations ? postJson("api/plan", { operations, trace: trace.id }, { signal }) : null), [trace?.id, plan.hash]);
  const layers = found.value?.changed;
  if (!operations || !layers?.length) return null;
  const most = layers.reduce((/** @type {any} */ best, /** @type {any} */ one) => (one.changed > best.changed ? one : best), layers[0]);
  return html`
    <p class="quiet">
      On the trace ${trace.name} it would change the experts of <b>${most.changed.toLocaleString("en")}</b> of ${most.rows.toLocaleString("en")} rows in
      layer ${most.layer}, where it changes most, before anything that follows from that.
    </p>
  `;
}

/** @param {File} file @returns {Promise<string>} its text, if it can be a plan @throws {Error} in words */
async function readPlan(file) {
  if (file.size > LARGEST) throw new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; a plan file of at most ${LARGEST / 1e6} MB can be loaded.`);
  const text = await file.text();
  let plan;
  try {
    plan = JSON.parse(text);
  } catch {
    throw new Error(`${file.name} is not JSON; choose the plan.json that moeworks steer or this page wrote.`);
  }
  if (plan === null || typeof plan !== "object" || !Array.isArray(plan.operations)) {
    throw new Error(`${file.name} is JSON but no plan: it has no list of operations. Choose the plan.json that moeworks steer or this page wrote.`);
  }
  return text;
}

/** @param {any} plan hand the plan to the browser as a file */
function save(plan) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${JSON.stringify(plan, null, 1)}\n`], { type: "application/json" }));
  link.download = "plan.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
