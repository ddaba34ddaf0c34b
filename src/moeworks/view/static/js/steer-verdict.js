// Evidence as a picture and in words: the effect with its interval, the random experts beside it, the damage, the verdict.

import { formatNumber, html } from "moeworks/parts";

const WIDTH = 560;
const EDGE = 24;
const KINDS = { works: "good", "breaks the model": "bad" };

/** @param {{result: any}} props an evidence document of moeworks */
export function EvidenceResult({ result }) {
  const { effect, random, verdict, damage, reasons } = readEvidence(result);
  return html`
    <div role="status" aria-live="polite">
      <p><span class=${`verdict ${KINDS[/** @type {keyof typeof KINDS} */ (verdict)] ?? "mixed"}`}>${verdict}</span></p>
      ${effect && html`<${IntervalPicture} effect=${effect} random=${random} />`}
      ${reasons.length > 0 && html`<ul>${reasons.map((/** @type {string} */ one) => html`<li key=${one}>${one}</li>`)}</ul>`}
    </div>
    ${damage && html`<${Damage} damage=${damage} />`}
  `;
}

/** @param {any} result */
function readEvidence(result) {
  const evidence = result.evidence ?? result;
  const controls = (evidence.controls ?? []).filter((/** @type {any} */ one) => one.name === "random").map((/** @type {any} */ one) => one.effect);
  return { effect: evidence.effect, random: controls, verdict: evidence.verdict, damage: evidence.damage, reasons: evidence.reasons ?? [] };
}

/** The effect as a point with its interval, the random plans as dots, zero as a line. */
function IntervalPicture({ effect, random }) {
  const values = [0, effect.value, effect.low, effect.high, ...random].filter(Number.isFinite);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const x = (/** @type {number} */ value) => EDGE + ((value - low) / span) * (WIDTH - 2 * EDGE);
  const words = `Effect ${formatNumber(effect.value)}, interval ${formatNumber(effect.low)} to ${formatNumber(effect.high)}; random experts: ${random.map((/** @type {number} */ one) => formatNumber(one)).join(", ") || "none"}.`;
  return html`
    <svg class="interval-picture" viewBox=${`0 0 ${WIDTH} 92`} role="img" aria-label=${words}>
      <line x1=${x(0)} x2=${x(0)} y1="6" y2="70" stroke="var(--line-2)" stroke-width="1" />
      <text x=${x(0)} y="84" text-anchor="middle">no effect</text>
      <line x1=${x(effect.low)} x2=${x(effect.high)} y1="24" y2="24" stroke="var(--accent)" stroke-width="3" stroke-linecap="round" />
      <circle cx=${x(effect.value)} cy="24" r="6" fill="var(--accent)" />
      <text x=${Math.min(Math.max(x(effect.value), 40), WIDTH - 40)} y="12" text-anchor="middle">the plan</text>
      ${random.map((/** @type {number} */ one, /** @type {number} */ i) => html`<circle key=${i} cx=${x(one)} cy="54" r="4.5" fill="none" stroke="var(--ink-2)" stroke-width="1.75" />`)}
      ${random.length > 0 && html`<text x=${Math.min(Math.max(x(random[0]), 60), WIDTH - 60)} y="70" text-anchor="middle">random experts</text>`}
    </svg>
    <p class="quiet">${words}</p>
  `;
}

/** What else changed: divergence on neutral text, and perplexity by language and domain. */
function Damage({ damage }) {
  const names = Object.keys(damage.perplexity_before ?? {});
  return html`
    <p>Damage on neutral text: ${formatNumber(damage.divergence)} nats a token from the model without the plan.</p>
    ${names.length > 0 &&
    html`<details><summary>Perplexity by language and domain</summary>
      <div class="table-frame" tabindex="0" role="region" aria-label="Perplexity"><table>
        <thead><tr><th scope="col">texts</th><th scope="col" class="numeric">without</th><th scope="col" class="numeric">with the plan</th><th scope="col" class="numeric">times</th></tr></thead>
        <tbody>${names.map((name) => {
          const [before, after] = [Number(damage.perplexity_before[name]), Number(damage.perplexity_after[name])];
          return html`<tr key=${name}><th scope="row">${name}</th><td class="numeric">${formatNumber(before)}</td><td class="numeric">${formatNumber(after)}</td><td class="numeric">${formatNumber(after / before)}</td></tr>`;
        })}</tbody>
      </table></div>
    </details>`}
  `;
}
