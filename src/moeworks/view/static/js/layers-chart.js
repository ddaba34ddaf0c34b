// A line chart over layers with intervals and chance levels, on canvas, whose every value can be reached by keyboard.

import uPlot from "uplot";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { html } from "moeworks/parts";
import { digits } from "moeworks/layers-series";
import { drawMarks, lookOf, readColours } from "moeworks/layers-draw";

const HEIGHT = 300;

/**
 * @param {{
 *   series: import("moeworks/layers-series").Series[], title: string, axis?: string, unit?: string,
 *   theme?: string, zero?: boolean, height?: number
 * }} props `title` names the number, `axis` what runs along the chart; `zero`: the scale begins at 0
 */
export function Chart({ series, title, axis = "layer", theme = "", zero = false, height = HEIGHT }) {
  const box = useRef(/** @type {HTMLDivElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const [hidden, setHidden] = useState(/** @type {Set<string>} */ (new Set()));
  const [at, setAt] = useState(/** @type {{line: number, place: number} | null} */ (null));
  const [keyed, setKeyed] = useState(false);
  const lines = useMemo(
    () => series.map((line, index) => ({ ...line, ...lookOf(index), hidden: hidden.has(line.key) })),
    [series, hidden],
  );
  const xs = useMemo(() => [...new Set(series.flatMap((one) => one.points.map((p) => p.x)))].sort((a, b) => a - b), [series]);
  const state = useRef({ lines, at, xs });
  state.current = { lines, at, xs };

  useLayoutEffect(() => {
    const host = box.current;
    if (!host || !xs.length) return undefined;
    const colours = readColours(host);
    const [low, high] = limits(lines, zero);
    const grid = { stroke: colours.grid, width: 1 };
    const tick = { stroke: colours.grid, width: 1, size: 4 };
    const font = `12px ${getComputedStyle(host).fontFamily}`;
    const made = new uPlot(
      {
        width: Math.max(240, host.clientWidth),
        height,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { show: false }, y: false },
        scales: {
          x: { time: false, range: () => spread(xs) },
          y: { range: () => [low, high] },
        },
        axes: [
          { stroke: colours.ink, font, grid: { show: false }, ticks: tick, incrs: steps(xs), label: axis, labelFont: font, labelSize: 18, labelGap: 0, size: 26, gap: 4 },
          { stroke: colours.ink, font, grid, ticks: { show: false }, size: 48, values: (_u, ticks) => ticks.map(short) },
        ],
        series: [{}, ...lines.map(() => ({ paths: () => null, points: { show: false } }))],
        hooks: {
          draw: [(u) => drawMarks(u, state.current, colours)],
          setCursor: [(u) => point(u)],
        },
      },
      [xs, ...lines.map((line) => xs.map((x) => line.points.find((p) => p.x === x)?.y ?? null))],
      host,
    );
    plot.current = made;
    made.root.setAttribute("aria-hidden", "true");
    const observer = new ResizeObserver(() => {
      const width = Math.max(240, host.clientWidth);
      if (width !== made.width) made.setSize({ width, height });
    });
    observer.observe(host);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [lines, xs, theme, axis, zero, height]);

  useEffect(() => plot.current?.redraw(false), [at]);

  /** Take the value nearest to the mouse. */
  function point(/** @type {any} */ u) {
    const { idx, top, left } = u.cursor;
    if (left === null || left < 0 || idx === null || idx === undefined) return;
    const x = state.current.xs[idx];
    let best = null;
    let nearest = Infinity;
    state.current.lines.forEach((line, number) => {
      const place = line.hidden ? -1 : line.points.findIndex((p) => p.x === x);
      if (place < 0) return;
      const distance = Math.abs(u.valToPos(line.points[place].y, "y") - top);
      if (distance < nearest) [nearest, best] = [distance, { line: number, place }];
    });
    setKeyed(false);
    setAt(best);
  }

  /** Move along a line (left, right, Home, End) or to another line (up, down). */
  function move(/** @type {KeyboardEvent} */ event) {
    const shownLines = lines.map((line, index) => ({ line, index })).filter(({ line }) => !line.hidden);
    if (!shownLines.length) return;
    let order = shownLines.findIndex(({ index }) => index === at?.line);
    let place = at?.place ?? -1;
    const first = order < 0;
    order = Math.max(order, 0);
    const last = () => shownLines[order].line.points.length - 1;
    if (event.key === "ArrowRight") place += 1;
    else if (event.key === "ArrowLeft") place -= 1;
    else if (event.key === "Home") place = 0;
    else if (event.key === "End") place = last();
    else if (event.key === "ArrowDown" && !first) order = (order + 1) % shownLines.length;
    else if (event.key === "ArrowUp" && !first) order = (order - 1 + shownLines.length) % shownLines.length;
    else if (event.key === "Escape") {
      setAt(null);
      return;
    } else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    setKeyed(true);
    setAt({ line: shownLines[order].index, place: Math.min(Math.max(place, 0), last()) });
  }

  const toggle = (/** @type {string} */ key) => {
    const next = new Set(hidden);
    if (!next.delete(key)) next.add(key);
    setAt(null);
    setHidden(next);
  };
  const told = at && lines[at.line] ? inWords(lines[at.line], at.place, axis) : "";
  return html`
    <figure class="chart">
      <figcaption class="chart-title">${title}</figcaption>
      <div
        class="chart-box"
        tabindex="0"
        role="application"
        aria-roledescription="chart"
        aria-label=${`${title} by ${axis}, ${lines.length} ${lines.length === 1 ? "line" : "lines"}. Arrow keys read the values; they are also in the table below.`}
        onKeyDown=${move}
        ref=${box}
        style=${{ "--chart-height": `${height}px` }}
      ></div>
      <p class="chart-readout" aria-live=${keyed ? "polite" : "off"}>
        ${told || html`<span class="quiet">Point at the chart, or focus it and use the arrow keys, to read its values.</span>`}
      </p>
      ${lines.length > 1 &&
      html`<ul class="chart-legend" aria-label="Lines">
        ${lines.map(
          (line) => html`<li key=${line.key}>
            <button type="button" class="chart-key" aria-pressed=${!line.hidden} onClick=${() => toggle(line.key)}>
              <svg width="22" height="10" aria-hidden="true">
                <line x1="0" y1="5" x2="22" y2="5" stroke=${line.colour} stroke-width="2.5" stroke-dasharray=${line.dash.join(" ")} />
              </svg>
              ${line.label}
            </button>
          </li>`,
        )}
      </ul>`}
    </figure>
  `;
}

