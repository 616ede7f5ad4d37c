// The runs under way, on a page that clrun-watch --html writes again and again; and what keeps the choices meanwhile.

const RELOAD = { on: true };

/** Fill the section of the runs under way. */
function progressSection(place) {
  const { title, columns, rows, every } = PAGE.progress, table = make("div");
  const box = make("input", { type: "checkbox", checked: RELOAD.on, onchange: () => { RELOAD.on = box.checked; } });
  place.hidden = false;
  place.append(make("h2", {}, "Runs under way"), make("p", { class: "note" }, title),
    every ? make("label", { class: "no-print" }, box, ` load this page anew every ${every} s`) : null, table);
  makeTable(table, "Runs under way", columns.map((name, k) => ({ name, text: ["run", "status", "host"].includes(name), value: (row) => row[k], cell: (row) => row[k] })),
    rows, (row) => row.join(" "));
  if (every) setInterval(() => { if (RELOAD.on) { history.replaceState(chosen(), ""); location.reload(); } }, 1000 * every);
}

/** Return what was chosen on the page: by the texts that are shown, since rows and runs may be added meanwhile. */
function chosen() {
  const all = (query) => [...document.querySelectorAll(query)];
  return {
    reload: RELOAD.on, stream: document.getElementById("stream").selectedOptions[0]?.text, theme: document.getElementById("theme").value, scroll: scrollY,
    selects: all("main select").map((select) => select.selectedOptions[0]?.text), filters: all("main input[type=search]").map((input) => input.value),
    sorted: all("main th[aria-sort]").map((heading) => heading.getAttribute("aria-sort")), on: PAGE.streams.length ? [...STATE.on].map((row) => PAGE.streams[STATE.stream].rows[row].label) : [],
    shown: PAGE.streams.length ? STATE.order.map((row) => PAGE.streams[STATE.stream].rows[row].label) : [],
  };
}

/** Choose the option of a <select> that shows this text, if there is one and it is not chosen already. */
function choose(select, text) {
  const option = [...select.options].find((one) => one.text === text);
  if (!option || option.selected) return;
  select.value = option.value;
  select.dispatchEvent(new Event("change"));
}

/** Choose anew what was chosen before the page was loaded anew. */
function restore(kept) {
  const all = (query) => [...document.querySelectorAll(query)];
  RELOAD.on = kept.reload;
  choose(document.getElementById("theme"), [...document.getElementById("theme").options].find((one) => one.value === kept.theme)?.text);
  choose(document.getElementById("stream"), kept.stream);
  kept.selects.forEach((text, k) => { const select = all("main select")[k]; if (select) choose(select, text); });
  kept.filters.forEach((text, k) => { const input = all("main input[type=search]")[k]; if (input && text) { input.value = text; input.dispatchEvent(new Event("input")); } });
  kept.sorted.forEach((direction, k) => {
    for (const _ of [1, 2]) {
      const heading = all("main th[aria-sort]")[k];
      if (heading && direction !== "none" && heading.getAttribute("aria-sort") !== direction) heading.firstChild.click();
    }
  });
  if (PAGE.streams.length) {
    const rows = PAGE.streams[STATE.stream].rows, known = new Set(kept.shown), was = new Set(kept.on);
    STATE.on = new Set([...STATE.order].filter((row) => was.has(rows[row].label) || (!known.has(rows[row].label) && STATE.on.has(row))));
    redraw();
  }
  history.scrollRestoration = "manual";
  const back = () => scrollTo(0, kept.scroll);
  if (document.readyState === "complete") back();
  else addEventListener("load", () => setTimeout(back));
}
