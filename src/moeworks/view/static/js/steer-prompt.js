// The prompt, how much is written after it, and the button that writes both texts.

import { useEffect } from "preact/hooks";
import { column, getTable, useLoaded } from "moeworks/data";
import { Button, Card, Field, html, Select } from "moeworks/parts";
import { change } from "moeworks/state";

const WORDS = 6; // of an example text
const EXAMPLES = 16;
const SPECIAL = /<\|[^|>]*\|>/g; // the tokens that begin and end texts, which are no text to continue

/**
 * @param {{typed: string, type: (text: string) => void, tokens: number, chat: boolean, params: Record<string, string>,
 *   sources: any, generate: () => void, texts: any, plan: any}} props
 */
export function PromptCard({ typed, type, tokens, chat, params, sources, generate, texts, plan }) {
  const trace = sources.traces.find((/** @type {any} */ one) => one.id === params.trace) ?? sources.traces[0];
  const examples = useLoaded((signal) => (trace ? getTable(`api/traces/${trace.id}/requests`, { signal }).then(examplesOf) : null), [trace?.id]);
  useEffect(() => {
    const first = params.value && examples.value?.find((one) => one.lang === params.value);
    if (first && !typed) type(first.value); // whoever comes from a language's experts can go on at once
  }, [examples.value, params.value]);
  const blocked = !typed.trim() ? "Type a prompt first." : plan.problems.length || plan.error ? "The plan has problems; see there." : plan.loading ? "The plan is being checked." : "";
  const chats = sources.can.chat !== false;
  const hear = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (!blocked && !texts.running) generate();
  };
  return html`
    <${Card} title="Prompt" className="steer-prompt">
      <${Field} label=${chat ? "What a user says" : "A text to continue"}>
        ${(/** @type {string} */ id) => html`<textarea id=${id} rows="3" dir="auto" value=${typed} onKeyDown=${hear}
          placeholder="Type here, or take an example below" onInput=${(/** @type {any} */ event) => type(event.currentTarget.value)}></textarea>`}
      <//>
      <div class="controls">
        ${examples.value?.length > 0 &&
        html`<${Select} label=${`Examples from ${trace.name}`} value="" onChange=${(/** @type {string} */ text) => text && type(text)}
          options=${[{ value: "", label: "choose one" }, ...examples.value]} />`}
        ${chats &&
        html`<${Select} label="As" value=${chat ? "1" : ""} options=${[{ value: "", label: "text to continue" }, { value: "1", label: "turn of a chat" }]}
          onChange=${(/** @type {string} */ value) => change({ chat: value }, { replace: true })} />`}
        <${Field} label="Tokens">
          ${(/** @type {string} */ id) => html`<input id=${id} type="number" min="1" max="2000" value=${tokens}
            onChange=${(/** @type {any} */ event) => change({ tokens: event.currentTarget.value }, { replace: true })} />`}
        <//>
        ${texts.running
          ? html`<${Button} onClick=${texts.stop}>Stop<//>`
          : html`<${Button} primary onClick=${generate} disabled=${Boolean(blocked)} title=${blocked || "Ctrl+Enter in the prompt does the same"}>
              ${plan.plan ? "Generate with and without the plan" : "Generate"}
            <//>`}
      </div>
      <p class="quiet">${blocked && typed.trim() ? blocked : "Greedy, so that both texts differ by the plan alone. The model writes one after the other: that keeps each exact."}</p>
    <//>
  `;
}

/** One beginning of a text for each value of the trace's languages, or of the first texts. */
function examplesOf(/** @type {import("apache-arrow").Table} */ table) {
  const previews = column(table, "preview");
  const langs = column(table, "lang");
  const seen = new Set();
  const found = [];
  for (let row = 0; row < table.numRows && found.length < EXAMPLES; row += 1) {
    const lang = langs ? String(langs[row] ?? "") : "";
    const text = beginning(String(previews?.[row] ?? "").replaceAll(SPECIAL, ""));
    if (!text || (lang && seen.has(lang))) continue;
    seen.add(lang);
    found.push({ value: text, lang, label: lang ? `${lang}: ${text}` : text });
  }
  return found;
}

/** @param {string} text its first words, or letters where it has no spaces; never half a word */
function beginning(text) {
  const words = text.trim().split(/\s+/);
  if (words.length > WORDS) return words.slice(0, WORDS).join(" ");
  const letters = [...text.trim()];
  return words.length === 1 && letters.length > 16 ? letters.slice(0, 12).join("") : words.slice(0, Math.max(1, words.length - 1)).join(" ");
}
