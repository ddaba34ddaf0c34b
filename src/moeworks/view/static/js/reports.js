// The view Reports: studies and league tables that the page was opened on.

import { Empty, html } from "moeworks/parts";
import { hashOf } from "moeworks/state";
import { LeaguePage } from "moeworks/reports-league";
import { Study } from "moeworks/reports-study";

/** @param {{route: import("moeworks/state").Route, sources: any}} props */
export function View({ route, sources }) {
  const { params } = route;
  const { studies, league } = sources;
  if (!studies.length && !league.length) {
    return html`<${Empty} title="No study and no league here" command="moeworks study lab -o study && moeworks view lab study">
      <p>This view shows studies – a model looked at with many probes, with verdicts – and league tables of methods. Make a study, or open the page on the folder of one, or on a <code>league.json</code>.</p>
    <//>`;
  }
  const study = studies.find((/** @type {any} */ one) => one.id === params.study);
  const table = study ? null : league.find((/** @type {any} */ one) => one.id === params.league);
  const shown = study ?? table ?? studies[0] ?? league[0];
  const isStudy = studies.includes(shown);
  const list = (/** @type {string} */ kind, /** @type {any[]} */ all) =>
    all.map((one) => html`<a key=${one.id} href=${hashOf("reports", { [kind]: one.id })} aria-current=${one === shown ? "true" : undefined}>${one.name}</a>`);
  return html`
    <div class="reports">
      <nav class="reports-list" aria-label="Studies and leagues">
        ${studies.length > 0 && html`<h2>Studies</h2>${list("study", studies)}`}
        ${league.length > 0 && html`<h2>League</h2>${list("league", league)}`}
      </nav>
      <div class="reports-main">
        ${isStudy ? html`<${Study} key=${shown.id} study=${shown} sources=${sources} params=${params} />` : html`<${LeaguePage} key=${shown.id} league=${shown} sources=${sources} params=${params} />`}
      </div>
    </div>
  `;
}
