// The map as a picture: a row for each layer, a square for each expert, with a cursor for pointer and keys.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { inkOn, scaleRgb, useDark } from "moeworks/colours";
import { html } from "moeworks/parts";

const LEFT = 34;
const TOP = 18;

/**
 * @param {{map: import("moeworks/experts-map").ExpertMap, cursor: string, picked: Set<string>, found: Set<string>,
 *   onCursor: (address: string) => void, onOpen: (address: string) => void, onPick: (addresses: string[], on?: boolean) => void,
 *   onHover: (address: string) => void, label: string, says: string}} props
 *   found: what a search marks; onPick without `on` turns each address over
 */
export function ExpertGrid({ map, cursor, picked, found, onCursor, onOpen, onPick, onHover, label, says }) {
  const frame = useRef(null);
  const canvas = useRef(null);
  const from = useRef("");
  const width = useWidth(frame);
  const dark = useDark();
  const [hovered, setHovered] = useState("");
  const size = sizeOf(map, width);
  useLayoutEffect(() => {
    if (width > 0) draw(canvas.current, map, size, { cursor, picked, found, hovered });
  }, [map, width, dark, cursor, picked, found, hovered]);
  useEffect(() => keepInView(frame.current, map, size, cursor), [cursor, width]);
  const under = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const expert = Math.floor((event.clientX - box.left - LEFT) / size.w);
    const layer = map.layers[Math.floor((event.clientY - box.top - TOP) / size.h)];
    const address = `L${layer}.E${expert}`;
    return map.byAddress.has(address) ? address : "";
  };
  const hover = (address) => {
    setHovered(address);
    onHover(address);
  };
  const onClick = (event) => {
    const address = under(event);
    if (!address) return;
    if (event.shiftKey) onPick(between(map, cursor || address, address), true);
    else if (event.ctrlKey || event.metaKey) onPick([address]);
    onOpen(address);
  };
  const onKeyDown = (event) => {
    const here = map.byAddress.get(cursor) ?? map.cells[0];
    if (event.key === " ") {
      event.preventDefault();
      onPick([here.address]);
    } else if (event.key === "Enter") {
      event.preventDefault();
      onOpen(here.address);
    } else {
      const next = moved(map, here, event.key);
      if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (event.shiftKey) {
        from.current ||= here.address;
        onPick(between(map, from.current, next), true);
      } else {
        from.current = "";
      }
      onCursor(next);
    }
  };
  return html`
    <div class="grid-frame" ref=${frame}>
      <div class="grid-hold" tabindex="0" role="group" aria-roledescription="map" aria-label=${label} aria-describedby="grid-says"
        onKeyDown=${onKeyDown} onFocus=${() => !cursor && onCursor(map.cells[0].address)}>
        <canvas ref=${canvas} aria-hidden="true" onClick=${onClick} onMouseMove=${(event) => hover(under(event))} onMouseLeave=${() => hover("")}></canvas>
      </div>
    </div>
    <p id="grid-says" class="grid-says" role="status">${says}</p>
  `;
}

function useWidth(ref) {
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return width;
}

function sizeOf(map, width) {
  const w = Math.max(7, Math.min(46, Math.floor((width - LEFT - 2) / Math.max(1, map.widest))));
  return { w, h: Math.max(9, Math.min(28, w)), gap: w >= 6 ? 1 : 0 };
}

