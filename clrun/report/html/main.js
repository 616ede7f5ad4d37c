// The page: its sections for the stream that is chosen.

const PAGE = JSON.parse(document.getElementById("data").textContent);
const STATE = { stream: 0, order: [], on: new Set(), redraw: [], legends: [] }; // order: the rows that the table shows

/** Add a section with a heading and an explanation, and return it. */
function addSection(id, title, about) {
  const section = make("section", { id }, make("h2", {}, title), about && make("p", { class: "note" }, about));
  document.getElementById("main").append(section);
  document.getElementById("contents").append(make("a", { href: `#${id}` }, title), " ");
  return section;
}

/** Add the switches of the methods. All charts share them. */
function addLegend(section) {
  const legend = make("div", { class: "legend", role: "group", "aria-label": "Methods in the charts" });
  section.append(legend);
  STATE.legends.push(legend);
}

function fillLegends(stream) {
  const set = (rows) => () => { STATE.on = new Set(rows); redraw(); };
  for (const legend of STATE.legends) {
    legend.replaceChildren(
      make("button", { type: "button", class: "no-print", onclick: set(STATE.order.slice(0, FEW)) }, `first ${Math.min(FEW, STATE.order.length)}`),
      make("button", { type: "button", class: "no-print", onclick: set(STATE.order) }, "all"), make("button", { type: "button", class: "no-print", onclick: set([]) }, "none"),
      ...STATE.order.map((row) => make("button", { type: "button", "aria-pressed": String(STATE.on.has(row)), title: stream.rows[row].label, onclick: () => toggle(row) },
        swatch(stream.rows[row].style), make("span", { class: "name" }, stream.rows[row].label))));
  }
}

function toggle(row) {
  const places = STATE.legends.map((legend) => [...legend.children].indexOf(document.activeElement));
  if (!STATE.on.delete(row)) STATE.on.add(row);
  redraw();
  places.forEach((place, i) => { if (place >= 0) STATE.legends[i].children[place].focus(); }); // the keyboard stays where it was
}

function redraw() {
  if (!PAGE.streams.length) return;
  fillLegends(PAGE.streams[STATE.stream]);
  STATE.redraw.forEach((update) => update());
}

/** Return the seeds of a row on which it fails, each with the reason, as 'seed: reason'. */
function failures(stream, row) {
  return runsOf(stream, row).map((run) => [run.seed, reasonOf(stream, run)]).filter(([, reason]) => reason);
}

/** Return why a run counts as failed: it diverged, or it is no better than finetune with its seed or than guessing. */
function reasonOf(stream, run) {
  const of = (name) => run.measures[stream.measures.indexOf(name)] ?? null;
  if (run.status === "diverged") return `diverged${run.diverged_at ? ` at ${run.diverged_at}` : ""}`;
  const kept = of("accuracy_kept"), accuracy = of("average_accuracy"), guess = stream.references.chance;
  if (kept != null && kept < 0.0005) return "no better than finetune"; // 0.0 points, as they are shown
  return guess != null && accuracy != null && accuracy <= guess ? "no better than guessing" : "";
}

/** Return the rows of a stream, the best first in the measure that is shown first. */
function bestFirst(stream) {
  const m = stream.measures.indexOf(PAGE.measures[0].name);
  return stream.rows.map((_, i) => i).sort((a, b) => compare(stream.rows[a].measures[m]?.[1], stream.rows[b].measures[m]?.[1], !PAGE.measures[0].less));
}

// ---------------------------------------------------------------- sections

