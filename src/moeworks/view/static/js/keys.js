// Keys: each view says which it hears and what they do; `?` shows them all.

import { useEffect, useRef } from "preact/hooks";

/**
 * @typedef {{keys: string, what: string, run?: (event: KeyboardEvent) => void, always?: boolean}} Key
 *   keys: names as in `KeyboardEvent.key`, apart by spaces, "Space" for the space bar; with "Shift+", "Control+"
 *   before where they matter. Without `run` it is only listed (a part of the page hears it itself).
 */

const heard = [];

/**
 * Every key that does something now, for the overlay.
 * @returns {Key[]}
 */
export function listKeys() {
  return heard.flatMap((entry) => entry.current);
}

/**
 * Hear keys while the component is there. Letters typed into a field are not heard.
 * @param {Key[]} keys
 */
export function useKeys(keys) {
  const present = useRef(keys);
  present.current = keys;
  useEffect(() => {
    heard.push(present);
    return () => {
      heard.splice(heard.indexOf(present), 1);
    };
  }, []);
}

/**
 * The name of a pressed key as it is written in `Key.keys`.
 * @param {KeyboardEvent} event
 * @returns {string}
 */
export function keyName(event) {
  const name = event.key === " " ? "Space" : event.key;
  const shift = event.shiftKey && (name.length > 1 || /[a-z]/i.test(name)) ? "Shift+" : "";
  return `${event.ctrlKey || event.metaKey ? "Control+" : ""}${event.altKey ? "Alt+" : ""}${shift}${name}`;
}

/**
 * Start hearing; called once by the page.
 * @param {Document | ShadowRoot} where a notebook's widget hears only its own part of the page
 */
export function hearKeys(where = document) {
  where.addEventListener("keydown", (event) => {
    // In an open dialog the browser's own keys hold, Escape above all; a closed one may keep the focus for a frame.
    if (event.defaultPrevented || isTyping(event.target) || event.target.closest?.("dialog[open]")) return;
    const name = keyName(event);
    for (const entry of [...heard].reverse()) {
      for (const key of entry.current) {
        if (key.run && key.keys.split(" ").includes(name)) {
          event.preventDefault();
          key.run(event);
          return;
        }
      }
    }
  });
}

function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}
