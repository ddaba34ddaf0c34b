// A league: its page of texts and tables, the tables sorting by any column.

import { getJson, useLoaded } from "moeworks/data";
import { Command, Failure, html, Loading, Table } from "moeworks/parts";

/** @param {{league: {id: string, name: string}}} props */
export function LeaguePage({ league }) {
  const loaded = useLoaded((signal) => getJson(`api/league/${league.id}`, { signal }), [league.id]);
  if (loaded.error) return html`<${Failure} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value) return html`<${Loading} what="Reading the league" />`;
  const { blocks, command, moeworks } = loaded.value;
  return html`
    <article class="league" aria-label=${league.name}>
      ${blocks.map((/** @type {any} */ block, /** @type {number} */ place) => html`<${Block} key=${place} block=${block} title=${titleBefore(blocks, place)} />`)}
      <p class="quiet">Made with moeworks ${moeworks}.</p>
    </article>
    <${Command} command=${command} />
  `;
}

/** One piece of the page. */
function Block({ block, title }) {
  if (block.kind === "heading") return block.level <= 2 ? html`<h2>${words(block.text)}</h2>` : html`<h3>${words(block.text)}</h3>`;
  if (block.kind === "text") return html`<p>${words(block.text)}</p>`;
  if (block.kind === "list") return html`<ul>${block.items.map((/** @type {string} */ one, /** @type {number} */ i) => html`<li key=${i}>${words(one)}</li>`)}</ul>`;
  if (block.kind !== "table") return null;
  const rows = block.rows.map((/** @type {string[]} */ cells) => Object.fromEntries(cells.map((cell, i) => [`c${i}`, cell])));
  const columns = block.columns.map((/** @type {string} */ name, /** @type {number} */ i) => {
    const numeric = rows.some((/** @type {any} */ row) => leading(row[`c${i}`]) !== null) && rows.every((/** @type {any} */ row) => leading(row[`c${i}`]) !== null || isEmpty(row[`c${i}`]));
    const key = (/** @type {any} */ row) => (numeric ? leading(row[`c${i}`]) : (row[`c${i}`] ?? null));
    return { name: `c${i}`, label: words(name), numeric, key, show: (/** @type {any} */ row) => words(row[`c${i}`] ?? "–") };
  });
  return html`<${Table} caption=${title} rows=${rows} columns=${columns} first=${100} />`;
}

/** The heading that a table stands under, and of several under one which it is. */
function titleBefore(/** @type {any[]} */ blocks, /** @type {number} */ place) {
  let number = 1;
  for (let i = place - 1; i >= 0; i -= 1) {
    if (blocks[i].kind === "table") number += 1;
    if (blocks[i].kind === "heading") return `${blocks[i].text.replaceAll("`", "")}${number > 1 ? `, table ${number}` : ""}`;
  }
  return `table ${number}`;
}

/** @param {string | undefined} text @returns {number | null} the number that a cell begins with */
function leading(text) {
  const match = /^[-+−]?\d[\d,]*(?:\.\d+)?/.exec((text ?? "").replace(/^\*+/, ""));
  return match ? Number(match[0].replaceAll(",", "").replace("−", "-")) : null;
}

/** @param {string | undefined} text */
function isEmpty(text) {
  return !text || /^[–—-]$/.test(text) || !/\d/.test(text);
}

/** Texts with code between backticks, emphasis and links, as elements: nothing of a text becomes markup by itself. */
function words(/** @type {string} */ text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\))/).map((part) => {
    if (/^`.+`$/.test(part)) return html`<code>${part.slice(1, -1)}</code>`;
    if (/^\*\*.+\*\*$/.test(part)) return html`<b>${part.slice(2, -2)}</b>`;
    const link = /^\[([^\]]+)\]\(([^)]+)\)$/.exec(part);
    if (!link) return part;
    return /^https?:\/\//.test(link[2]) ? html`<a href=${link[2]} target="_blank" rel="noopener noreferrer">${link[1]}</a>` : link[1];
  });
}
