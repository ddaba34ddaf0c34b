// Placeholder.
import { html } from "moeworks/parts";
export function View() { return html`<p>…</p>`; }
