// What is drawn on a chart's canvas: lines, points, intervals as whiskers or bands, chance levels dashed.

import { KINDS } from "moeworks/colours";

const PALETTE = [0, 5, 2, 3, 4, 1].map((kind) => KINDS[kind]); // without yellow and grey: thin lines of them vanish
const DASHES = [[], [6, 4], [2, 3], [9, 3, 2, 3]];
const BANDS_FROM = 25; // values along the axis from which intervals are bands, since whiskers would run together
const DODGE = 5; // pixels between the whiskers of two lines at the same place
export const FEW = 6; // lines; of more, shifted points would seem to lie between layers, and chance levels would be a thicket

/**
 * Return the colour and dash of a line: six colours, then the same dashed.
 * @param {number} index
 * @returns {{colour: string, dash: number[]}}
 */
export function lookOf(index) {
  return { colour: PALETTE[index % PALETTE.length], dash: DASHES[Math.floor(index / PALETTE.length) % DASHES.length] };
}

/**
 * Return the colours that a chart takes from the page's theme.
 * @param {Element} element
 */
export function readColours(element) {
  const style = getComputedStyle(element);
  const read = (/** @type {string} */ name, /** @type {string} */ otherwise) => style.getPropertyValue(name).trim() || otherwise;
  return {
    ink: read("--ink-2", "#595e66"),
    grid: read("--line", "#dcdcd6"),
    paper: read("--surface", "#ffffff"),
  };
}

/**
 * Draw all lines; the one that is read stands out and the others step back.
 * @param {any} u the uPlot instance
 * @param {{lines: any[], at: {line: number, place: number} | null, xs: number[]}} state
 * @param {{ink: string, paper: string}} colours
 */
export function drawMarks(u, { lines, at, xs }, colours) {
  const { ctx } = u;
  const ratio = window.devicePixelRatio || 1;
  const shown = lines.filter((line) => !line.hidden);
  const bands = xs.length >= BANDS_FROM;
  const room = xs.length > 1 ? Math.abs(u.valToPos(xs[1], "x", true) - u.valToPos(xs[0], "x", true)) : 200;
  const step = bands || shown.length > FEW ? 0 : Math.min(DODGE * ratio, (room * 0.3) / Math.max(shown.length, 1));
  ctx.save();
  ctx.beginPath();
  const edge = 6 * ratio; // so that points on the axis stay whole
  ctx.rect(u.bbox.left - edge, u.bbox.top - edge, u.bbox.width + 2 * edge, u.bbox.height + 2 * edge);
  ctx.clip();
  ctx.lineJoin = "round";
  chanceLevels(u, shown, colours, ratio, at === null ? null : lines[at.line]);
  shown.forEach((line, order) => {
    const shift = (order - (shown.length - 1) / 2) * step;
    const chosen = at !== null && lines[at.line] === line;
    ctx.globalAlpha = at === null || chosen ? 1 : 0.3;
    drawLine(u, line, { shift, bands, ratio, chosen, colours });
  });
  const read = at && lines[at.line]?.points[at.place];
  if (read) {
    const order = shown.indexOf(lines[at.line]);
    const x = u.valToPos(read.x, "x", true) + (order - (shown.length - 1) / 2) * step;
    ctx.globalAlpha = 1;
    circle(ctx, x, u.valToPos(read.y, "y", true), 6 * ratio, colours.paper, lines[at.line].colour, 2.5 * ratio);
  }
  ctx.restore();
}

