// The tokens of both traces side by side, marked where they were routed differently; a list that draws what is seen.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { column, getTable, useLoaded } from "moeworks/data";
import { Button, Check, Failure, html, Loading } from "moeworks/parts";
import { useKeys } from "moeworks/keys";
import { change, hashOf, wholeNumber } from "moeworks/state";
import { VirtualList } from "moeworks/compare-list";

const BLOCK = 96; // tokens drawn together
const PAGE = 40 * BLOCK; // tokens fetched together

/** @param {{a: any, b: any, params: Record<string, string>, layers: number}} props */
export function ComparedTokens({ a, b, params, layers }) {
  const url = (/** @type {number} */ page) => `api/compare/${a.id}/${b.id}/tokens?start=${page * PAGE}&stop=${(page + 1) * PAGE}`;
  const first = useLoaded((signal) => getTable(url(0), { signal }), [a.id, b.id]);
  const pages = usePages(url, [a.id, b.id]);
  const list = useRef(/** @type {any} */ (null));
  const frame = useRef(/** @type {HTMLElement | null} */ (null));
  const arrived = useRef(params.row === undefined); // the address names no row to arrive at
  const [searching, setSearching] = useState(false);
  const [nothing, setNothing] = useState("");
  const total = first.value ? Number(first.value.schema.metadata.get("rows") ?? first.value.numRows) : 0;
  const chosen = wholeNumber(params.row);
  const onlyChanged = params.only === "changed";
  const whole = total <= PAGE ? pages.get(0) : null;
  const blocks = useMemo(() => blocksOf(total, onlyChanged && whole ? whole : null), [total, onlyChanged, whole]);

  useEffect(() => {
    if (chosen === null || !total) return;
    const place = blocks.findIndex((one) => one.start <= chosen && chosen < one.stop);
    if (place < 0) return;
    list.current?.reveal(place);
    if (!arrived.current) frame.current?.scrollIntoView({ block: "nearest" }); // a link leads to its token; keys leave the page
    arrived.current = true;
  }, [chosen, total, blocks]);

  /** Go to the next (1) or the previous (-1) token that was routed differently. */
  async function seek(/** @type {1 | -1} */ step) {
    setSearching(true);
    setNothing("");
    let row = chosen === null ? (step > 0 ? -1 : total) : chosen;
    for (;;) {
      row += step;
      if (row < 0 || row >= total) {
        setNothing(step > 0 ? "No token after this one was routed differently." : "No token before this one was routed differently.");
        break;
      }
      const page = await pages.load(Math.floor(row / PAGE));
      const at = row % PAGE;
      if (page.changed(at)) {
        change({ a: a.id, b: b.id, row }, { replace: true });
        break;
      }
    }
    setSearching(false);
  }
  useKeys([
    { keys: "n", what: "next token that was routed differently", run: () => seek(1) },
    { keys: "p", what: "previous token that was routed differently", run: () => seek(-1) },
  ]);
  if (first.error) return html`<${Failure} error=${first.error} again=${first.again} />`;
  if (!first.value) return html`<section class="compare-tokens"><${Loading} what="Reading the tokens" /></section>`;
  const page = chosen === null ? null : pages.get(Math.floor(chosen / PAGE));
  return html`
    <section class="compare-tokens" aria-label="Tokens of both" ref=${frame}>
      <div class="controls">
        <${Button} onClick=${() => seek(-1)} disabled=${searching} title="key p">← Previous change<//>
        <${Button} onClick=${() => seek(1)} disabled=${searching} title="key n">Next change →<//>
        ${total <= PAGE && html`<${Check} label="only lines with changes" checked=${onlyChanged} onChange=${(/** @type {boolean} */ on) => change({ only: on ? "changed" : "" }, { replace: true })} />`}
        <span class="quiet" role="status">${nothing}</span>
      </div>
      <p class="legend compare-legend">
        <span><mark class="flip flip-1">abc</mark> other experts in some layers</span>
        <span><mark class="flip flip-4">abc</mark> in most</span>
        <span><mark class="other">abc</mark> another token</span>
      <span><span class="beyond">abc</span> after the texts parted: routes not compared</span>
      </p>
      <div class="compare-heads" aria-hidden="true"><span>A: ${a.name}</span><span>B: ${b.name}</span></div>
      ${blocks.length === 0
        ? html`<p class="quiet">${onlyChanged ? "No token was routed differently." : "The two traces share no tokens."}</p>`
        : html`<${VirtualList} key=${String(onlyChanged)} handle=${list} count=${blocks.length} estimate=${64} label="Tokens of both traces"
            draw=${(/** @type {number} */ place) => html`<${Block} block=${blocks[place]} pages=${pages} layers=${layers} chosen=${chosen} pick=${(/** @type {number} */ row) => change({ a: a.id, b: b.id, row }, { replace: true })} />`} />`}
      ${page && chosen !== null && chosen % PAGE < page.rows && html`<${Picked} page=${page} at=${chosen % PAGE} a=${a} b=${b} />`}
    </section>
  `;
}

