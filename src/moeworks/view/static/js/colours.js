// Colours that colour-blind readers can tell apart: Okabe–Ito for kinds, cividis, viridis and a two-sided scale for amounts.
// The more, the farther from the paper: in the light theme a one-sided scale runs from bright to dark, in the dark one
// from dark to bright. The first choice, "amount", is ColorBrewer's YlGnBu on light paper and viridis on dark.

import { useEffect, useState } from "preact/hooks";

/** Okabe–Ito without black: eight kinds. */
export const KINDS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c"];

const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const AMOUNT_LIGHT = ["#f6f6ea", "#e4f0cb", "#bde0bb", "#86cabc", "#4db0c1", "#2a8bb8", "#2a64a3", "#2a4189", "#0b1f5c"];
const TWO_SIDED = ["#0d4a70", "#2b7ab0", "#7fb3d9", "#cfe0ec", "#f2f1ee", "#f3d9c2", "#e6a56b", "#c8682a", "#7f3b08"];
const TWO_SIDED_DARK = ["#8fd0ff", "#4a9fd8", "#2b6a96", "#26404f", "#2a2d31", "#54402c", "#a0662c", "#dd8a3d", "#ffc07f"];

/** @typedef {"amount" | "cividis" | "viridis" | "two-sided"} ScaleName */

const tables = {};
const darkSystem = matchMedia("(prefers-color-scheme: dark)");

let themed = document.documentElement;

/**
 * Follow the theme of an element (its `data-theme`) in place of the page's own: that of a notebook's widget.
 * @param {HTMLElement} element
 */
export function themeOf(element) {
  themed = element;
}

/** @returns {boolean} whether the page is dark now */
export function isDark() {
  const chosen = themed.dataset.theme;
  return chosen ? chosen === "dark" : darkSystem.matches;
}

/**
 * Whether the page is dark; what draws with colours of a scale draws again when it changes.
 * @returns {boolean}
 */
export function useDark() {
  const [dark, setDark] = useState(isDark);
  useEffect(() => {
    const read = () => setDark(isDark());
    addEventListener("moeworks-theme", read);
    darkSystem.addEventListener("change", read);
    read();
    return () => {
      removeEventListener("moeworks-theme", read);
      darkSystem.removeEventListener("change", read);
    };
  }, []);
  return dark;
}

function stopsOf(name, dark) {
  if (name === "two-sided") return dark ? TWO_SIDED_DARK : TWO_SIDED;
  if (name === "amount") return dark ? VIRIDIS : AMOUNT_LIGHT;
  const stops = name === "viridis" ? VIRIDIS : CIVIDIS;
  return dark ? stops : [...stops].reverse();
}

function tableOf(name) {
  const dark = isDark();
  const key = `${name} ${dark}`;
  if (!tables[key]) {
    const stops = stopsOf(name, dark).map(rgb);
    tables[key] = Array.from({ length: 256 }, (_, i) => {
      const place = (i / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(place), stops.length - 2);
      return stops[low].map((value, c) => Math.round(value + (stops[low + 1][c] - value) * (place - low)));
    });
  }
  return tables[key];
}

/**
 * The three parts of a `#rrggbb` colour.
 * @param {string} hex
 * @returns {[number, number, number]}
 */
export function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/**
 * The colour of an amount between 0 and 1, as [red, green, blue].
 * @param {number} share what is outside is moved to the edge
 * @param {ScaleName} [name]
 * @returns {[number, number, number]}
 */
export function scaleRgb(share, name = "amount") {
  return tableOf(name ?? "amount")[Math.max(0, Math.min(255, Math.round(share * 255)))];
}

/**
 * The same as a CSS colour.
 * @param {number} share
 * @param {ScaleName} [name]
 * @returns {string}
 */
export function scaleColour(share, name) {
  return `rgb(${scaleRgb(share, name).join(" ")})`;
}

/**
 * A CSS gradient of a whole scale, for a legend.
 * @param {ScaleName} [name]
 * @returns {string}
 */
export function scaleGradient(name) {
  const stops = Array.from({ length: 9 }, (_, i) => scaleColour(i / 8, name));
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/**
 * The colour of kind number `index` (an expert, a label): eight hues, then the same lighter and darker.
 * A colour is never the only sign: the number stands beside it wherever it matters.
 * @param {number} index
 * @returns {string}
 */
export function kindColour(index) {
  const base = rgb(KINDS[index % KINDS.length]);
  const turn = Math.floor(index / KINDS.length) % 4;
  const [towards, share] = [[0, 0], [255, 0.38], [0, 0.36], [255, 0.62]][turn];
  return `rgb(${base.map((value) => Math.round(value + (towards - value) * share)).join(" ")})`;
}

/**
 * Black or white, whichever reads better on a colour.
 * @param {[number, number, number]} colour
 * @returns {"#000" | "#fff"}
 */
export function inkOn(colour) {
  const [r, g, b] = colour.map((value) => ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}
