// Small shared components: fields, command line, empty state, error, progress, legend, card.

import { useId, useState } from "preact/hooks";
import { scaleGradient } from "moeworks/colours";
import { html } from "moeworks/markup";

/** @param {number | null | undefined} value @param {number} [digits] significant digits @returns {string} */
export function formatNumber(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 1e5) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(digits)).toString();
}

/** @param {number | null | undefined} share @returns {string} a share as per cent, `12.5 %`, that does not break */
export function formatShare(share) {
  return share === null || share === undefined || Number.isNaN(share) ? "–" : `${formatNumber(share * 100)}\u00a0%`;
}

/**
 * A label's value in words: the name of a language where the label is one.
 * @param {string} label @param {string} value @returns {string}
 */
export function labelWords(label, value) {
  if (/^lang(uage)?$/.test(label) && /^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$/.test(value)) {
    try {
      const name = new Intl.DisplayNames("en", { type: "language", fallback: "none" }).of(value);
      if (name) return name;
    } catch {
      // No such language code: the value stands as it is.
    }
  }
  return `${label} ${value}`;
}

/**
 * A choice from a list.
 * @param {{label: string, value: string, options: (string | {value: string, label: string, disabled?: boolean, group?: string})[],
 *   onChange: (value: string) => void, title?: string, disabled?: boolean}} props
 */
export function Select({ label, value, options, onChange, title, disabled }) {
  const id = useId();
  const all = options.map((option) => (typeof option === "string" ? { value: option, label: option } : option));
  const groups = [...new Set(all.map((option) => option.group ?? ""))];
  const draw = (option) =>
    html`<option value=${option.value} disabled=${option.disabled} selected=${option.value === value}>${option.label}</option>`;
  return html`
    <span class="field" title=${title}>
      <label for=${id}>${label}</label>
      <select id=${id} value=${value} disabled=${disabled} onChange=${(event) => onChange(event.currentTarget.value)}>
        ${groups.map((group) => {
          const inside = all.filter((option) => (option.group ?? "") === group).map(draw);
          return group ? html`<optgroup label=${group}>${inside}</optgroup>` : inside;
        })}
      </select>
    </span>
  `;
}

/**
 * A choice of the page's traces.
 * @param {{sources: any, value: string, onChange: (id: string) => void, label?: string}} props
 */
export function TraceSelect({ sources, value, onChange, label = "Trace" }) {
  const options = sources.traces.map((trace) => ({ value: trace.id, label: `${trace.name} (${trace.rows.toLocaleString("en")} tokens)` }));
  return html`<${Select} label=${label} value=${value} options=${options} onChange=${onChange} />`;
}

/** @param {{label: string, checked: boolean, onChange: (checked: boolean) => void, title?: string, disabled?: boolean}} props */
export function Check({ label, checked, onChange, title, disabled }) {
  return html`
    <label class="check" title=${title}>
      <input type="checkbox" checked=${checked} disabled=${disabled} onChange=${(event) => onChange(event.currentTarget.checked)} />
      <span>${label}</span>
    </label>
  `;
}

/**
 * A field with a label around any control: `html\`<${Field} label="Text">${(id) => html\`<input id=${id} />\`}<//>\``.
 * @param {{label: string, hint?: string, children: any}} props
 */
export function Field({ label, hint, children }) {
  const id = useId();
  const draw = Array.isArray(children) ? children.find((child) => typeof child === "function") : children;
  return html`
    <span class="field">
      <label for=${id}>${label}</label>
      ${draw(id)}
      ${hint && html`<span class="quiet">${hint}</span>`}
    </span>
  `;
}

/** @param {{onClick: (event: any) => void, primary?: boolean, disabled?: boolean, title?: string, pressed?: boolean, children: any}} props */
export function Button({ onClick, primary, disabled, title, pressed, children }) {
  return html`<button type="button" class=${primary ? "primary" : ""} aria-pressed=${pressed} disabled=${disabled} title=${title} onClick=${onClick}>${children}</button>`;
}

/**
 * The command that gives the same numbers, with a button to copy it.
 * @param {{command: string, label?: string}} props
 */
export function Command({ command, label = "From the command line" }) {
  const [copied, setCopied] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(command);
      setCopied("Copied");
    } catch {
      setCopied("Select the line and copy it: this browser does not let the page do so");
    }
    setTimeout(() => setCopied(""), 4000);
  };
  return html`
    <div class="command">
      <span class="quiet">${label}</span>
      <code tabindex="0">${command}</code>
      <button type="button" onClick=${copy}>Copy</button>
      <span role="status" class="quiet">${copied}</span>
    </div>
  `;
}

/**
 * Nothing here yet, and what to do about it.
 * @param {{title: string, command?: string, children?: any}} props
 */
export function Empty({ title, command, children }) {
  return html`
    <section class="empty">
      <h2>${title}</h2>
      ${children}
      ${command && html`<${Command} command=${command} label="Run" />`}
    </section>
  `;
}

/**
 * What went wrong, in words, with a way to try again.
 * @param {{error: Error | string, again?: () => void}} props
 */
export function Failure({ error, again }) {
  const words = typeof error === "string" ? error : error.message;
  return html`
    <div class="failure" role="alert">
      <p>${words}</p>
      ${again && html`<button type="button" onClick=${again}>Try again</button>`}
    </div>
  `;
}

/** @param {{what?: string}} props */
export function Loading({ what = "Loading" }) {
  return html`<p class="loading" role="status">${what} …</p>`;
}

/**
 * How far a long work is; read aloud at every tenth.
 * @param {{done: number, total: number, what?: string, onStop?: () => void}} props
 */
export function Progress({ done, total, what = "", onStop }) {
  const share = total > 0 ? done / total : 0;
  return html`
    <div class="progress">
      <progress max=${total || 1} value=${done} aria-label=${what || "progress"}></progress>
      <span>${done.toLocaleString("en")} of ${total.toLocaleString("en")} ${what}</span>
      ${onStop && html`<button type="button" onClick=${onStop}>Stop</button>`}
      <span role="status" class="unseen">${what} ${Math.floor(share * 10) * 10} per cent</span>
    </div>
  `;
}

/**
 * What the colours mean: a scale with its ends, or a list of kinds.
 * @param {{title?: string, scale?: import("moeworks/colours").ScaleName, low?: string, middle?: string, high?: string,
 *   kinds?: {colour: string, label: string}[], children?: any}} props
 */
export function Legend({ title, scale, low, middle, high, kinds, children }) {
  return html`
    <div class="legend">
      ${title && html`<span class="legend-title">${title}</span>`}
      ${scale &&
      html`<span class="legend-scale">
        <span>${low}</span>
        <span class="legend-bar" style=${{ backgroundImage: scaleGradient(scale) }}>${middle && html`<i>${middle}</i>`}</span>
        <span>${high}</span>
      </span>`}
      ${kinds?.map((kind) => html`<span class="legend-kind"><i style=${{ background: kind.colour }}></i>${kind.label}</span>`)}
      ${children}
    </div>
  `;
}

/**
 * A titled box.
 * @param {{title?: any, actions?: any, className?: string, children?: any}} props
 */
export function Card({ title, actions, className = "", children }) {
  return html`
    <section class=${`card ${className}`}>
      ${(title || actions) && html`<header class="card-head"><h2>${title}</h2>${actions && html`<span class="card-actions">${actions}</span>`}</header>`}
      ${children}
    </section>
  `;
}

export { html } from "moeworks/markup";
export { Table } from "moeworks/table";
