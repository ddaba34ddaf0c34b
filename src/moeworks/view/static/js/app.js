// The page: navigation, theme, keys, banner, and the view that the address names.

import { Component, render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { isExport, onConnection, takeKey, useSources } from "moeworks/data";
import { hearKeys, listKeys, useKeys } from "moeworks/keys";
import { Failure, html, Loading } from "moeworks/parts";
import { hashOf, navigate, useRoute, VIEWS } from "moeworks/state";

const TITLES = { tokens: "Tokens", experts: "Experts", layers: "Layers", compare: "Compare", steer: "Steer", reports: "Reports" };
const THEMES = { "": "system", light: "light", dark: "dark" };
const loaders = {
  tokens: () => import("moeworks/tokens"),
  experts: () => import("moeworks/experts"),
  layers: () => import("moeworks/layers"),
  compare: () => import("moeworks/compare"),
  steer: () => import("moeworks/steer"),
  reports: () => import("moeworks/reports"),
};

/** Keeps one view's fault from taking the page down. */
class Guard extends Component {
  state = { error: null };

  static getDerivedStateFromError(error) {
    return { error };
  }

  componentDidCatch(error) {
    console.error(error);
  }

  render({ children }, { error }) {
    if (!error) return children;
    return html`<${Failure} error=${`This view failed: ${error.message}. The other views still work.`} again=${() => this.setState({ error: null })} />`;
  }
}

function Page() {
  const route = useRoute();
  const sources = useSources();
  const [lost, setLost] = useState(false);
  const [overlay, setOverlay] = useState(false);
  const [theme, setTheme] = useTheme();
  const shared = route.params.trace ? { trace: route.params.trace } : {};
  useEffect(() => onConnection(setLost), []);
  useEffect(() => {
    document.title = `${TITLES[route.view]} – moeworks`;
  }, [route.view]);
  const go = (view) => navigate(view, shared);
  useKeys([
    ...VIEWS.map((view, i) => ({ keys: String(i + 1), what: `go to ${TITLES[view]}`, run: () => go(view) })),
    { keys: "?", what: "show these keys", run: () => setOverlay(true) },
  ]);
  const nextTheme = Object.keys(THEMES)[(Object.keys(THEMES).indexOf(theme) + 1) % 3];
  return html`
    <a class="skip" href="#content" onClick=${skipToContent}>Skip to the view</a>
    <header class="top">
      <a class="brand" href=${hashOf("experts")}>moeworks</a>
      <nav aria-label="Views">
        ${VIEWS.map(
          (view) => html`<a href=${hashOf(view, shared)} aria-current=${view === route.view ? "page" : undefined}>${TITLES[view]}</a>`,
        )}
      </nav>
      <span class="top-end">
        ${sources.value?.model && html`<span class="model" title=${`${sources.value.model.family}, ${sources.value.model.dtype}`}>${sources.value.model.name}</span>`}
        <button type="button" class="plain" onClick=${() => setTheme(nextTheme)} title="Change between light, dark and the system's choice">${"◐ "}<span class="wide">${THEMES[theme]}</span><span class="unseen"> theme</span></button>
        <button type="button" class="plain" onClick=${() => setOverlay(true)} aria-label="Keys">?</button>
      </span>
    </header>
    ${lost && html`<div class="banner" role="alert">Connection lost – trying again. Nothing of what you chose is lost.</div>`}
    <main id="content" tabindex="-1">
      <${Body} route=${route} sources=${sources} />
    </main>
    ${overlay && html`<${KeysOverlay} onClose=${() => setOverlay(false)} />`}
  `;
}

function skipToContent(event) {
  event.preventDefault();
  document.getElementById("content").focus();
}

function Body({ route, sources }) {
  if (sources.error) return html`<${Failure} error=${sources.error} again=${sources.again} />`;
  if (!sources.value) return html`<${Loading} what="Reading what there is to see" />`;
  return html`<${Guard} key=${route.view}><${LoadedView} route=${route} sources=${sources.value} /><//>`;
}

function LoadedView({ route, sources }) {
  const [loaded, setLoaded] = useState({ view: "", View: null, error: null });
  useEffect(() => {
    let gone = false;
    loaders[route.view]().then(
      (module) => !gone && setLoaded({ view: route.view, View: module.View, error: null }),
      (error) => !gone && setLoaded({ view: route.view, View: null, error }),
    );
    return () => {
      gone = true;
    };
  }, [route.view]);
  if (loaded.error) return html`<${Failure} error=${`The view ${TITLES[route.view]} could not be loaded: ${loaded.error.message}`} />`;
  if (!loaded.View || loaded.view !== route.view) return html`<${Loading} />`;
  return html`<h1 class="unseen">${TITLES[route.view]}</h1><${loaded.View} route=${route} sources=${sources} />`;
}

function KeysOverlay({ onClose }) {
  const show = (dialog) => dialog && !dialog.open && dialog.showModal();
  const rows = listKeys();
  return html`
    <dialog class="keys" ref=${show} onClose=${onClose} aria-label="Keys">
      <form method="dialog"><h2>Keys</h2><button>Close</button></form>
      <dl>${rows.map((key) => html`<div><dt>${key.keys.split(" ").map((name) => html`<kbd>${name.replace("Arrow", "")}</kbd>`)}</dt><dd>${key.what}</dd></div>`)}</dl>
    </dialog>
  `;
}

function useTheme() {
  const [theme, setTheme] = useState(() => remembered());
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    try {
      localStorage.setItem("moeworks-theme", theme);
    } catch {
      // A page opened from disk may have no storage; the choice then lasts as long as the page.
    }
    dispatchEvent(new Event("moeworks-theme"));
  }, [theme]);
  return [theme, setTheme];
}

function remembered() {
  try {
    const theme = localStorage.getItem("moeworks-theme") ?? "";
    return theme in THEMES ? theme : "";
  } catch {
    return "";
  }
}

if (!isExport()) takeKey();
hearKeys();
const root = document.getElementById("app");
root.replaceChildren();
render(html`<${Page} />`, root);
