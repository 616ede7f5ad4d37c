// Elements of the page. Text of the user's is always set as text, never as HTML.

/** Return an element with attributes (an `on...` attribute is a function) and children (elements or text). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Return a <select> with options [value, text], and what to do with the value that is chosen. */
function makeSelect(options, chosen, change) {
  const select = make("select", { onchange: () => change(select.value) });
  for (const [value, text] of options) select.append(make("option", { value, selected: String(value) === String(chosen) }, text));
  return select;
}

/** Return text as plotly shows it literally: plotly reads some tags. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** Return a text that is at most so long. */
function cut(text, length) {
  return text.length <= length ? text : text.slice(0, length - 1) + "…";
}

const SHAPES = { circle: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", square: "M-4,-4h8v8h-8z", diamond: "M0,-5l5,5l-5,5l-5,-5z",
  "triangle-up": "M0,-5l5,9h-10z", "triangle-down": "M0,5l5,-9h-10z", cross: "M-1.5,-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
  x: "M-4,-4l8,8M4,-4l-8,8" };
const DASHES = { solid: "", dash: "7 3", dashdot: "7 3 2 3", dot: "2 3" };

/** Return a small picture of a row's line and marker. */
function swatch(style) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const add = (tag, attributes) => {
    const part = document.createElementNS(space, tag);
    Object.entries(attributes).forEach(([name, value]) => part.setAttribute(name, value));
    svg.append(part);
  };
  const color = visible(style.color), open = style.symbol.endsWith("-open");
  Object.entries({ class: "swatch", width: 30, height: 12, viewBox: "-15 -6 30 12", "aria-hidden": "true" })
    .forEach(([name, value]) => svg.setAttribute(name, value));
  add("path", { d: "M-15,0H15", stroke: color, "stroke-width": 2, "stroke-dasharray": DASHES[style.dash] || "" });
  add("path", { d: SHAPES[style.symbol.replace("-open", "")] || SHAPES.circle, stroke: color, "stroke-width": 1.5,
    fill: open ? "var(--back)" : color });
  return svg;
}

/** Return a colour that can be seen on the background: black is white on a dark one. */
function visible(color) {
  return isDark() && /^#0{6}$/.test(color) ? "#ffffff" : color;
}

function isDark() {
  return document.documentElement.dataset.theme === "dark";
}
