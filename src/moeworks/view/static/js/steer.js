// The view Steer: choose experts and what is done to them, see both texts, what changed, and the evidence.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Command, Empty, html } from "moeworks/parts";
import { change, wholeNumber } from "moeworks/state";
import { ExpertChoice } from "moeworks/steer-experts";
import { EvidenceCard } from "moeworks/steer-evidence";
import { paramsOf, picksOf } from "moeworks/steer-picks";
import { PlanCard, usePlan } from "moeworks/steer-plan";
import { PromptCard } from "moeworks/steer-prompt";
import { RoutesCard } from "moeworks/steer-routes";
import { textsKey, TextsCard, useTexts } from "moeworks/steer-texts";

const TYPED = "moeworks-steer-typed"; // the text that is being typed, with the prompt it began from

/** @param {{route: import("moeworks/state").Route, sources: any}} props */
export function View({ route, sources }) {
  if (!sources.can.generate || !sources.model) {
    return html`<${Empty} title="Steering needs a model" command="moeworks view lab">
      <p>This page shows stored files only. Start it with a model – a local folder, a Hub id, or <code>lab</code>, the small one that comes with moeworks – and its experts can be turned up and down here while it writes.</p>
    <//>`;
  }
  return html`<${Steering} params=${route.params} sources=${sources} />`;
}

/** Everything about one plan and one prompt. */
function Steering({ params, sources }) {
  const { picks, problems } = useMemo(() => picksOf(params), [params]);
  const strength = numberOf(params.strength, 1);
  const factor = numberOf(params.factor, 0);
  const plan = usePlan({ picks, strength, factor, name: params.plan ?? "", loaded: params.loaded ?? "", problems });
  const prompt = params.prompt ?? "";
  const tokens = Math.min(Math.max(wholeNumber(params.tokens, 40) ?? 40, 1), 2000);
  const chat = params.chat === "1";
  const texts = useTexts();
  const settled = !plan.loading && (plan.hash !== "" || (!params.plan && Object.keys(picks).length === 0));
  const key = settled ? textsKey({ prompt, tokens, chat, hash: plan.hash }) : (texts.shown?.key ?? "");
  const [typed, type] = useTyped(prompt);
  const generate = () => {
    change({ prompt: typed, a: null, b: null });
    texts.start({ prompt: typed, tokens, chat, plan: plan.plan, hash: plan.hash });
  };
  const choose = (/** @type {Record<string, string[]>} */ next) => change({ ...paramsOf(next), plan: null }, { replace: true });
  return html`
    <div class="steer">
      <div class="steer-side">
        <${ExpertChoice} picks=${picks} choose=${choose} strength=${strength} factor=${factor} params=${params} sources=${sources} plan=${plan} />
        <${PlanCard} plan=${plan} name=${params.plan ?? ""} params=${params} sources=${sources} choose=${choose} />
      </div>
      <div class="steer-main">
        <${PromptCard} typed=${typed} type=${type} tokens=${tokens} chat=${chat} params=${params} sources=${sources} generate=${generate} texts=${texts} plan=${plan} />
        <${TextsCard} texts=${texts} now=${key} />
        <${RoutesCard} texts=${texts} now=${key} plan=${plan} params=${params} />
        <${EvidenceCard} plan=${plan} settled=${settled} params=${params} sources=${sources} />
        ${texts.shown && plan.plan && html`<${Command} command=${generateCommand(sources.model.name, { prompt, tokens, chat })} label="With the downloaded plan, from the command line" />`}
      </div>
    </div>
  `;
}

/** What is being typed: kept for this tab until the page's address names another prompt. */
function useTyped(/** @type {string} */ prompt) {
  const [typed, setTyped] = useState(() => readTyped(prompt));
  const seen = useRef(prompt);
  useEffect(() => {
    if (seen.current !== prompt && prompt) setTyped(readTyped(prompt));
    seen.current = prompt;
  }, [prompt]);
  const type = (/** @type {string} */ text) => {
    setTyped(text);
    sessionStorage.setItem(TYPED, JSON.stringify([seen.current, text]));
  };
  return /** @type {const} */ ([typed, type]);
}

/** @param {string} prompt @returns {string} */
function readTyped(prompt) {
  try {
    const [of, text] = JSON.parse(sessionStorage.getItem(TYPED) ?? "[]");
    return of === prompt && typeof text === "string" ? text : prompt;
  } catch {
    return prompt;
  }
}

/** @param {string} model @param {{prompt: string, tokens: number, chat: boolean}} what */
function generateCommand(model, { prompt, tokens, chat }) {
  const quoted = `'${prompt.replaceAll("'", "'\\''")}'`;
  return `moeworks generate ${model} ${quoted} --plan plan.json --compare --max-new-tokens ${tokens}${chat ? " --chat" : ""}`;
}

/** @param {string | undefined} text @param {number} otherwise */
function numberOf(text, otherwise) {
  const number = text === undefined || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(number) ? number : otherwise;
}
