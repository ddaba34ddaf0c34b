// Markup in JavaScript without a build step; everything from data is escaped by Preact.

import htm from "htm";
import { h } from "preact";

/** A template literal's tag that makes elements: `html\`<p class=${name}>${text}</p>\``. */
export const html = htm.bind(h);