function methodsSection(stream, runsTable) {
  const section = addSection("methods", "Methods", "Click a heading to sort, click again for the other way round; type to filter. Filter and order also choose what the charts show. After ± stands the standard deviation over the seeds; the interval is the 95 % interval of the mean (Student's t). Hover over a heading for its meaning.");
  stream.remarks.forEach((text) => section.append(make("p", { class: "warning" }, text)));
  stream.notes.forEach((text) => section.append(make("p", { class: "note" }, text)));
  const place = make("div"), main = PAGE.measures[0].name, more = { on: false };
  const button = make("button", { type: "button", class: "no-print", "aria-pressed": "false", onclick: () => { more.on = !more.on; button.setAttribute("aria-pressed", more.on); build(); } }, "all measures");
  section.append(button, place);
  const items = bestFirst(stream).map((i) => ({ i, row: stream.rows[i], failed: failures(stream, i) }));
  const columnOf = (measure) => { const p = stream.measures.indexOf(measure.name); return {
    name: WORDS[measure.name]?.replace(/,? (?=\S+,)|, /g, "\n") || measure.name.replace(/_/g, "\n"), title: `${measure.name}: ${measure.about}`, less: measure.less, value: ({ row }) => row.measures[p][1], cell: ({ row }) => shownStatistic(measure.name, row.measures[p]) }; };
  const there = PAGE.measures.filter((measure) => stream.measures.includes(measure.name) && stream.rows.some((row) => row.measures[stream.measures.indexOf(measure.name)][0]));
  const memory = there.findIndex((measure) => measure.name === "state_mb"), beside = there.findIndex((measure) => measure.name === "forgetting");
  if (memory > beside && beside >= 0) there.splice(beside + 1, 0, ...there.splice(memory, 1)); // what a method forgets, and what it keeps for that
  const m = stream.measures.indexOf(main);
  function build() {
    const columns = [
      { name: "method", text: true, value: ({ row }) => row.label, cell: ({ row }) => make("span", {}, swatch(row.style), " ", row.label) },
      { name: "n", title: "number of seeds", value: ({ row }) => row.n, cell: ({ row }) => String(row.n) },
      ...there.filter((measure) => measure.name === main).map(columnOf),
      { name: "95 %\ninterval", title: `of ${main}`, value: ({ row }) => row.measures[m]?.[3], cell: ({ row }) => (row.measures[m]?.[3] == null ? "" : `[${shown(main, row.measures[m][3])}, ${shown(main, row.measures[m][4])}]`) },
      { name: "fails on\nseeds", text: true, title: "seeds on which a run diverged, or is no better than finetune with the same seed or than guessing", value: ({ failed }) => failed.length || null,
        cell: ({ i, failed }) => (failed.length ? make("a", { href: "#runs", class: "bad", title: failed.map(([seed, reason]) => `${seed}: ${reason}`).join("; "), onclick: () => runsTable().filterBy(stream.rows[i].label) }, failed.length === runsOf(stream, i).length && failed.length > 3 ? "all" : failed.map(([seed]) => seed).join(", ")) : "") },
      ...there.filter((measure) => measure.name !== main && (more.on || measure.shown)).map(columnOf),
    ];
    makeTable(place, "Methods", columns, items, ({ row }) => `${row.label} ${Object.entries(row.keys).map(([k, v]) => `${k}=${v}`).join(" ")}`, (kept) => {
      const order = kept.map(({ i }) => i), same = order.length === STATE.order.length && order.every((row) => STATE.order.includes(row));
      STATE.order = order;
      if (!same) STATE.on = new Set(order.slice(0, FEW));
      redraw();
    });
  }
  return build;
}

function curvesSection(stream) {
  const tasks = tasksOf(stream), whole = stream.matrices.some((matrix) => matrix && matrix[0].length > 1);
  const options = [[0, "the average so far"], ...(whole ? numbers(tasks).map((k) => [k, `task ${k}`]) : [])];
  const over = addSection("over-tasks", "Accuracy over tasks", "Bold with markers: the mean; faint: each seed. A click on a method switches it off or on, in all charts.");
  curveChart(over, options, (place, task) => overTasks(stream, place, task));
  if (!stream.curves.some(Boolean)) return;
  const within = addSection("within-tasks", "Accuracy within tasks", "Test accuracy while tasks are learnt (key evaluate_every), one line for each seed.");
  curveChart(within, options, (place, task) => withinTasks(stream, place, task));
}

