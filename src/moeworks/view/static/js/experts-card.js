// An expert's card: how often it runs, for which labels, on which words, with whom, and what its output says.

import { getJson, useLoaded } from "moeworks/data";
import { Button, Command, Failure, formatNumber, formatShare, html, labelWords, Loading, Table } from "moeworks/parts";
import { change, hashOf } from "moeworks/state";
import { shown } from "moeworks/tokens-text";
import { tokenLink } from "moeworks/tokens-rows";

/**
 * @param {{trace: any, address: string, picked: boolean, onPick: () => void, by: {label: string, value: string}}} props
 */
export function ExpertCard({ trace, address, picked, onPick }) {
  const card = useLoaded((signal) => getJson(`api/traces/${encodeURIComponent(trace.id)}/experts/${encodeURIComponent(address)}`, { signal }), [trace.id, address]);
  const layer = Number(address.slice(1).split(".")[0]);
  return html`
    <header class="card-head">
      <h2 class="expert-name">${address}</h2>
      ${card.value?.protected && html`<span class="badge">protected</span>`}
      <span class="card-actions">
        <a class="as-button" href=${hashOf("tokens", { trace: trace.id, colour: "weight", expert: address, layer })}>In the text</a>
        <${Button} pressed=${picked} onClick=${onPick}>${picked ? "Chosen" : "Choose"}<//>
      </span>
    </header>
    ${card.error && html`<${Failure} error=${card.error} again=${card.again} />`}
    ${!card.error && (card.value?.address === address ? html`<${Facts} trace=${trace} card=${card.value} />` : html`<${Loading} />`)}
  `;
}

function Facts({ trace, card }) {
  return html`
    <p>Ran for <b>${formatShare(card.load)}</b> of the tokens${between(card)}; even use would be ${formatShare(card.chance)}.</p>
    <${Replicated} claim=${card.replicated} />
    ${Object.entries(card.labels ?? {}).map(([name, values]) => html`<${Labels} name=${name} values=${values} />`)}
    ${card.labels_left_out?.length > 0 && html`<p class="quiet">Not by ${card.labels_left_out.join(", ")}: one value, or too many to tell apart.</p>`}
    ${card.contexts?.length > 0 && html`<${Contexts} trace=${trace} card=${card} />`}
    ${card.partners?.length > 0 &&
    html`<h3>Runs together with</h3>
      <p class="chips">${card.partners.map((one) => html`<button type="button" class="chip" onClick=${() => change({ expert: one.address })}>${one.address} <span class="quiet" title=${`chance ${formatNumber(one.chance)}${between(one)}`}>× ${formatNumber(one.lift)}</span></button>`)}</p>`}
    <h3>Tokens it points to</h3>
    ${card.decoded?.length > 0
      ? card.decoded.map((one) => html`<p class="chips"><span class="quiet vector">${one.vector}</span>${one.tokens.map((token) => html`<span class="chip" dir="auto">${shown(String(token))}</span>`)}</p>`)
      : html`<p class="quiet">Not known: ${card.decoded_reason || "the model is not loaded"}.</p>`}
    <${ScoresOf} scores=${card.scores} />
    ${card.command && html`<${Command} command=${card.command} />`}
  `;
}

function Labels({ name, values }) {
  const known = values.filter((one) => one.rate !== null).sort((a, b) => b.rate - a.rate);
  const most = Math.max(...known.map((one) => one.high ?? one.rate), ...known.map((one) => one.chance ?? 0), 1e-9);
  return html`
    <h3>By ${name}</h3>
    <table class="rates">
      <caption class="unseen">Share of tokens for which it ran, by ${name}</caption>
      <thead class="unseen"><tr><th>${name}</th><th>range</th><th>share</th></tr></thead>
      <tbody>
        ${known.slice(0, 14).map(
          (one) => html`<tr>
            <th scope="row" dir="auto"><button type="button" class="plain" title=${`map the specialisation in ${labelWords(name, one.value)}`} onClick=${() => change({ by: "specialisation", label: name, value: one.value })}>${one.value}</button></th>
            <td class="rate-cell"><span class="rate" style=${{ "--rate": one.rate / most, "--low": Math.max(0, one.low ?? one.rate) / most, "--high": (one.high ?? one.rate) / most, "--chance": (one.chance ?? 0) / most }} title=${one.low === null || one.low === undefined ? "" : `95 % between ${formatShare(one.low)} and ${formatShare(one.high)}`}><i></i><b></b><em></em></span></td>
            <td class="numeric">${formatShare(one.rate)}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  `;
}

function Contexts({ trace, card }) {
  const { address } = card;
  const layer = Number(address.slice(1).split(".")[0]);
  return html`
    <h3>Fires on</h3>
    <ol class="contexts">
      ${card.contexts.map(
        (one) => html`<li>
          <a href=${tokenLink(trace.id, one.row, { request: one.request, colour: "weight", expert: address, layer })} title=${`row ${one.row} of request ${one.request}, weight ${formatNumber(one.weight)}`}>
            <bdi class="context" dir="auto"><span class="before"><bdi>${oneLine(one.before)}</bdi></span><mark>${shown(one.token) || `⟨${one.id}⟩`}</mark><span class="after">${oneLine(one.after)}</span></bdi>
          </a>
          <span class="quiet">${formatNumber(one.weight)}</span>
        </li>`,
      )}
    </ol>
  `;
}

function ScoresOf({ scores }) {
  const rows = Object.entries(scores ?? {}).map(([name, one]) => ({ name, ...one }));
  if (rows.length === 0) return null;
  const columns = [
    { name: "name", label: "scores", show: (row) => html`<span title=${row.method}>${row.name}</span>` },
    { name: "contrast", show: (row) => [row.contrast, row.against].filter(Boolean).join(" against ") },
    { name: "score", numeric: true },
    { name: "q", numeric: true, title: "false discovery rate" },
    { name: "passes", show: (row) => (row.passes === null ? "no test" : row.passes ? "yes" : "no") },
  ];
  return html`<h3>Scores</h3><${Table} columns=${columns} rows=${rows} />`;
}

function Replicated({ claim }) {
  if (!claim) return null;
  const stable = claim.stability === null ? "its stability was not measured" : `stability ${formatNumber(claim.stability)}`;
  return html`<p><span class=${`badge ${claim.survives ? "good" : ""}`}>${claim.survives ? "replicated" : "not replicated"}</span> Runs ${claim.direction} for ${claim.contrast}${claim.against ? ` than for ${claim.against}` : ""}: passes in ${claim.passing.length} of ${claim.of} scores files, ${stable}.</p>`;
}

function between({ low, high }) {
  return low === null || low === undefined || high === null || high === undefined ? "" : ` (95\u00a0% between ${formatNumber(low)} and ${formatNumber(high)})`;
}

function oneLine(text) {
  return shown(text ?? "").replaceAll("␣", " ").replaceAll("⇥", " ");
}