function draw(canvas, map, size, { cursor, picked, found, hovered }) {
  const ratio = devicePixelRatio || 1;
  const [wide, high] = [LEFT + map.widest * size.w + 2, TOP + map.layers.length * size.h + 2];
  canvas.width = Math.round(wide * ratio);
  canvas.height = Math.round(high * ratio);
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${high}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const colours = Object.fromEntries(["ink", "ink-2", "line", "line-2", "surface", "accent", "warn"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  const place = placesOf(map, size);
  drawNames(context, map, size, colours, style.fontFamily);
  for (const cell of map.cells) drawCell(context, cell, place(cell), map, size, colours);
  for (const address of found) frameOf(context, map, place, size, address, colours.warn, 2);
  for (const address of picked) {
    frameOf(context, map, place, size, address, colours.surface, Math.min(5, size.w / 2));
    frameOf(context, map, place, size, address, colours.accent, Math.min(3, size.w / 3));
  }
  if (hovered) frameOf(context, map, place, size, hovered, colours["ink-2"], 1);
  if (cursor) frameOf(context, map, place, size, cursor, colours.ink, 2);
}

function placesOf(map, size) {
  const row = new Map(map.layers.map((layer, i) => [layer, i]));
  return (cell) => [LEFT + cell.expert * size.w, TOP + row.get(cell.layer) * size.h];
}

function drawNames(context, map, size, colours, font) {
  context.font = `11px ${font}`;
  context.fillStyle = colours["ink-2"];
  context.textBaseline = "middle";
  const every = size.h >= 12 ? 1 : 2;
  map.layers.forEach((layer, i) => i % every === 0 && context.fillText(`L${layer}`, 2, TOP + (i + 0.5) * size.h));
  const step = [1, 2, 4, 8, 16, 32, 64].find((one) => one * size.w >= 30) ?? 64;
  context.textAlign = "center";
  for (let expert = 0; expert < map.widest; expert += step) context.fillText(`E${expert}`, LEFT + (expert + 0.5) * size.w, TOP / 2);
  context.textAlign = "left";
}

function drawCell(context, cell, [x, y], map, size, colours) {
  const [w, h] = [size.w - size.gap, size.h - size.gap];
  if (cell.value === null) {
    context.strokeStyle = colours.line;
    context.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    return;
  }
  const [low, high] = map.range;
  const colour = scaleRgb((cell.value - low) / (high - low), map.twoSided ? "two-sided" : "amount");
  context.fillStyle = `rgb(${colour.join(" ")})`;
  context.fillRect(x, y, w, h);
  const ink = inkOn(colour);
  if (cell.passes) {
    context.fillStyle = ink;
    context.beginPath();
    context.arc(x + w / 2, y + h / 2, Math.max(1.2, Math.min(3, w / 6)), 0, 2 * Math.PI);
    context.fill();
  }
  if (cell.protected) {
    context.fillStyle = ink;
    context.beginPath();
    context.moveTo(x + w, y);
    context.lineTo(x + w - Math.min(8, w * 0.6), y);
    context.lineTo(x + w, y + Math.min(8, h * 0.6));
    context.fill();
  }
}

function frameOf(context, map, place, size, address, colour, width) {
  const cell = map.byAddress.get(address);
  if (!cell) return;
  const [x, y] = place(cell);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.strokeRect(x + width / 2 - 0.5, y + width / 2 - 0.5, size.w - size.gap - width + 1, size.h - size.gap - width + 1);
}

function moved(map, { layer, expert }, key) {
  const row = map.layers.indexOf(layer);
  const within = (at, to) => `L${map.layers[at]}.E${to}`;
  const last = (at) => Math.max(...map.cells.filter((cell) => cell.layer === map.layers[at]).map((cell) => cell.expert));
  const steps = {
    ArrowLeft: [row, expert - 1], ArrowRight: [row, expert + 1], ArrowUp: [row - 1, expert], ArrowDown: [row + 1, expert],
    Home: [row, 0], End: [row, last(row)], PageUp: [0, expert], PageDown: [map.layers.length - 1, expert],
  }; // prettier-ignore
  if (!(key in steps)) return null;
  const address = within(...steps[key]);
  return map.byAddress.has(address) ? address : within(row, expert);
}

function between(map, a, b) {
  const [one, other] = [map.byAddress.get(a), map.byAddress.get(b)];
  if (!one || !other) return [b];
  const rows = [one.layer, other.layer].map((layer) => map.layers.indexOf(layer)).sort((x, y) => x - y);
  const columns = [one.expert, other.expert].sort((x, y) => x - y);
  const layers = new Set(map.layers.slice(rows[0], rows[1] + 1));
  return map.cells.filter((cell) => layers.has(cell.layer) && cell.expert >= columns[0] && cell.expert <= columns[1]).map((cell) => cell.address);
}

function keepInView(frame, map, size, cursor) {
  const cell = map.byAddress.get(cursor);
  if (!cell) return;
  const x = LEFT + cell.expert * size.w;
  if (x < frame.scrollLeft + LEFT) frame.scrollLeft = x - LEFT * 2;
  else if (x + size.w > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = x + size.w * 3 - frame.clientWidth;
}
