// Evidence as a picture and in words: the effect with its interval, the random experts beside it, the damage, the verdict.

import { formatNumber, html } from "moeworks/parts";

const EDGE = 12;
const GUTTER = 112; // for the names of the rows
const [WIDE, NARROW] = [560, 300]; // the picture's width; narrow windows get one of their own, so that its words stay legible
const KINDS = { works: "good", "breaks the model": "bad" };

/** @param {{result: any}} props the last event of `api/evidence` */
export function EvidenceResult({ result }) {
  const { effect, random, verdict, damage, reasons } = result;
  return html`
    <div role="status" aria-live="polite">
      <p><span class=${`verdict ${KINDS[/** @type {keyof typeof KINDS} */ (verdict)] ?? "mixed"}`}>${verdict}</span></p>
      ${effect && html`<${IntervalPicture} effect=${effect} random=${random} />`}
      ${reasons.length > 0 && html`<ul>${reasons.map((/** @type {string} */ one) => html`<li key=${one}>${one}</li>`)}</ul>`}
    </div>
    <p class="quiet">${result.metric}: ${formatNumber(result.before)} without the plan, ${formatNumber(result.after)} with it, over ${result.items} items of ${result.documents} documents; ${result.expected === "down" ? "it should fall" : "it should rise"}.</p>
    ${damage && html`<${Damage} damage=${damage} />`}
  `;
}

/** Two rows on one scale: the plan with its interval, the random plans as circles; no effect is a line through both. */
function IntervalPicture({ effect, random }) {
  const width = matchMedia("(min-width: 620px)").matches ? WIDE : NARROW;
  const values = [0, effect.value, effect.low, effect.high, ...random].filter(Number.isFinite);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (/** @type {number} */ value) => GUTTER + ((value - low) / (high - low || 1)) * (width - GUTTER - EDGE);
  const words = `Effect ${formatNumber(effect.value)}, 95 % interval ${formatNumber(effect.low)} to ${formatNumber(effect.high)}; random experts: ${random.map((/** @type {number} */ one) => formatNumber(one)).join(", ") || "none"}.`;
  return html`
    <svg class="interval-picture" viewBox=${`0 0 ${width} 76`} role="img" aria-label=${words}>
      <line class="zero" x1=${x(0)} x2=${x(0)} y1="4" y2="56" />
      <text x=${x(0)} y="71" text-anchor="middle">0</text>
      <text x="0" y="20">the plan</text>
      <line class="plan" x1=${x(effect.low)} x2=${x(effect.high)} y1="16" y2="16" />
      <circle class="plan" cx=${x(effect.value)} cy="16" r="6" />
      <text x="0" y="46">random experts</text>
      ${random.map((/** @type {number} */ one, /** @type {number} */ i) => html`<circle class="random" key=${i} cx=${x(one)} cy="42" r="5" />`)}
    </svg>
    <p class="quiet">${words}</p>
  `;
}

/** What else changed: divergence on neutral text, and perplexity by language and domain. */
function Damage({ damage }) {
  const names = Object.keys(damage.perplexity_before ?? {});
  return html`
    <details>
      <summary>Damage on neutral text: ${formatNumber(damage.divergence)} nats a token</summary>
      <div class="table-frame" tabindex="0" role="region" aria-label="Perplexity"><table>
        <thead><tr><th scope="col">texts</th><th scope="col" class="numeric">without</th><th scope="col" class="numeric">with the plan</th><th scope="col" class="numeric">times</th></tr></thead>
        <tbody>${names.map((name) => {
          const [before, after] = [Number(damage.perplexity_before[name]), Number(damage.perplexity_after[name])];
          return html`<tr key=${name}><th scope="row">${name}</th><td class="numeric">${formatNumber(before)}</td><td class="numeric">${formatNumber(after)}</td><td class="numeric">${formatNumber(after / before)}</td></tr>`;
        })}</tbody>
      </table></div>
    </details>
  `;
}
