// The state of the page lives in the address: #/view?name=value. Reading, writing and watching it.

import { useEffect, useState } from "preact/hooks";

/** The views of the page, in the order of the navigation. */
export const VIEWS = ["tokens", "experts", "layers", "compare", "steer", "reports"];

/**
 * @typedef {{view: string, params: Record<string, string>}} Route
 * @typedef {{read: () => string, write: (hash: string, replace: boolean) => void, hear: (listener: () => void) => () => void}} Address
 *   where the state is kept; hear returns what stops it
 */

/** @type {Address} */
let address = {
  read: () => location.hash,
  write(hash, replace) {
    if (replace) {
      history.replaceState(null, "", hash);
      dispatchEvent(new HashChangeEvent("hashchange"));
    } else {
      location.hash = hash;
    }
  },
  hear(listener) {
    addEventListener("hashchange", listener);
    return () => removeEventListener("hashchange", listener);
  },
};

/**
 * Keep the state elsewhere than in the browser's address: a widget in a notebook has none of its own.
 * @param {Address} other
 */
export function keepAddress(other) {
  address = other;
}

/**
 * Read a hash such as `#/tokens?trace=fr&layer=4`; what is no view of ours becomes the first look, `experts`.
 * @param {string} hash
 * @returns {Route}
 */
export function parseHash(hash) {
  const match = /^#?\/([a-z]*)(?:\?(.*))?$/s.exec(hash);
  const view = match && VIEWS.includes(match[1]) ? match[1] : "experts";
  const params = match && match[1] === view ? Object.fromEntries(new URLSearchParams(match[2] ?? "")) : {};
  return { view, params };
}

/**
 * Write a route as a hash. Empty values are left out; commas, dots and slashes stay readable.
 * @param {string} view
 * @param {Record<string, unknown>} [params]
 * @returns {string}
 */
export function hashOf(view, params = {}) {
  const pairs = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = pairs.map(([name, value]) => `${encodeURIComponent(name)}=${readable(String(value))}`).join("&");
  return `#/${view}${query ? `?${query}` : ""}`;
}

function readable(text) {
  return encodeURIComponent(text).replaceAll("%2C", ",").replaceAll("%2F", "/").replaceAll("%3A", ":");
}

/**
 * Go to a view with exactly these parameters.
 * @param {string} view
 * @param {Record<string, unknown>} [params]
 * @param {{replace?: boolean}} [options] replace: no new entry in the history (for sliders, cursors, search fields)
 */
export function navigate(view, params = {}, { replace = false } = {}) {
  const hash = hashOf(view, params);
  if (hash !== address.read()) address.write(hash, replace);
}

/**
 * Change some parameters of the present view and keep the others; null, undefined or "" removes one.
 * @param {Record<string, unknown>} changes
 * @param {{replace?: boolean}} [options]
 */
export function change(changes, options) {
  const { view, params } = parseHash(address.read());
  navigate(view, { ...params, ...changes }, options);
}

/**
 * The present route; the component is drawn again when it changes.
 * @returns {Route}
 */
export function useRoute() {
  const [route, setRoute] = useState(() => parseHash(address.read()));
  useEffect(() => address.hear(() => setRoute(parseHash(address.read()))), []);
  return route;
}

/**
 * A whole number from a parameter, or the fallback where there is none.
 * @param {string | undefined} text
 * @param {number | null} [fallback]
 * @returns {number | null}
 */
export function wholeNumber(text, fallback = null) {
  return text !== undefined && /^-?\d+$/.test(text) ? Number(text) : fallback;
}

/**
 * Read addresses such as `L1.E3,L4.E0-2` as [["L1.E3", 1, 3], …]; what is no address is left out.
 * @param {string | undefined} text
 * @returns {{address: string, layer: number, expert: number}[]}
 */
export function parseAddresses(text) {
  const found = new Map();
  for (const part of (text ?? "").split(",")) {
    const match = /^\s*L(\d+)\.E(\d+)(?:-(\d+))?\s*$/i.exec(part);
    if (!match) continue;
    const [layer, first, last] = [Number(match[1]), Number(match[2]), Number(match[3] ?? match[2])];
    for (let expert = first; expert <= Math.min(last, first + 4095); expert += 1) {
      found.set(`L${layer}.E${expert}`, { address: `L${layer}.E${expert}`, layer, expert });
    }
  }
  return [...found.values()];
}

/**
 * Write addresses short: neighbours in one layer become a range, `L4.E0-2`.
 * @param {Iterable<string>} addresses
 * @returns {string}
 */
export function formatAddresses(addresses) {
  const sorted = parseAddresses([...addresses].join(",")).sort((a, b) => a.layer - b.layer || a.expert - b.expert);
  const runs = [];
  for (const { layer, expert } of sorted) {
    const run = runs.at(-1);
    if (run && run.layer === layer && run.last === expert - 1) run.last = expert;
    else runs.push({ layer, first: expert, last: expert });
  }
  return runs.map((run) => `L${run.layer}.E${run.first}${run.last > run.first ? `-${run.last}` : ""}`).join(",");
}
