// Tables that are sorted by their headings and filtered by typing.

/**
 * Fill `place` with a table. columns: {name, title, text, value(item), cell(item)}: what is sorted by, and what is shown
 * (a text or an element). words(item): the text in which the filter looks. changed(items): called with what is shown.
 */
function makeTable(place, label, columns, items, words, changed = () => {}, typed = "") {
  const order = { column: null, down: false };
  const count = make("span", { role: "status", class: "note" });
  const filter = make("input", { type: "search", value: typed, placeholder: "such as: ewc", "aria-label": `Filter: ${label}`, oninput: fill });
  const head = make("tr"), body = make("tbody");
  columns.forEach((column) => head.append(make("th", { scope: "col", class: column.text && "text", title: column.title },
    make("button", { type: "button", onclick: () => sortBy(column) }, column.name))));
  place.replaceChildren(
    make("div", { class: "controls no-print" }, make("label", {}, "Filter", filter), count),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      make("table", {}, make("caption", { hidden: true }, label), make("thead", {}, head), body)));

  function sortBy(column) {
    order.down = order.column === column ? !order.down : !column.text && !column.less;
    order.column = column;
    fill();
  }

  function fill() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = items.filter((item) => wanted.every((word) => words(item).toLowerCase().includes(word)));
    if (order.column) kept.sort((a, b) => compare(order.column.value(a), order.column.value(b), order.down));
    columns.forEach((column, i) => {
      const direction = column !== order.column ? "none" : order.down ? "descending" : "ascending";
      head.children[i].setAttribute("aria-sort", direction);
      head.children[i].firstChild.textContent = column.name + { none: "", ascending: " ▲", descending: " ▼" }[direction];
    });
    body.replaceChildren(...kept.map((item) => make("tr", {}, ...columns.map((column, i) =>
      make(i ? "td" : "th", { scope: i ? null : "row", class: [column.text && "text", column.long && "long"].filter(Boolean).join(" ") }, column.cell(item) ?? "")))));
    count.textContent = kept.length === items.length ? `${items.length} rows` : `${kept.length} of ${items.length} rows`;
    changed(kept);
  }

  fill();
  return { filterBy: (text) => { filter.value = text; fill(); } };
}

/** Order two values: empty ones last, numbers by size, texts by the numbers in them. */
function compare(a, b, down) {
  const empty = (v) => v == null || v === "";
  if (empty(a) || empty(b)) return empty(a) - empty(b);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}
