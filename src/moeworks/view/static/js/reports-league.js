// A league: tables of methods that sort, with what could not be run and why.

import { getJson, useLoaded } from "moeworks/data";
import { Command, Failure, formatNumber, html, Loading, Table } from "moeworks/parts";

/** @param {{league: {id: string, name: string}, sources: any, params: Record<string, string>}} props */
export function LeaguePage({ league }) {
  const loaded = useLoaded((signal) => getJson(`api/league/${league.id}`, { signal }), [league.id]);
  if (loaded.error) return html`<${Failure} error=${loaded.error} again=${loaded.again} />`;
  if (!loaded.value) return html`<${Loading} what="Reading the league" />`;
  const found = loaded.value;
  return html`
    <header><h2>${league.name}</h2></header>
    ${(found.tables ?? []).map((/** @type {any} */ one) => html`<${OneTable} key=${one.name} table=${one} />`)}
    ${found.command && html`<${Command} command=${found.command} />`}
  `;
}

/** @param {{table: any}} props */
function OneTable({ table }) {
  return html`<${Table} caption=${table.title ?? table.name} rows=${table.rows} first=${100}
    columns=${table.columns.map((/** @type {string} */ name) => ({ name, label: name.replaceAll("_", " "), numeric: table.rows.some((/** @type {any} */ row) => typeof row[name] === "number"), show: (/** @type {any} */ row) => (typeof row[name] === "number" ? formatNumber(row[name]) : String(row[name] ?? "–")) }))} />`;
}