/** @param {any} line @param {number} place @param {string} axis */
function inWords(line, place, axis) {
  const point = line.points[place];
  if (!point) return "";
  const interval = point.low === undefined ? "" : ` (interval ${digits(point.low)} to ${digits(point.high)})`;
  const levels = point.chance.filter(Number.isFinite).map(digits);
  const chance = levels.length ? `, by chance ${levels.join(" or ")}` : "";
  return `${axis} ${digits(point.x)}, ${line.label}: ${digits(point.y)}${interval}${chance}`;
}

/** @param {any[]} lines @param {boolean} zero @returns {[number, number]} limits that hold all intervals and levels */
function limits(lines, zero) {
  const values = lines
    .filter((line) => !line.hidden)
    .flatMap((line) => line.points.flatMap((/** @type {any} */ p) => [p.y, p.low, p.high, ...p.chance]))
    .filter((value) => Number.isFinite(value));
  if (!values.length) return [0, 1];
  let low = Math.min(...values);
  const high = Math.max(...values);
  if (low > 0 && (zero || low < 0.6 * high)) low = 0;
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [low === 0 ? 0 : low - pad, high + pad];
}

/** @param {number[]} xs @returns {[number, number]} */
function spread(xs) {
  const [first, last] = [xs[0], xs[xs.length - 1]];
  const pad = first === last ? 0.5 : Math.min(0.5, (last - first) * 0.06);
  return [first - pad, last + pad];
}

/** @param {number[]} xs @returns {number[]} distances of ticks: whole layers where all are whole */
function steps(xs) {
  return xs.every(Number.isInteger) ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] : [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 10];
}

/** @param {number} value */
function short(value) {
  return Math.abs(value) >= 10_000 ? value.toExponential(0) : String(Number(value.toPrecision(6)));
}