function curveChart(section, options, drawInto) {
  const choice = { task: 0 }, chart = make("div", { class: "chart" }), same = make("p", { class: "note" }), update = () => { same.textContent = drawInto(chart, choice.task); };
  section.append(make("div", { class: "controls" }, make("label", {}, "Accuracy on", makeSelect(options, 0, (v) => { choice.task = Number(v); update(); }))));
  addLegend(section);
  section.append(chart, same);
  STATE.redraw.push(update);
}

function matricesSection(stream) {
  if (!stream.matrices.some((one) => one && one[0].length > 1)) return;
  const section = addSection("matrices", "Accuracy matrices", "Each row shows the accuracy on every task after one more task was learnt; read down a column to see a task being forgotten. Two methods side by side.");
  const side = make("div", { class: "side" });
  section.append(side);
  for (const place of [0, 1]) {
    const choice = { row: STATE.order[place] ?? 0, seed: "" }, chart = make("div", { class: "chart" }), seeds = make("span");
    const update = () => {
      seeds.replaceChildren(make("label", {}, "seed", makeSelect([["", "mean"], ...runsOf(stream, choice.row).map((run) => [run.seed, run.seed])], choice.seed, (v) => { choice.seed = v; update(); })));
      matrix(stream, chart, choice.row, choice.seed);
    };
    side.append(make("div", {}, make("div", { class: "controls" }, make("label", {}, "Method", makeSelect(stream.rows.map((row, i) => [i, row.label]), choice.row, (v) => { choice.row = Number(v); choice.seed = ""; update(); })), seeds), chart));
    STATE.redraw.push(update);
  }
}

function forgettingSection(stream) {
  if (!stream.rows.some((row) => row.forgetting)) return;
  const section = addSection("forgetting", "Forgetting by task", "How many points of accuracy on a task are lost at the end, from the best after any earlier task: the mean over the seeds. Methods that learn all tasks at once have none.");
  addLegend(section);
  const chart = make("div", { class: "chart" });
  section.append(chart);
  STATE.redraw.push(() => forgetting(stream, chart));
}

function costSection(stream) {
  const section = addSection("cost", "Accuracy and forgetting against cost", "A point is a method. The dotted line joins those that no other method beats in both; faint points are switched off in the legend.");
  const there = (names) => names.filter((name) => stream.measures.includes(name) && stream.rows.some((row) => row.measures[stream.measures.indexOf(name)][0]));
  const x = there(PAGE.measures.filter((measure) => measure.less).map((measure) => measure.name)), costs = x.filter((name) => !measureOf(name).percent);
  const y = there(PAGE.measures.map((measure) => measure.name)).filter((name) => measureOf(name).percent);
  if (!costs.length || !y.length) return;
  const side = make("div", { class: "side" }), pick = (list, name) => (list.includes(name) ? name : list[0]);
  addLegend(section);
  section.append(side);
  costChart(stream, side, { x: pick(costs, "state_mb"), y: pick(y, "forgetting") }, costs, y);
  costChart(stream, side, { x: pick(costs, "total_seconds"), y: y[0] }, costs, y);
}

