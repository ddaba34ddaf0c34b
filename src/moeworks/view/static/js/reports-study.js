// One study: what was found for each probe, as a table with ways on, and the study's own report in a frame of its own.

import { getJson, useLoaded } from "moeworks/data";
import { Command, Failure, formatNumber, html, Loading, Table } from "moeworks/parts";
import { formatAddresses, hashOf } from "moeworks/state";
import { OPERATIONS } from "moeworks/steer-picks";
import { picksOfPlan } from "moeworks/steer-plan";

const GOOD = { works: "good", "breaks the model": "bad" };

/** @param {{study: {id: string, name: string}, sources: any, params: Record<string, string>}} props */
export function Study({ study, sources }) {
  const loaded = useLoaded((signal) => getJson(`api/studies/${study.id}`, { signal }), [study.id]);
  if (loaded.error) return html`<${Failure} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value) return html`<${Loading} what="Reading the study" />`;
  const found = loaded.value;
  const works = found.probes.filter((/** @type {any} */ one) => one.verdict === "works").length;
  return html`
    <header>
      <h2>${study.name}</h2>
      <p class="quiet">
        ${[found.header?.model?.name, `${found.settings.budget} budget`, `${works} of ${found.probes.length} plans work`, `${formatNumber(Math.round(found.seconds))} s`].filter(Boolean).join(" · ")}
      </p>
    </header>
    <${Table} caption="What was found for each probe" rows=${found.probes} rowKey=${(/** @type {any} */ row) => row.name} columns=${columns(sources)} />
    ${study.report ? html`<${Report} study=${study} />` : html`<p class="quiet">The study’s own report is the file report.html beside its study.json.</p>`}
    ${found.command && html`<${Command} command=${found.command} />`}
  `;
}

/** The study's own report; it may run nothing and reach nothing. */
function Report({ study }) {
  const url = study.report;
  if (!url) return null; // an exported page: the report is a file of its own already
  return html`
    <section aria-label="Report">
      <p><a href=${url} target="_blank" rel="noopener noreferrer">Open the report in a tab of its own</a></p>
      <iframe class="report-frame" src=${url} sandbox="" title=${`Report of ${study.name}`} loading="lazy" referrerpolicy="no-referrer"></iframe>
    </section>
  `;
}

/** @param {any} sources */
function columns(sources) {
  const evidence = (/** @type {any} */ row) => row.plan?.evidence;
  const number = (/** @type {string} */ name, /** @type {string} */ label, /** @type {(row: any) => number | undefined} */ key, /** @type {string} */ hint) => ({
    name, label, numeric: true, key, title: hint, show: (/** @type {any} */ row) => formatNumber(key(row) ?? null),
  });
  return [
    { name: "name", label: "probe" },
    { name: "verdict", show: (/** @type {any} */ row) => html`<span class=${`verdict-word ${GOOD[/** @type {keyof typeof GOOD} */ (row.verdict)] ?? ""}`}>${row.verdict}</span>` },
    {
      name: "effect", numeric: true, key: (/** @type {any} */ row) => evidence(row)?.effect.value, title: "metric under the plan less without it, on held-out items",
      show: (/** @type {any} */ row) => (evidence(row) ? interval(evidence(row).effect) : "–"),
    },
    {
      name: "excess", label: "beyond random experts", numeric: true, key: (/** @type {any} */ row) => evidence(row)?.excess.value,
      show: (/** @type {any} */ row) => (evidence(row) ? interval(evidence(row).excess) : "–"),
    },
    number("divergence", "damage, KL", (row) => evidence(row)?.damage?.divergence, "nats a token on neutral text"),
    number("amount", "experts", (row) => (row.plan ? row.amount : undefined), "chosen on the dev split"),
    number("passes", "pass the test", (row) => row.scores.passes.filter(Boolean).length, "experts that pass the false discovery rate"),
    {
      name: "on", label: "look further", key: () => 0,
      show: (/** @type {any} */ row) => html`<${Further} row=${row} sources=${sources} />`,
    },
  ];
}

/** Links to the same experts in the other views. */
function Further({ row, sources }) {
  if (!row.plan) return "–";
  const picks = picksOfPlan(row.plan);
  const known = OPERATIONS.filter((one) => picks[one.op]?.length);
  const params = Object.fromEntries(known.map((one) => [one.op, formatAddresses(picks[one.op])]));
  const strength = row.plan.operations.find((/** @type {any} */ one) => one.op === "add")?.strength;
  const factor = row.plan.operations.find((/** @type {any} */ one) => one.op === "scale")?.factor;
  if (!known.length) return "–";
  return html`<a href=${hashOf("steer", { ...params, strength, factor, probe: sources.probes.includes(row.name) ? row.name : undefined })}>Steer with its experts</a>`;
}

/** @param {{value: number, low: number, high: number}} one */
function interval(one) {
  return html`${formatNumber(one.value)} <span class="quiet">[${formatNumber(one.low)}, ${formatNumber(one.high)}]</span>`;
}
