// Chosen experts: what is chosen, what to do with them, and the search that finds them.

import { useState } from "preact/hooks";
import { Button, Field, html } from "moeworks/parts";
import { formatAddresses, hashOf } from "moeworks/state";

/**
 * The chosen experts and the ways on to Steer.
 * @param {{trace: any, value: string, picked: Set<string>, protectedOnes: Set<string>, onClear: () => void, onStrongest: (count: number) => void, canPick: number}} props
 *   value: what the map is of, a language, say: Steer offers its texts and its probe first;
 *   canPick: how many experts the map would choose by itself
 */
export function PickBar({ trace, value, picked, protectedOnes, onClear, onStrongest, canPick }) {
  const [count, setCount] = useState(8);
  const addresses = formatAddresses(picked);
  const held = [...picked].filter((address) => protectedOnes.has(address));
  const to = (op) => hashOf("steer", { trace: trace.id, [op]: addresses, value });
  return html`
    <div class="pick-bar" role="group" aria-label="Chosen experts">
      <span class="pick-count" role="status"><b>${picked.size}</b> chosen</span>
      ${picked.size > 0 && html`<code class="pick-list" title=${addresses}>${addresses}</code>`}
      ${picked.size > 0 &&
      html`<span class="pick-ways">
        <a class="as-button primary" href=${to("demote")}>Switch off in Steer</a>
        <a class="as-button" href=${to("promote")}>Promote</a>
        <a class="as-button" href=${to("mask")}>Mask</a>
        <a class="as-button" href=${to("add")}>Add</a>
        <a class="as-button" href=${to("scale")}>Scale</a>
        <${Button} onClick=${onClear}>Clear<//>
      </span>`}
      <span class="pick-ways">
        <${Button} disabled=${canPick === 0} title="the largest values; where the map has a test only experts that pass it; never protected ones" onClick=${() => onStrongest(count)}>Choose the strongest<//>
        <input type="number" aria-label="how many of the strongest" min="1" max="9999" value=${count} onInput=${(event) => setCount(Math.max(1, Number(event.currentTarget.value) || 1))} />
      </span>
      ${held.length > 0 && html`<span class="pick-note">${held.join(", ")} ${held.length > 1 ? "are" : "is"} protected: the model breaks without; a plan must say so to touch it.</span>`}
    </div>
  `;
}

/**
 * Read what was typed into the search: addresses, a layer, or a value of a label.
 * @param {string} text @param {any} trace @param {import("moeworks/experts-map").ExpertMap | null} map
 * @returns {{addresses: string[], labels: {label: string, value: string}[]}}
 */
export function findExperts(text, trace, map) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return { addresses: [], labels: [] };
  const labels = Object.entries(trace.labels).flatMap(([label, values]) =>
    Object.keys(values)
      .filter((value) => value.toLowerCase().startsWith(wanted) || `${label}=${value}`.toLowerCase() === wanted)
      .map((value) => ({ label, value })),
  );
  const match = /^(?:l(\d+))?\.?(?:e(\d+))?$/.exec(wanted);
  const cells = match && (match[1] || match[2]) && map ? map.cells : [];
  const addresses = cells.filter((cell) => (!match[1] || cell.layer === Number(match[1])) && (!match[2] || cell.expert === Number(match[2]))).map((cell) => cell.address);
  return { addresses, labels: labels.sort((a, b) => a.value.length - b.value.length).slice(0, 8) };
}

/**
 * @param {{text: string, result: {addresses: string[], labels: {label: string, value: string}[]}, onText: (text: string) => void,
 *   onOpen: (address: string) => void, onLabel: (label: string, value: string) => void}} props
 */
export function ExpertSearch({ text, result, onText, onOpen, onLabel }) {
  const submit = (event) => {
    event.preventDefault();
    if (result.addresses.length) onOpen(result.addresses[0]);
    else if (result.labels.length) onLabel(result.labels[0].label, result.labels[0].value);
  };
  const nothing = text.trim() && result.addresses.length === 0 && result.labels.length === 0;
  return html`
    <form role="search" onSubmit=${submit}>
      <${Field} label="Search">${(id) => html`<span class="find-row">
        <input id=${id} class="expert-search" type="search" placeholder="L3.E5, L3, ru" size="12" value=${text} onInput=${(event) => onText(event.currentTarget.value)} />
        ${result.labels.map(({ label, value }) => html`<button type="button" onClick=${() => onLabel(label, value)}>${label} ${value}</button>`)}
        <span class="quiet" role="status">${nothing ? "no such expert, layer or label" : result.addresses.length ? `${result.addresses.length} marked` : ""}</span>
      </span>`}<//>
    </form>
  `;
}