/** Add a chart of one measure against a cost, and the list of the methods that none beats in both. */
function costChart(stream, side, choice, costs, measures) {
  const chart = make("div", { class: "chart" }), about = make("p", {}), list = make("ol", { class: "front" });
  const value = (i, name) => shownStatistic(name, stream.rows[i].measures[stream.measures.indexOf(name)]);
  const update = () => {
    const best = against(stream, chart, choice.x, choice.y), word = measureOf(choice.y).less ? "least" : "most";
    about.textContent = `The ${word} ${titleOf(choice.y)} for its ${WORDS[choice.x]?.split(",")[0] || choice.x}: no other method is better in both. From the cheapest on:`;
    list.replaceChildren(...best.map((i) => make("li", {}, make("strong", {}, stream.rows[i].label), `: ${quantity(choice.x, value(i, choice.x))}, ${quantity(choice.y, value(i, choice.y))}`)));
  };
  side.append(make("div", {}, make("div", { class: "controls" },
    make("label", {}, "Show", makeSelect(measures.map((name) => [name, name]), choice.y, (v) => { choice.y = v; update(); })),
    make("label", {}, "against", makeSelect(costs.map((name) => [name, WORDS[name] ? `${WORDS[name]} (${name})` : name]), choice.x, (v) => { choice.x = v; update(); }))), chart, about, list));
  STATE.redraw.push(update);
}

/** Return a measure with its value in a sentence, such as 'memory kept 0.014 MB' or 'forgetting 4.4 ± 1.6 %'. */
function quantity(name, value) {
  const [word, unit] = WORDS[name]?.split(", ") || [name.replace(/_/g, " "), measureOf(name).percent ? "%" : ""];
  return `${word} ${value} ${unit}`.trim();
}

function settingsSection(stream) {
  const several = stream.keys.length > 2;
  if (!stream.swept.length && !several) return;
  const section = addSection("settings", "Settings", "Rows that the filter of the table leaves; bars are 95 % intervals of the mean.");
  const choice = { key: stream.swept[0], name: PAGE.measures[0].name }, curve = make("div", { class: "chart" }), lines = make("div", { class: "chart" });
  const update = () => { if (choice.key) againstKey(stream, curve, choice.key, choice.name); if (several) parallel(stream, lines, choice.name); };
  section.append(make("div", { class: "controls" }, make("label", {}, "Show", makeSelect(stream.measures.map((name) => [name, name]), choice.name, (v) => { choice.name = v; update(); })),
    choice.key && make("label", {}, "against", makeSelect(stream.swept.map((key) => [key, key]), choice.key, (v) => { choice.key = v; update(); }))));
  if (choice.key) section.append(curve);
  if (several) section.append(make("h3", {}, "All keys that differ"), lines);
  STATE.redraw.push(update);
}

function runsSection(stream) {
  const section = addSection("runs", "Runs", "Every run with its seed, why it counts as failed, its files, and the command that trains it again. Links lead to the folder of results, if the page is where it was written.");
  const place = make("div"), of = (run, name) => run.measures[stream.measures.indexOf(name)] ?? null;
  const item = (i, run) => ({ i, run, label: stream.rows[run.row].label, reason: reasonOf(stream, run) });
  const measures = ["average_accuracy", "forgetting", "accuracy_kept"].filter((name) => stream.measures.includes(name));
  const url = (run, file) => run.folder.split("/").map(encodeURIComponent).join("/") + "/" + file;
  section.append(place);
  const table = makeTable(place, "Runs", [
    { name: "method", text: true, value: ({ label }) => label, cell: ({ label }) => label },
    { name: "seed", value: ({ run }) => Number(run.seed), cell: ({ run }) => run.seed },
    { name: "fails", text: true, value: ({ reason }) => reason, cell: ({ reason }) => (reason ? make("span", { class: "bad" }, reason) : "") },
    ...measures.map((name) => ({ name: name.replace(/_/g, "\n"), title: measureOf(name).about, less: measureOf(name).less, value: ({ run }) => of(run, name), cell: ({ run }) => shown(name, of(run, name)) })),
    { name: "files", text: true, value: ({ run }) => run.folder, cell: ({ run }) => (run.folder ? make("span", {}, make("a", { href: url(run, "") }, "folder"), " ", make("a", { href: url(run, "config.yaml") }, "settings"), " ", make("a", { href: url(run, "summary.csv") }, "summary")) : "") },
    { name: "commit", text: true, value: ({ run }) => run.commit, cell: ({ run }) => make("code", { title: run.commit }, run.commit.slice(0, 7) + (run.commit.endsWith("+") ? "+" : "")) },
    { name: "command and warnings", text: true, long: true, value: ({ run }) => run.warnings.length, cell: ({ run }) => make("details", {},
      make("summary", {}, run.warnings.length ? `command, ${run.warnings.length} warning${run.warnings.length > 1 ? "s" : ""}` : "command"),
      make("p", {}, make("code", {}, run.command)), ...run.warnings.map((text) => make("p", { class: "warning" }, text)), make("p", { class: "note" }, `run ${run.run}, ${run.device}`)) },
  ], stream.runs.map((run, i) => item(i, run)), ({ run, label, reason }) => `${label} seed=${run.seed} ${run.seed} ${reason} ${run.warnings.join(" ")}`);
  return table;
}