/** @param {any} u @param {any} line @param {any} how */
function drawLine(u, line, { shift, bands, ratio, chosen, colours }) {
  const { ctx } = u;
  const places = line.points.map((/** @type {any} */ p) => ({
    x: u.valToPos(p.x, "x", true) + shift,
    y: u.valToPos(p.y, "y", true),
    low: p.low === undefined ? undefined : u.valToPos(p.low, "y", true),
    high: p.high === undefined ? undefined : u.valToPos(p.high, "y", true),
  }));
  ctx.strokeStyle = line.colour;
  ctx.fillStyle = line.colour;
  const ranged = places.filter((/** @type {any} */ p) => p.low !== undefined && p.high !== undefined);
  if (bands && ranged.length > 1) {
    const alpha = ctx.globalAlpha;
    ctx.globalAlpha = alpha * 0.16;
    ctx.beginPath();
    ranged.forEach((/** @type {any} */ p, /** @type {number} */ i) => (i ? ctx.lineTo(p.x, p.high) : ctx.moveTo(p.x, p.high)));
    for (const p of [...ranged].reverse()) ctx.lineTo(p.x, p.low);
    ctx.fill();
    ctx.globalAlpha = alpha;
  } else {
    ctx.lineWidth = 1.25 * ratio;
    ctx.beginPath();
    for (const p of ranged) {
      ctx.moveTo(p.x, p.low);
      ctx.lineTo(p.x, p.high);
      for (const end of [p.low, p.high]) {
        ctx.moveTo(p.x - 3 * ratio, end);
        ctx.lineTo(p.x + 3 * ratio, end);
      }
    }
    ctx.stroke();
  }
  ctx.setLineDash(line.dash.map((/** @type {number} */ part) => part * ratio));
  ctx.lineWidth = (chosen ? 2.75 : 1.75) * ratio;
  ctx.beginPath();
  places.forEach((/** @type {any} */ p, /** @type {number} */ i) => (i ? ctx.lineTo(p.x, p.y) : ctx.moveTo(p.x, p.y)));
  ctx.stroke();
  ctx.setLineDash([]);
  if (!bands) for (const p of places) circle(ctx, p.x, p.y, 3 * ratio, line.colour, colours.paper, 1 * ratio);
}

/**
 * Draw the levels by chance: one grey line where all lines agree, else each in its line's colour; of many lines a grey band
 * from the lowest to the highest, and the level of the line that is read.
 */
function chanceLevels(/** @type {any} */ u, /** @type {any[]} */ lines, /** @type {any} */ colours, /** @type {number} */ ratio, /** @type {any} */ chosen) {
  const { ctx } = u;
  const levels = lines[0]?.points[0]?.chance.length ?? 0;
  ctx.lineWidth = 1.25 * ratio;
  for (let level = 0; level < levels; level += 1) {
    const texts = lines.map((line) => JSON.stringify(line.points.map((/** @type {any} */ p) => [p.x, p.chance[level]])));
    const alike = new Set(texts).size === 1;
    const thicket = !alike && lines.length > FEW;
    if (thicket) chanceBand(u, lines, level, colours);
    ctx.setLineDash(level ? [1.5 * ratio, 4 * ratio] : [5 * ratio, 4 * ratio]);
    for (const line of alike ? lines.slice(0, 1) : thicket ? lines.filter((one) => one === chosen) : lines) {
      const points = line.points.filter((/** @type {any} */ p) => Number.isFinite(p.chance[level]));
      if (!points.length) continue;
      ctx.globalAlpha = alike || line === chosen ? 0.9 : chosen ? 0.25 : 0.85;
      ctx.strokeStyle = alike ? colours.ink : line.colour;
      ctx.beginPath();
      const half = points.length === 1 ? 60 * ratio : 0;
      points.forEach((/** @type {any} */ p, /** @type {number} */ i) => {
        const [x, y] = [u.valToPos(p.x, "x", true), u.valToPos(p.chance[level], "y", true)];
        if (i) ctx.lineTo(x, y);
        else ctx.moveTo(x - half, y);
        if (half) ctx.lineTo(x + half, y);
      });
      ctx.stroke();
    }
  }
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
}

/** Fill between the lowest and the highest level of all lines. */
function chanceBand(/** @type {any} */ u, /** @type {any[]} */ lines, /** @type {number} */ level, /** @type {any} */ colours) {
  /** @type {Map<number, [number, number]>} */
  const range = new Map();
  for (const point of lines.flatMap((line) => line.points)) {
    const value = point.chance[level];
    if (!Number.isFinite(value)) continue;
    const [low, high] = range.get(point.x) ?? [value, value];
    range.set(point.x, [Math.min(low, value), Math.max(high, value)]);
  }
  const places = [...range].sort((a, b) => a[0] - b[0]);
  u.ctx.globalAlpha = 0.18;
  u.ctx.fillStyle = colours.ink;
  u.ctx.beginPath();
  for (const [x, [, high]] of places) u.ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(high, "y", true));
  for (const [x, [low]] of places.reverse()) u.ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(low, "y", true));
  u.ctx.fill();
}

/** @param {any} ctx @param {number} x @param {number} y @param {number} radius @param {string} fill @param {string} stroke @param {number} width */
function circle(ctx, x, y, radius, fill, stroke, width) {
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  ctx.fillStyle = fill;
  ctx.fill();
  ctx.strokeStyle = stroke;
  ctx.lineWidth = width;
  ctx.stroke();
}
