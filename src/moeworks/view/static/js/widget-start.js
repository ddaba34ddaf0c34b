// What a notebook loads first: makes the page's modules from their texts, links them by their names, hands over to the widget.
// Every widget has its own modules, since they keep its state; the libraries are made once for all.

const { modules, style, version } = JSON.parse("{}"); // the widget's texts, put here by moeworks.view.widget_module

const NAMED = /(\b(?:import|export)\b(?:[^;'"()]*?\bfrom)?\s*)"([^"\n]+)"/g;
const libraries = (globalThis[Symbol.for(`moeworks libraries ${version}`)] ??= new Map());

function addressOf(text) {
  return URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
}

async function load() {
  const made = new Map();
  const own = [];
  for (const { name, text, library } of modules) {
    const linked = () => text.replace(NAMED, (whole, head, other) => (made.has(other) ? `${head}"${made.get(other)}"` : whole));
    if (library && !libraries.has(name)) libraries.set(name, addressOf(linked()));
    made.set(name, library ? libraries.get(name) : addressOf(linked()));
    if (!library) own.push(made.get(name));
  }
  try {
    return await import(made.get("moeworks/widget"));
  } finally {
    for (const address of own) URL.revokeObjectURL(address);
  }
}

export default {
  async render({ model, el }) {
    const { mount } = await load();
    return mount({ model, el, style });
  },
};
