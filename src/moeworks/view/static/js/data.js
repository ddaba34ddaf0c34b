// Everything that comes from the server, or from the data that an exported page carries in itself.

import { tableFromIPC, tableToIPC } from "apache-arrow";
import { useEffect, useReducer, useRef, useState } from "preact/hooks";

const KEPT = 96;
const kept = new Map(); // address → promise of an answer that is there
const asked = new Map(); // address → a request on its way, and how many wait for it
const wholes = new Map(); // tables of an exported page, by address without its query
const listeners = new Set();
let lost = false;
let giver = null;

/** An answer of the server that says what is wrong, in words for the person at the page. */
export class Refusal extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.name = "Refusal";
    this.status = status;
  }
}

/**
 * Take the key out of the address (`#key=…`, kept for this tab), so that it is in no copied link.
 */
export function takeKey() {
  const match = /^#key=([^#&]*)(?:[#&]?(\/.*))?$/s.exec(location.hash);
  if (!match) return;
  sessionStorage.setItem("moeworks-key", decodeURIComponent(match[1]));
  history.replaceState(null, "", `${location.pathname}${location.search}${match[2] ? `#${match[2]}` : ""}`);
}

/**
 * The headers that every request carries.
 * @returns {Record<string, string>}
 */
export function keyHeaders() {
  const key = sessionStorage.getItem("moeworks-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/**
 * Take answers from elsewhere than a server: from the kernel behind a notebook's widget.
 * @param {(url: string, signal?: AbortSignal) => Promise<Uint8Array>} give
 */
export function answersFrom(give) {
  giver = give;
}

/**
 * True where the page was written to a file: there is no server, only what the file holds.
 * @returns {boolean}
 */
export function isExport() {
  return document.querySelector("script[data-url]") !== null;
}

/**
 * GET a JSON answer. The same address is asked for once, unless `fresh`.
 * @param {string} url relative to the page, such as `api/sources`
 * @param {{signal?: AbortSignal, fresh?: boolean}} [options]
 * @returns {Promise<any>}
 */
export function getJson(url, options = {}) {
  return remembered(url, options, async (signal) => JSON.parse(new TextDecoder().decode(await bytesOf(url, signal))));
}

/**
 * GET an Arrow IPC stream as a table. The same address is asked for once, unless `fresh`.
 * @param {string} url
 * @param {{signal?: AbortSignal, fresh?: boolean}} [options]
 * @returns {Promise<import("apache-arrow").Table>}
 */
export function getTable(url, options = {}) {
  return remembered(url, options, async (signal) => embeddedRows(url) ?? tableFromIPC(await bytesOf(url, signal)));
}

/**
 * POST a JSON body and return the JSON answer.
 * @param {string} url
 * @param {unknown} body
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 */
export async function postJson(url, body, { signal } = {}) {
  return (await post(url, body, signal, "application/json")).json();
}

/**
 * POST a body and hand on each server-sent event as it comes. `data: [DONE]` ends quietly.
 * @param {string} url relative to the page (`api/evidence`) or from the root (`/v1/completions`)
 * @param {unknown} body
 * @param {(event: any) => void} onEvent gets the parsed JSON of each event
 * @param {AbortSignal} [signal] stops the work
 */
export async function streamEvents(url, body, onEvent, signal) {
  const response = await post(url, body, signal, "text/event-stream");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const text = data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      if (text === "[DONE]") return;
      if (text) onEvent(failureOf(JSON.parse(text)));
    }
  }
}

function failureOf(event) {
  if (event && event.error) throw new Refusal(event.error.message ?? String(event.error), 0);
  return event;
}

/**
 * Use what a loader gives, again whenever `deps` change. A value is only ever given with the `deps` it was loaded for:
 * until the new one is there `value` is null, and `previous` is what was there before, for what may stand meanwhile.
 * @template T
 * @param {(signal: AbortSignal) => Promise<T> | null} load returns null where there is nothing to load
 * @param {unknown[]} deps
 * @returns {{value: T | null, previous: T | null, error: Error | null, loading: boolean, again: () => void}}
 */
export function useLoaded(load, deps) {
  const [state, setState] = useState({ deps: null, value: null, error: null, loading: true });
  const [turn, again] = useReducer((count) => count + 1, 0);
  const previous = useRef(null);
  useEffect(() => {
    const stop = new AbortController();
    const promise = load(stop.signal);
    if (!promise) {
      setState({ deps, value: null, error: null, loading: false });
      return undefined;
    }
    setState((before) => ({ deps, value: same(before.deps, deps) ? before.value : null, error: null, loading: true }));
    promise.then(
      (value) => {
        if (stop.signal.aborted) return;
        previous.current = value;
        setState({ deps, value, error: null, loading: false });
      },
      (error) => !stop.signal.aborted && setState({ deps, value: null, error, loading: false }),
    );
    return () => stop.abort();
  }, [...deps, turn]);
  const { value, error, loading } = same(state.deps, deps) ? state : { value: null, error: null, loading: true };
  return { value, previous: previous.current, error, loading, again };
}

function same(a, b) {
  return a !== null && a.length === b.length && a.every((one, i) => Object.is(one, b[i]));
}

/**
 * Hear when the connection is lost (true) and found again (false).
 * @param {(lost: boolean) => void} listener
 * @returns {() => void} stops listening
 */
export function onConnection(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const anew = new Set();

/** Ask for the sources again: after a trace was recorded or a plan saved. */
export function refreshSources() {
  for (const listener of anew) listener();
}

/**
 * What the page shows (`api/sources`), asked for again by `refreshSources`.
 * @returns {{value: any, error: Error | null, loading: boolean, again: () => void}}
 */
export function useSources() {
  const loaded = useLoaded((signal) => getJson("api/sources", { signal, fresh: true }), []);
  useEffect(() => {
    anew.add(loaded.again);
    return () => anew.delete(loaded.again);
  }, []);
  return loaded;
}

/**
 * A column as a plain typed array (64-bit whole numbers become numbers), strings and booleans as an array.
 * Lists of fixed size come as their flat values, `rows × k`.
 * @param {import("apache-arrow").Table} table
 * @param {string} name
 * @returns {any} null where the table has no such column
 */
export function column(table, name) {
  const vector = table.getChild(name);
  if (!vector) return null;
  if (vector.type.children?.length === 1) return flatList(vector);
  const values = vector.toArray();
  return values instanceof BigInt64Array || values instanceof BigUint64Array ? Float64Array.from(values, Number) : values;
}

function flatList(vector) {
  const size = vector.type.listSize;
  const pieces = vector.data.map((data) => data.children[0].values.subarray(data.offset * size, (data.offset + data.length) * size));
  if (pieces.length === 1) return pieces[0];
  const whole = new (pieces[0]?.constructor ?? Array)(vector.length * size);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

// Callers of the same address share one request; it is given up when the last one who waits for it has left.
function remembered(url, { signal, fresh }, load) {
  if (!fresh && kept.has(url)) {
    const promise = kept.get(url);
    kept.delete(url);
    kept.set(url, promise);
    return promise;
  }
  let shared = fresh ? null : asked.get(url);
  if (!shared) {
    const stop = new AbortController();
    shared = { stop, waiting: 0, promise: load(stop.signal) };
    const over = () => asked.get(url) === shared && asked.delete(url);
    shared.promise.then((value) => {
      over();
      remember(url, Promise.resolve(value));
    }, over);
    if (!fresh) asked.set(url, shared);
  }
  return waitFor(url, shared, signal);
}

function waitFor(url, shared, signal) {
  shared.waiting += 1;
  if (!signal) return shared.promise;
  return new Promise((resolve, reject) => {
    const leave = () => {
      shared.waiting -= 1;
      if (shared.waiting === 0) {
        if (asked.get(url) === shared) asked.delete(url);
        shared.stop.abort();
      }
      reject(signal.reason);
    };
    shared.promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", leave));
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave, { once: true });
  });
}

function remember(url, promise) {
  kept.set(url, promise);
  promise.catch(() => kept.delete(url));
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return promise;
}

async function bytesOf(url, signal) {
  if (giver) return giver(url, signal);
  const embedded = embeddedBytes(url);
  if (embedded) return embedded;
  if (isExport()) throw new Refusal("This file does not hold that part. Run `moeworks view` on the trace itself to see it.", 0);
  const response = await patiently(() => fetch(url, { headers: keyHeaders(), signal }), signal);
  return new Uint8Array(await (await checked(response)).arrayBuffer());
}

function embeddedBytes(url) {
  for (const script of document.querySelectorAll("script[data-url]")) {
    if (script.dataset.url === url) {
      const text = atob(script.textContent.trim());
      return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    }
  }
  return null;
}

// An exported page holds a table of rows once, whole, and cuts out the stretch that is asked for.
function embeddedRows(url) {
  const [path, query] = url.split("?");
  const asked = new URLSearchParams(query ?? "");
  if (!asked.has("start") || !isExport()) return null;
  if (!wholes.has(path)) {
    const bytes = embeddedBytes(path);
    if (!bytes) return null;
    wholes.set(path, tableFromIPC(bytes));
  }
  const whole = wholes.get(path);
  const stop = Math.min(Number(asked.get("stop") ?? whole.numRows), whole.numRows);
  // Written and read again: a slice shares its lists with the whole table, and says two different things of where they begin.
  return tableFromIPC(tableToIPC(whole.slice(Number(asked.get("start")), stop)));
}

async function post(url, body, signal, accept) {
  if (isExport()) throw new Refusal("This page was written to a file: there is no model behind it. Run `moeworks view` for that.", 0);
  const headers = { ...keyHeaders(), "Content-Type": "application/json", Accept: accept };
  let response;
  try {
    response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal("The server did not answer. Is `moeworks view` still running? Nothing was changed; try again.", 0);
  }
  return checked(response);
}

async function checked(response) {
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const words = answer?.error?.message ?? (typeof answer?.error === "string" ? answer.error : answer?.detail);
  throw new Refusal(typeof words === "string" ? words : `The server answered ${response.status}.`, response.status);
}

// A GET that finds no server waits and asks again, from half a second to eight, as long as somebody waits for it.
async function patiently(ask, signal) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await ask();
      if (response.status !== 502 && response.status !== 504) {
        setLost(false);
        return response;
      }
    } catch (error) {
      if (signal?.aborted) throw error;
    }
    setLost(true);
    await new Promise((resolve) => setTimeout(resolve, wait));
    signal?.throwIfAborted();
  }
}

function setLost(now) {
  if (now === lost) return;
  lost = now;
  for (const listener of listeners) listener(lost);
}
