// Choosing experts: typed addresses, the first of a scores file, and those that came with the page's address.

import { useState } from "preact/hooks";
import { column, getTable } from "moeworks/data";
import { Button, Card, Failure, Field, html, Select } from "moeworks/parts";
import { change, formatAddresses, hashOf } from "moeworks/state";
import { countPicks, numbers, OPERATIONS, readAddresses, withoutPicks, withPicks } from "moeworks/steer-picks";

const CHIPS = 60; // experts of one operation that stand singly; of more, ranges are shown

/**
 * @param {{picks: Record<string, string[]>, choose: (picks: Record<string, string[]>) => void, strength: number,
 *   factor: number, params: Record<string, string>, sources: any, plan: any}} props
 */
export function ExpertChoice({ picks, choose, strength, factor, params, sources, plan }) {
  const [op, setOp] = useState(params.op ?? "demote");
  const [typed, setTyped] = useState("");
  const [error, setError] = useState(/** @type {Error | null} */ (null));
  const [said, setSaid] = useState("");
  const known = new Map(sources.model.layers.map((/** @type {any} */ layer) => [layer.layer, layer.experts]));
  const put = (/** @type {string[]} */ addresses, /** @type {string} */ how) => {
    const missing = addresses.filter((one) => !(numbers(one)[1] < (known.get(numbers(one)[0]) ?? 0)));
    if (missing.length) {
      throw new Error(`${formatAddresses(missing)} ${missing.length === 1 ? "is no expert" : "are no experts"} of ${sources.model.name}; ${extent(sources.model)}.`);
    }
    choose(withPicks(picks, op, addresses));
    setError(null);
    setSaid(how);
  };
  const add = (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      const addresses = readAddresses(typed);
      if (!addresses.length) throw new Error("Type the addresses of experts first, as in L3.E5 or L3.E0-5.");
      put(addresses, `${addresses.length} added to ${op}.`);
      setTyped("");
    } catch (problem) {
      setError(/** @type {Error} */ (problem));
    }
  };
  const count = countPicks(picks);
  return html`
    <${Card} title="Experts" className="steer-experts" actions=${count.experts > 0 && html`<${Button} onClick=${() => choose({})}>Clear<//>`}>
      ${count.experts === 0 &&
      plan.source === "none" &&
      html`<p class="quiet">None chosen. Select some on the <a href=${hashOf("experts", { trace: params.trace })}>map of experts</a>, take the first of a scores file, or type their addresses.</p>`}
      ${OPERATIONS.filter((one) => picks[one.op]?.length).map(
        (one) => html`<${Picked} key=${one.op} operation=${one} addresses=${picks[one.op]} protected=${sources.model.protected}
          strength=${strength} factor=${factor} remove=${(/** @type {string | undefined} */ address) => choose(withoutPicks(picks, one.op, address))} />`,
      )}
      <div class="controls">
        <${Select} label="Operation" value=${op} onChange=${setOp} options=${OPERATIONS.map((one) => ({ value: one.op, label: one.word }))} />
        <form class="inline-form" onSubmit=${add}>
          <${Field} label="Addresses">
            ${(/** @type {string} */ id) => html`<input id=${id} type="text" autocomplete="off" spellcheck=${false} placeholder="L3.E5, L4.E0-2"
              value=${typed} onInput=${(/** @type {any} */ event) => setTyped(event.currentTarget.value)} />`}
          <//>
          <button type="submit">Add</button>
        </form>
      </div>
      <p class="quiet">${OPERATIONS.find((one) => one.op === op)?.does}.</p>
      ${sources.scores.length > 0 && html`<${FromScores} sources=${sources} params=${params} op=${op} put=${put} fail=${setError} />`}
      ${error && html`<${Failure} error=${error} />`}
      <p class="unseen" role="status">${said}</p>
    <//>
  `;
}

/** One operation with its experts, each with a button that takes it out. */
function Picked({ operation, addresses, protected: spared, strength, factor, remove }) {
  const { op, word } = operation;
  const guarded = new Set(spared);
  const few = addresses.length <= CHIPS;
  const pieces = few ? addresses : formatAddresses(addresses).split(",");
  return html`
    <div class="picked" role="group" aria-label=${`${word}: ${addresses.length} experts`}>
      <div class="picked-head">
        <h3>${word} <span class="count">${addresses.length.toLocaleString("en")}</span></h3>
        ${op === "add" && html`<${Amount} label="Strength" name="strength" value=${strength} hint="deviations" />`}
        ${op === "scale" && html`<${Amount} label="Factor" name="factor" value=${factor} hint="×" />`}
        <button type="button" class="plain" onClick=${() => remove()} aria-label=${`Remove all experts to ${op}`}>Remove all</button>
      </div>
      <ul class="steer-chips">
        ${pieces.map(
          (piece) => html`<li key=${piece} class=${guarded.has(piece) ? "steer-chip guarded" : "steer-chip"}>
            <span class="mono">${piece}</span>
            ${guarded.has(piece) && html`<span title="a super expert: protected">protected</span>`}
            ${few && html`<button type="button" class="plain" aria-label=${`Take out ${piece}`} onClick=${() => remove(piece)}>×</button>`}
          </li>`,
        )}
      </ul>
    </div>
  `;
}

/** A number that goes into the page's address when it is one. */
function Amount({ label, name, value, hint }) {
  const write = (/** @type {any} */ event) => {
    const number = Number(event.currentTarget.value);
    if (event.currentTarget.value.trim() !== "" && Number.isFinite(number)) change({ [name]: number }, { replace: true });
  };
  return html`<label class="amount">${label} <input type="number" step="any" value=${value} onChange=${write} /> <span class="quiet">${hint}</span></label>`;
}

/** The first experts of a scores file, those that pass its test. */
function FromScores({ sources, params, op, put, fail }) {
  const trace = sources.traces.find((/** @type {any} */ one) => one.id === params.trace) ?? sources.traces[0];
  const scores = scoresOf(sources, params);
  const top = Math.min(Math.max(Number(params.top) || 10, 1), 10_000);
  const turnsDown = op !== "promote";
  const take = async () => {
    try {
      const of = scores.trace ?? trace?.id;
      if (!of) throw new Error("The page has no trace to read these scores beside; open it with one, or type addresses.");
      const table = await getTable(`api/traces/${of}/map?by=score&scores=${encodeURIComponent(scores.id)}`);
      const found = firstOf(table, top, { spared: turnsDown });
      if (!found.length) throw new Error(`No expert of ${scores.name} passes its test: there is nothing to steer by. Type addresses to try some all the same.`);
      put(found, `${found.length} experts of ${scores.name} added to ${op}.`);
      if (found.length < top) fail(new Error(`${top} experts were asked for; ${found.length} of ${scores.name} pass its test.`));
    } catch (error) {
      fail(/** @type {Error} */ (error));
    }
  };
  return html`
    <div class="controls">
      <${Select} label="From scores" value=${scores.id} onChange=${(/** @type {string} */ id) => change({ scores: id }, { replace: true })}
        options=${sources.scores.map((/** @type {any} */ one) => ({ value: one.id, label: `${one.name}${one.contrast ? ` (${one.contrast})` : ""}` }))} />
      <${Field} label="The first">
        ${(/** @type {string} */ id) => html`<input id=${id} type="number" min="1" max="10000" value=${top}
          onChange=${(/** @type {any} */ event) => change({ top: event.currentTarget.value }, { replace: true })} />`}
      <//>
      <${Button} onClick=${take}>Take them<//>
    </div>
  `;
}

/** The scores that the page's address names, else those of the value that the experts were chosen by, else the first. */
export function scoresOf(/** @type {any} */ sources, /** @type {Record<string, string>} */ params) {
  const named = sources.scores.find((/** @type {any} */ one) => one.id === params.scores);
  const ofValue = params.value && sources.scores.find((/** @type {any} */ one) => one.contrast?.endsWith(`=${params.value}`));
  return named ?? (ofValue || sources.scores[0]);
}

/**
 * Return the experts with the largest scores that pass, as `moeworks steer` ranks them.
 * @param {import("apache-arrow").Table} table of `map?by=score`
 * @param {number} count
 * @param {{spared: boolean}} options whether protected experts are left out
 * @returns {string[]}
 */
export function firstOf(table, count, { spared }) {
  const [layer, expert, value] = ["layer", "expert", "value"].map((name) => column(table, name));
  const [passes, guarded] = ["passes", "protected"].map((name) => table.getChild(name));
  const order = Array.from({ length: table.numRows }, (_, row) => row).filter(
    (row) => value[row] > 0 && (passes ? passes.get(row) : true) && !(spared && guarded?.get(row)),
  );
  order.sort((a, b) => value[b] - value[a] || layer[a] - layer[b] || expert[a] - expert[b]);
  return order.slice(0, count).map((row) => `L${layer[row]}.E${expert[row]}`);
}

/** @param {any} model what addresses it has, in words */
function extent(model) {
  const layers = model.layers.map((/** @type {any} */ one) => one.layer);
  const most = Math.max(...model.layers.map((/** @type {any} */ one) => one.experts));
  return `its layers are ${layers[0]} to ${layers.at(-1)} with experts 0 to ${most - 1}`;
}
