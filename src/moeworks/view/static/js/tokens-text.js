// Draws rows as text: requests, paragraphs by direction, tokens, visible white space, characters of several tokens.

const HIDDEN = /[\u200b-\u200f\u202a-\u202e\u2060-\u2069\u00ad\ufeff\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029]/;
// These would turn the order of all that follows: they are named, never put into the page.
const TURNING = /[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u200b\u2060\ufeff\u00ad]/;
const NAMES = {
  0x200b: "ZWSP", 0x200c: "ZWNJ", 0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM", 0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF",
  0x202d: "LRO", 0x202e: "RLO", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xad: "SHY", 0xfeff: "BOM",
}; // prettier-ignore

/**
 * @typedef {{row: number, first: number, spans: HTMLElement[]}} Cell
 *   what stands for rows `first` to `row`: one token, or the tokens whose bytes make up one character
 */

/**
 * Where the chunk that begins at about `row` really begins: at a request, else after a line break, else at a word.
 * Both neighbours of a border see the same rows after it, so both find the same place.
 * @param {import("moeworks/tokens-rows").Rows} rows a window that holds the rows from `row` on
 * @param {number} row
 * @param {number} stop end of the stretch that is shown
 * @param {number} reach
 * @returns {number}
 */
export function breakAt(rows, row, stop, reach) {
  const last = Math.min(row + reach, rows.stop, stop);
  if (row >= stop) return stop;
  const at = (r) => r - rows.start;
  if (rows.position[at(row)] === 0) return row;
  let [line, word] = [0, 0];
  for (let r = row + 1; r < last; r += 1) {
    if (rows.request[at(r)] !== rows.request[at(r - 1)]) return r;
    const before = rows.text[at(r - 1)];
    if (!line && before.endsWith("\n")) line = r;
    if (!word && !rows.part[at(r - 1)] && /^\s/.test(rows.text[at(r)])) word = r;
  }
  for (let r = row + 1; !word && r < last; r += 1) if (!rows.part[at(r - 1)]) word = r;
  return line || word || last;
}

/**
 * Draw rows `first` to `stop` of a window.
 * @param {import("moeworks/tokens-rows").Rows} rows
 * @param {number} first
 * @param {number} stop
 * @param {(request: number, row: number) => Node | null} headOf the head of a request that begins at a row
 * @returns {{nodes: DocumentFragment, cells: Cell[]}}
 */
export function drawRows(rows, first, stop, headOf) {
  const nodes = document.createDocumentFragment();
  const cells = [];
  let [section, paragraph, phase] = [null, null, ""];
  const newParagraph = (row) => {
    paragraph = element("p", `text ${phase === "prompt" ? "" : "made"}`);
    paragraph.dir = "auto";
    paragraph.dataset.at = String(row);
    section.append(paragraph);
  };
  for (let row = first; row < stop; row += 1) {
    const at = row - rows.start;
    const begins = row === first || rows.request[at] !== rows.request[at - 1];
    if (begins) {
      section = element("section", "request");
      const head = headOf(rows.request[at], row);
      if (head) section.append(head);
      nodes.append(section);
    }
    if (begins || rows.phase[at] !== phase) {
      const opens = !begins || (rows.phase[at] !== "prompt" && rows.position[at] === 0);
      phase = rows.phase[at];
      if (opens) section.append(element("div", `phase ${phase === "prompt" ? "" : "made"}`, phase));
      paragraph = null;
    }
    let end = row;
    while (rows.part[end - rows.start] && end + 1 < stop && rows.request[end + 1 - rows.start] === rows.request[at]) end += 1;
    if (!paragraph) newParagraph(row);
    const cell = { row: end, first: row, spans: [] };
    const lines = linesOf(rows, end);
    lines.forEach((line, i) => {
      if (i > 0) newParagraph(end);
      const span = element("span", cell.first < end ? "t many" : "t");
      span.dataset.row = String(end);
      if (cell.first < end) span.dataset.first = String(cell.first);
      fill(span, line, i < lines.length - 1 || line.ends);
      paragraph.append(span);
      cell.spans.push(span);
    });
    if (lines.at(-1).ends) paragraph = null;
    cells.push(cell);
    row = end;
  }
  return { nodes, cells };
}

function linesOf(rows, row) {
  const text = rows.text[row - rows.start];
  if (text === "") return [{ text: "", ends: false, stands: rows.part[row - rows.start] ? "\ufffd" : `⟨${rows.token[row - rows.start]}⟩` }];
  const pieces = text.split("\n");
  const ends = pieces.length > 1 && pieces.at(-1) === "";
  if (ends) pieces.pop();
  return pieces.map((piece, i) => ({ text: piece, ends: i < pieces.length - 1 || ends, stands: "" }));
}

function fill(span, line, ends) {
  if (line.stands) span.append(element("i", "code", line.stands));
  fillText(span, line.text);
  if (ends) {
    const sign = element("i", "nl");
    sign.setAttribute("aria-hidden", "true");
    span.append(sign);
  }
}

/**
 * Put a text into an element, with its white space and hidden characters to be seen.
 * @param {HTMLElement} element_
 * @param {string} text
 */
export function fillText(element_, text) {
  if (!/[ \t\u00a0]/.test(text) && !HIDDEN.test(text)) {
    element_.append(text);
    return;
  }
  const bare = !/[^\u200b-\u200f\u2060\ufe00-\ufe0f]/.test(text);
  let run = "";
  const flush = () => {
    if (run) element_.append(run);
    run = "";
  };
  for (const letter of text) {
    if (letter === " " || letter === "\t" || letter === "\u00a0") {
      flush();
      element_.append(element("i", letter === "\t" ? "tab" : letter === " " ? "sp" : "sp hard", letter));
    } else if (TURNING.test(letter) || (bare && HIDDEN.test(letter))) {
      flush();
      const code = letter.codePointAt(0);
      element_.append(element("i", "code", NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`));
    } else {
      run += letter;
    }
  }
  flush();
}

/**
 * A token's text in one line for lists, labels and voices: white space by its signs, what has no text by its id.
 * @param {import("moeworks/tokens-rows").Rows} rows @param {number} row
 * @returns {string}
 */
export function tokenName(rows, row) {
  const text = rows.text[row - rows.start];
  if (rows.part[row - rows.start]) {
    let end = row + 1;
    while (end < rows.stop && rows.part[end - rows.start]) end += 1;
    const whole = end < rows.stop && rows.request[end - rows.start] === rows.request[row - rows.start] ? rows.text[end - rows.start] : "";
    return `part of ${whole ? shown(whole) : "a character"}`;
  }
  return text === "" ? `token ${rows.token[row - rows.start]}` : shown(text);
}

/** @param {string} text @returns {string} the text with white space as signs */
export function shown(text) {
  return [...text]
    .map((letter) => (letter === " " ? "␣" : letter === "\n" ? "↵" : letter === "\t" ? "⇥" : TURNING.test(letter) ? `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩` : letter))
    .join("");
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