/** Blocks of neighbouring rows; with a page, only those in which something changed. */
function blocksOf(/** @type {number} */ total, /** @type {any} */ page) {
  const blocks = [];
  for (let start = 0; start < total; start += BLOCK) {
    const stop = Math.min(start + BLOCK, total);
    if (page) {
      let changed = false;
      for (let row = start; row < stop && !changed; row += 1) changed = page.changed(row);
      if (!changed) continue;
    }
    blocks.push({ start, stop });
  }
  return blocks;
}

/** One block of tokens: A's to the left, B's to the right. */
function Block({ block, pages, layers, chosen, pick }) {
  const number = Math.floor(block.start / PAGE);
  const page = pages.get(number);
  if (!page) {
    pages.load(number);
    return html`<div class="compare-block loading">row ${block.start.toLocaleString("en")} …</div>`;
  }
  const all = Array.from({ length: block.stop - block.start }, (_, i) => (block.start % PAGE) + i).filter((at) => at < page.rows);
  const side = (/** @type {number[]} */ rows, /** @type {"a" | "b"} */ which) => rows.map((at) => html`<${Token} key=${at} page=${page} at=${at} which=${which} layers=${layers} chosen=${chosen} offset=${number * PAGE} pick=${pick} />`);
  return byRequest(page, all).map(
    (rows) => html`<div class="compare-block" key=${rows[0]}>
      <p class="compare-side" dir="auto">${side(rows, "a")}</p>
      <p class="compare-side" dir="auto">${side(rows, "b")}</p>
    </div>`,
  );
}

/** Cut rows where one text ends and the next begins, so that both sides stand level. */
function byRequest(/** @type {any} */ page, /** @type {number[]} */ rows) {
  /** @type {number[][]} */
  const runs = [];
  for (const at of rows) {
    if (runs.length && page.request[at] === page.request[at - 1]) runs.at(-1)?.push(at);
    else runs.push([at]);
  }
  return runs;
}

/** One token of one side; a request's first token says so. */
function Token({ page, at, which, layers, chosen, offset, pick }) {
  const text = which === "a" ? page.textA[at] : page.textB[at];
  const starts = at === 0 || page.request[at] !== page.request[at - 1];
  const head = starts ? html`<span class="request-mark">text ${page.request[at]}</span>` : "";
  if (text === null || text === undefined) return head;
  const same = Boolean(page.same[at]);
  const flips = page.flips[at] ?? 0;
  const row = offset + at;
  const words = visible(text);
  const kind = !same ? "other" : flips > 0 ? `flip flip-${Math.min(4, Math.ceil((4 * flips) / layers))}` : "";
  if (!kind && chosen !== row) return html`${head}<span class=${page.comparable[at] && !/^<\|.*\|>$/.test(text) ? "" : "beyond"}>${words}</span>`;
  return html`${head}<mark class=${`${kind} ${chosen === row ? "chosen" : ""}`} tabindex="0" role="button" aria-label=${`${text.trim() || "space"}: ${same ? `other experts in ${flips} of ${layers} layers` : "another token"}`}
    onClick=${() => pick(row)} onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.key === "Enter" && pick(row)}>${words}</mark>`;
}

