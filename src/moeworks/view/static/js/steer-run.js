// One text from the server, streamed: its pieces, why it ended, and the routes of its tokens.

import { getJson, Refusal, streamEvents } from "moeworks/data";

/**
 * @typedef {{prompt: string, tokens: number, chat: boolean, plan: any | null}} Asked
 * @typedef {{pieces: string[], reason: string, routes: any | null}} Text
 */

/**
 * Generate one text; greedy, so that a text that is asked for again is the same. When the connection is lost, wait for the
 * server and begin again.
 * @param {Asked} asked
 * @param {(text: Text) => void} onText called as it grows
 * @param {AbortSignal} signal
 * @param {(lost: boolean) => void} [onLost]
 * @returns {Promise<Text>}
 */
export async function runText(asked, onText, signal, onLost = () => {}) {
  for (;;) {
    try {
      return await once(asked, onText, signal);
    } catch (error) {
      if (signal.aborted || !isLost(error)) throw error;
      onLost(true);
      onText({ pieces: [], reason: "", routes: null });
      await new Promise((resolve) => setTimeout(resolve, 500));
      await getJson("api/sources", { signal, fresh: true }); // comes back when the server does
      onLost(false);
    }
  }
}

/** A stream that broke off, or a server that is not there; a refusal in words is neither. */
function isLost(/** @type {any} */ error) {
  return !(error instanceof Refusal) || /did not answer/.test(error.message);
}

/** @param {Asked} asked @param {(text: Text) => void} onText @param {AbortSignal} signal @returns {Promise<Text>} */
async function once({ prompt, tokens, chat, plan }, onText, signal) {
  /** @type {Text} */
  const text = { pieces: [], reason: "", routes: null };
  const body = {
    ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    max_tokens: tokens,
    temperature: 0,
    seed: 0,
    stream: true,
    moeworks: { record: { from: "prompt" }, ...(plan ? { plan } : {}) },
  };
  await streamEvents(chat ? "/v1/chat/completions" : "/v1/completions", body, (event) => {
    const [choice] = event.choices ?? [];
    const piece = chat ? choice?.delta?.content : choice?.text;
    if (piece) text.pieces = [...text.pieces, piece];
    if (choice?.finish_reason) text.reason = choice.finish_reason;
    if (event.moeworks?.routes) text.routes = event.moeworks.routes;
    onText({ ...text });
  }, signal);
  if (!text.reason) throw new TypeError("the stream broke off");
  return text;
}
