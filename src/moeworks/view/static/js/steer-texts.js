// Both texts side by side as they are written, with what differs marked token by token.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Card, Failure, html } from "moeworks/parts";
import { diffPieces } from "moeworks/steer-diff";
import { countRoutes } from "moeworks/steer-routes";
import { runText } from "moeworks/steer-run";

const KEPT = "moeworks-steer-texts"; // the last two texts, kept for this tab

/**
 * What two texts are of; texts of another key than the present one are shown as older.
 * @param {{prompt: string, tokens: number, chat: boolean, hash: string}} of
 */
export function textsKey({ prompt, tokens, chat, hash }) {
  return JSON.stringify([prompt, tokens, chat, hash]);
}

/** The two texts of this tab, and starting and stopping them. */
export function useTexts() {
  const [shown, setShown] = useState(readKept);
  const [running, setRunning] = useState(false);
  const [lost, setLost] = useState(false);
  const stopping = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => stopping.current?.abort(), []);

  async function start(/** @type {any} */ asked) {
    stopping.current?.abort();
    const stop = new AbortController();
    stopping.current = stop;
    const sides = asked.plan ? ["before", "after"] : ["before"];
    const empty = () => ({ pieces: [], reason: "", error: "" });
    /** @type {any} */
    const state = { key: textsKey(asked), prompt: asked.prompt, chat: asked.chat, before: empty(), after: asked.plan ? empty() : null, counted: null };
    const routes = /** @type {Record<string, any>} */ ({});
    const draw = () => stopping.current === stop && setShown({ ...state });
    draw();
    setRunning(true);
    setLost(false);
    await Promise.all(
      sides.map(async (side) => {
        try {
          const plan = side === "after" ? asked.plan : null;
          const text = await runText({ ...asked, plan }, ({ pieces, reason }) => {
            state[side] = { ...state[side], pieces, reason };
            draw();
          }, stop.signal, setLost);
          routes[side] = text.routes;
        } catch (error) {
          const words = stop.signal.aborted ? "Stopped." : /** @type {Error} */ (error).message;
          state[side] = { ...state[side], error: words };
          draw();
        }
      }),
    );
    if (routes.before && routes.after) state.counted = countRoutes(routes.before, routes.after);
    if (stopping.current !== stop) return;
    draw();
    setRunning(false);
    keep(state);
  }
  return { shown, running, lost, start, stop: () => stopping.current?.abort() };
}

function readKept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  } catch {
    return null;
  }
}

function keep(/** @type {any} */ state) {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(state));
  } catch {
    sessionStorage.removeItem(KEPT); // too long for the browser's store: lost on reload, and generated again
  }
}

/** @param {{texts: ReturnType<typeof useTexts>, now: string}} props */
export function TextsCard({ texts, now }) {
  const { shown, running } = texts;
  const before = shown?.before.pieces ?? [];
  const after = shown?.after?.pieces ?? [];
  const marks = useMemo(() => diffPieces(before, after), [before, after]);
  if (!shown) {
    return html`<${Card} title="Texts" className="steer-texts"><p class="quiet">Both texts appear here side by side, and what the plan changes in them is marked.</p><//>`;
  }
  const both = shown.after !== null;
  const done = !running && both && shown.before.reason && shown.after.reason;
  return html`
    <${Card} title="Texts" className="steer-texts" actions=${done && html`<span class="quiet" role="status">${verdict(marks, before, after)}</span>`}>
      ${texts.lost && html`<p class="quiet" role="status">The connection was lost; both texts begin again when the server is back.</p>`}
      ${shown.key !== now && !running && html`<p class="older" role="status">These texts are of an earlier prompt or plan; generate again to see the present one.</p>`}
      <div class="pair">
        <${Text} title="Without the plan" shown=${shown} side=${shown.before} same=${both ? marks.before : null} running=${running} comparing=${after.length > 0} ended=${Boolean(shown.after?.reason)} />
        ${both && html`<${Text} title="With the plan" shown=${shown} side=${shown.after} same=${marks.after} running=${running} comparing=${before.length > 0} ended=${Boolean(shown.before.reason)} />`}
      </div>
    <//>
  `;
}

/** One text; a piece without partner is marked once the other text has come so far. */
function Text({ title, shown, side, same, running, comparing, ended }) {
  const { pieces, reason, error } = side;
  const far = same ? Math.max(same.lastIndexOf(true), ended ? pieces.length : 0) : 0;
  const state = error ? "" : reason ? ended || !running ? ending(reason) : ending(reason) : pieces.length ? "writing …" : running ? "waiting for its turn …" : "";
  return html`
    <section class="text-side" aria-label=${title} aria-busy=${running && !reason}>
      <header><h3>${title}</h3><span class="quiet">${pieces.length > 0 && `${pieces.length.toLocaleString("en")} pieces, `}${state}</span></header>
      <p class="text-run" dir="auto" tabindex="0">
        <span class="text-prompt">${shown.prompt}</span>${shown.chat ? html`<br />` : ""}${pieces.map((/** @type {string} */ piece, /** @type {number} */ place) =>
          same && comparing && !same[place] && (place < far || ended) ? html`<mark key=${place} class="differs">${piece}</mark>` : html`<span key=${place}>${piece}</span>`,
        )}${running && !reason && !error ? html`<span class="caret" aria-hidden="true"></span>` : ""}
      </p>
      ${error && (error === "Stopped." ? html`<p class="quiet">Stopped.</p>` : html`<${Failure} error=${error} />`)}
      <${Spoken} title=${title} pieces=${pieces} done=${Boolean(reason)} />
    </section>
  `;
}

/** Read the text aloud by sentences, not by tokens, which no one could follow. */
function Spoken({ title, pieces, done }) {
  const said = useRef(0);
  const words = useRef("");
  if (pieces.length < said.current) said.current = 0;
  const fresh = pieces.slice(said.current).join("");
  if (fresh && (done || /[.!?。؟…\n]\s*$/.test(fresh) || fresh.length > 160)) {
    said.current = pieces.length;
    words.current = `${title}: ${fresh}`;
  }
  return html`<p class="unseen" aria-live="polite">${words.current}</p>`;
}

/** @param {string} reason */
function ending(reason) {
  return { length: "ended at the number of tokens", stop: "ended by itself" }[reason] ?? `ended: ${reason}`;
}

/** @param {ReturnType<typeof diffPieces>} marks @param {string[]} before @param {string[]} after */
function verdict(marks, before, after) {
  if (marks.first < 0) return "The two texts are the same.";
  const differ = before.length - marks.common;
  const others = after.length - marks.common;
  return `They part at piece ${marks.first + 1}; ${differ} of ${before.length} pieces are gone, ${others} of ${after.length} are new.`;
}