// ---------------------------------------------------------------- the whole page

/** Show a stream: every section anew. */
function show(number) {
  document.getElementById("main").replaceChildren();
  document.getElementById("contents").replaceChildren();
  const stream = PAGE.streams[number];
  Object.assign(STATE, { stream: number, order: [], on: new Set(), redraw: [], legends: [] });
  document.getElementById("origin").textContent = `${stream.title}. ${stream.runs.length} runs from ${PAGE.folder}; written ${PAGE.made} by clrun ${PAGE.version}.`;
  let runs = null;
  STATE.order = bestFirst(stream);
  glanceSection(stream, () => runs);
  const buildMethods = methodsSection(stream, () => runs);
  buildMethods();
  STATE.on = new Set(STATE.order.slice(0, FEW));
  curvesSection(stream);
  forgettingSection(stream);
  costSection(stream);
  matricesSection(stream);
  if (stream.classes.length) {
    STATE.redraw.push(confusionSection(stream, addSection("confusion", "What was taken for what", "Of 100 test samples of a class, how many were taken for which class.")));
    classesSection(stream, addSection("classes", "Accuracy by class", "Of 100 test samples of a class, how many were recognised, over all seeds; empty where the class has not been learnt yet."));
  }
  settingsSection(stream);
  if (stream.rows.length > 1) {
    STATE.redraw.push(comparisonSection(stream, addSection("comparison", "Two methods compared", "Computed on this page from the values by seed, as clrun-report --compare does: a paired t-interval. It is for a single comparison: if you make k comparisons, use intervals of level 1 - 0.05 / k.")));
  }
  runs = runsSection(stream);
  redraw();
}

function setTheme(choice) {
  const dark = choice === "dark" || (choice === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

function start() {
  const theme = document.getElementById("theme"), stream = document.getElementById("stream");
  const change = () => { setTheme(theme.value); redraw(); };
  theme.addEventListener("change", change);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", change);
  const width = (chart, wide) => chart.data && Plotly.relayout(chart, wide ? { width: null, autosize: true } : { width: chart.closest(".side") ? 480 : 980 });
  const charts = (wide) => document.querySelectorAll(".chart").forEach((chart) => width(chart, wide));
  addEventListener("beforeprint", () => { setTheme("light"); redraw(); charts(false); });
  addEventListener("afterprint", () => { setTheme(theme.value); redraw(); charts(true); });
  setTheme("auto");
  PAGE.streams.forEach((one, i) => stream.append(make("option", { value: i }, one.title)));
  stream.addEventListener("change", () => show(Number(stream.value)));
  document.getElementById("stream-choice").hidden = PAGE.streams.length < 2;
  if (PAGE.progress) progressSection(document.getElementById("progress"));
  if (PAGE.streams.length) show(0);
  else document.getElementById("origin").textContent = `No run in ${PAGE.folder} has finished yet; written ${PAGE.made} by clrun ${PAGE.version}.`;
  if (PAGE.progress?.every && history.state) restore(history.state);
}

start();