/** Show a line's end as a sign, so that a token of it can be seen. */
function visible(/** @type {string} */ text) {
  return text.includes("\n") ? text.replaceAll("\n", "⏎") : text;
}

/** What happened to the chosen token. */
function Picked({ page, at, a, b }) {
  const size = new Map(a.layers.map((/** @type {any} */ one) => [one.layer, one.top_k]));
  const flipped = page.comparable[at] ? page.layers.filter((/** @type {any} */ one) => one.overlap[at] < (size.get(one.layer) ?? 0)) : [];
  const row = { a: page.rowA[at], b: page.rowB[at] };
  return html`
    <aside class="compare-picked" aria-live="polite">
      <p>
        Text ${page.request[at]}, position ${page.position[at]}:
        ${page.same[at] ? html` <b dir="auto">${quoted(page.textA[at])}</b>` : html` <b dir="auto">${quoted(page.textA[at])}</b> in A, <b dir="auto">${quoted(page.textB[at])}</b> in B`}.
        ${flipped.length
          ? ` Other experts in ${flipped.length === 1 ? "layer" : "layers"} ${flipped.map((/** @type {any} */ one) => `${one.layer} (${one.overlap[at]} of ${size.get(one.layer)} in common)`).join(", ")}.`
          : page.comparable[at]
            ? page.same[at] ? " The same experts in all layers." : ""
            : " The texts were different before it, so that its routes cannot be compared."}
      </p>
      <p class="compare-links">
        ${row.a !== null && html`<a href=${hashOf("tokens", { trace: a.id, row: row.a })}>In Tokens: A</a>`}
        ${row.b !== null && html`<a href=${hashOf("tokens", { trace: b.id, row: row.b })}>In Tokens: B</a>`}
      </p>
    </aside>
  `;
}

/** @param {string | null} text */
function quoted(text) {
  return text === null || text === undefined ? "nothing" : `“${visible(text)}”`;
}

/** Pages of tokens as they are asked for; drawing happens again when one comes. */
function usePages(/** @type {(page: number) => string} */ url, /** @type {unknown[]} */ deps) {
  const [, redraw] = useState(0);
  return useMemo(() => {
    /** @type {Map<number, any>} */
    const here = new Map();
    /** @type {Map<number, Promise<any>>} */
    const coming = new Map();
    return {
      get: (/** @type {number} */ page) => {
        if (!here.has(page)) void load(page);
        return here.get(page);
      },
      load: (/** @type {number} */ page) => load(page),
    };
    function load(/** @type {number} */ page) {
      if (!coming.has(page)) {
        const promise = getTable(url(page)).then((table) => {
          const read = readPage(table);
          here.set(page, read);
          redraw((count) => count + 1);
          return read;
        });
        promise.catch(() => coming.delete(page));
        coming.set(page, promise);
      }
      return /** @type {Promise<any>} */ (coming.get(page));
    }
  }, deps);
}

/** @param {import("apache-arrow").Table} table */
function readPage(table) {
  const layers = table.schema.fields
    .map((field) => /^L(\d+)\.overlap$/.exec(field.name))
    .filter((match) => match !== null)
    .map((match) => ({ layer: Number(match[1]), overlap: column(table, match[0]) }));
  const [same, flips] = [values(table, "same"), values(table, "flips").map((/** @type {number | null} */ one) => one ?? 0)];
  return {
    rows: table.numRows,
    layers,
    rowA: values(table, "row_a"),
    rowB: values(table, "row_b"),
    request: column(table, "request"),
    position: column(table, "position"),
    textA: values(table, "text_a"),
    textB: values(table, "text_b"),
    same,
    flips,
    comparable: values(table, "same_context"),
    changed: (/** @type {number} */ at) => flips[at] > 0 || !same[at],
  };
}

/** A column whose values may be missing, as a list. */
function values(/** @type {import("apache-arrow").Table} */ table, /** @type {string} */ name) {
  const vector = table.getChild(name);
  if (!vector) throw new Error(`the server's table has no column ${name}.`);
  return Array.from(vector, (value) => (typeof value === "bigint" ? Number(value) : value));
}
