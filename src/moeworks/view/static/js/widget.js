// The text and the map of experts as a widget of a notebook: the page's own views, fed by the kernel in place of a server.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { themeOf } from "moeworks/colours";
import { answersFrom, Refusal, useSources } from "moeworks/data";
import { View as Experts } from "moeworks/experts";
import { hearKeys } from "moeworks/keys";
import { Failure, html, Loading } from "moeworks/parts";
import { change, formatAddresses, hashOf, keepAddress, navigate, parseAddresses, parseHash, useRoute } from "moeworks/state";
import { View as Tokens } from "moeworks/tokens";

const VIEWS = { tokens: { title: "Text", View: Tokens }, experts: { title: "Experts", View: Experts } };
const PATIENCE = 4000; // ms without an answer after which the kernel is said to be busy

/**
 * What a notebook gives a widget (the part of anywidget's model that is used here).
 * @typedef {{get: (name: string) => any, set: (name: string, value: any) => void, save_changes: () => void,
 *   on: (event: string, listener: Function) => void, off: (event: string, listener: Function) => void,
 *   send: (content: any) => void}} Model
 */

/**
 * Draw the widget into an element.
 * @param {{model: Model, el: HTMLElement, style: string}} place style: the page's styles, for inside the widget only
 * @returns {() => void} ends it
 */
export function mount({ model, el, style }) {
  const host = document.createElement("div");
  host.className = "moeworks-widget";
  host.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys stay out of it
  const inside = host.attachShadow({ mode: "open" });
  const sheet = document.createElement("style");
  sheet.textContent = style;
  const root = document.createElement("div");
  root.className = "widget";
  inside.append(sheet, root);
  el.append(host);
  const leave = [followTheme(host), takeAnswers(model), takeAddress(model), followHeight(model, root)];
  inside.addEventListener("click", stayInside);
  hearKeys(inside);
  // The notebook around would hear them too, and take a letter for one of its commands.
  host.addEventListener("keydown", (event) => event.stopPropagation());
  render(html`<${Widget} name=${model.get("_name")} />`, root);
  return () => {
    render(null, root);
    for (const stop of leave) stop();
    host.remove();
  };
}

function Widget({ name }) {
  const route = useRoute();
  const sources = useSources();
  const slow = useSlow(!sources.value && !sources.error);
  const shown = route.view in VIEWS ? route.view : "tokens";
  const { View } = VIEWS[shown];
  return html`
    <nav class="widget-nav" aria-label="Views">
      ${Object.entries(VIEWS).map(([view, { title }]) => html`<a href=${hashOf(view, kept(route.params))} aria-current=${view === shown ? "page" : undefined}>${title}</a>`)}
      <span class="quiet">${name}</span>
    </nav>
    ${sources.error && html`<${Failure} error=${sources.error} again=${sources.again} />`}
    ${!sources.value && !sources.error && html`<${Loading} what="Reading the trace" />`}
    ${slow && html`<p class="quiet" role="status">The kernel does not answer: it is busy, or it was restarted; then run the cell again.</p>`}
    ${sources.value && html`<div class="widget-view"><${View} key=${shown} route=${route} sources=${sources.value} /></div>`}
  `;
}

function kept({ trace, picked }) {
  return { trace, picked };
}

function useSlow(waiting) {
  const [slow, setSlow] = useState(false);
  useEffect(() => {
    setSlow(false);
    const timer = waiting ? setTimeout(() => setSlow(true), PATIENCE) : 0;
    return () => clearTimeout(timer);
  }, [waiting]);
  return slow;
}

// Questions go to the kernel as messages, the answers come back with their bytes beside them.
function takeAnswers(model) {
  const self = `${Date.now()}-${Math.random()}`; // a widget shown twice has one model: each takes its own answers
  const open = new Map();
  let count = 0;
  const hear = (content, buffers) => {
    const waiting = open.get(content?.id);
    if (!waiting) return;
    open.delete(content.id);
    const view = buffers?.[0];
    if (content.status !== 200 || !view) waiting.reject(new Refusal(content.message ?? "The kernel gave no answer.", content.status ?? 0));
    else waiting.resolve(new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength).slice());
  };
  model.on("msg:custom", hear);
  answersFrom((url, signal) => {
    const id = `${self} ${(count += 1)}`;
    return new Promise((resolve, reject) => {
      open.set(id, { resolve, reject });
      signal?.addEventListener("abort", () => {
        open.delete(id);
        reject(new DOMException("no longer needed", "AbortError"));
      });
      model.send({ id, url });
    });
  });
  return () => model.off("msg:custom", hear);
}

// The state of the page is the widget's `_route`; what Python reads of it, `selected` and `row`, goes with it.
function takeAddress(model) {
  const listeners = new Set();
  const told = () => {
    for (const listener of [...listeners]) listener();
  };
  const write = (hash) => {
    const { params } = parseHash(hash);
    model.set("_route", hash);
    if (formatAddresses(model.get("selected")) !== (params.picked ?? "")) model.set("selected", parseAddresses(params.picked).map((one) => one.address));
    if (model.get("row") !== Number(params.row ?? -1)) model.set("row", Number(params.row ?? -1));
    model.save_changes();
  };
  keepAddress({
    read: () => model.get("_route"),
    write,
    hear(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  });
  const adopt = () => {
    const { params } = parseHash(model.get("_route"));
    const [picked, row] = [formatAddresses(model.get("selected")), model.get("row")];
    if (picked !== (params.picked ?? "") || row !== Number(params.row ?? -1)) change({ picked, row: row < 0 ? null : row }, { replace: true });
  };
  const events = { "change:_route": told, "change:selected": adopt, "change:row": adopt };
  for (const [event, listener] of Object.entries(events)) model.on(event, listener);
  adopt();
  return () => {
    for (const [event, listener] of Object.entries(events)) model.off(event, listener);
  };
}

// A link that leads within the page leads within the widget.
function stayInside(event) {
  const link = event.target instanceof Element ? event.target.closest('a[href^="#"]') : null;
  if (!link || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const { view, params } = parseHash(link.getAttribute("href"));
  navigate(view in VIEWS ? view : "tokens", params);
}

function followHeight(model, root) {
  const set = () => root.style.setProperty("--height", `${model.get("height")}px`);
  model.on("change:height", set);
  set();
  return () => model.off("change:height", set);
}

// Notebooks name their themes differently; all of them paint a background.
function followTheme(host) {
  const read = () => {
    const paper = paperOf(host);
    const theme = paper === null ? "" : paper < 0.4 ? "dark" : "light";
    if (host.dataset.theme === theme) return;
    if (theme) host.dataset.theme = theme;
    else delete host.dataset.theme;
    dispatchEvent(new Event("moeworks-theme"));
  };
  const later = () => requestAnimationFrame(read);
  const observer = new MutationObserver(later);
  for (const element of [document.documentElement, document.body]) observer.observe(element, { attributes: true });
  read();
  themeOf(host);
  return () => observer.disconnect();
}

function paperOf(host) {
  for (let element = host.parentElement; element; element = element.parentElement) {
    const [r, g, b, alpha = 1] = (getComputedStyle(element).backgroundColor.match(/[\d.]+/g) ?? []).map(Number);
    if (b !== undefined && alpha > 0.5) return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
  }
  return null;
}
