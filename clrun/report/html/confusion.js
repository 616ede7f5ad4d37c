// What was taken for what after each task.

/** Return the counts of a method: counts(true, predicted) over its seeds, or one of them, and over the tested tasks. */
function confusionCounts(stream, { row, seed, after, task }) {
  const lists = stream.row_confusions[row] ? [stream.row_confusions[row]]
    : stream.runs.flatMap((run, i) => (run.row === row && (seed === "" || run.seed === seed) && stream.confusions[i] ? [stream.confusions[i]] : []));
  const counts = new Map();
  for (const list of lists) {
    for (let k = 0; k < list.length; k += 5) {
      if (list[k] !== after || (task !== 0 && list[k + 1] !== task)) continue;
      const key = list[k + 2] * stream.classes.length + list[k + 3];
      counts.set(key, (counts.get(key) || 0) + list[k + 4]);
    }
  }
  return counts;
}

/** Return [predicted, share], the largest first, of the samples of a class. */
function takenFor(stream, counts, name) {
  const C = stream.classes.length, true_ = stream.classes.indexOf(name);
  const found = [...counts].filter(([key]) => Math.floor(key / C) === true_).map(([key, n]) => [stream.classes[key % C], n]);
  const all = found.reduce((sum, [, n]) => sum + n, 0);
  return found.map(([predicted, n]) => [predicted, n / all]).sort((a, b) => b[1] - a[1]);
}

/** Return a sentence such as 'taken for 9 (45 %), 7 (30 %)'. */
function takenText(found, name) {
  if (!found.length) return "was not tested: it has not been learnt yet";
  const right = found.find(([predicted]) => predicted === name)?.[1] || 0;
  const wrong = found.filter(([predicted]) => predicted !== name);
  const told = wrong.filter(([, share]) => share >= 0.005).slice(0, 4); // what is not 0 % when it is rounded
  const named = told.map(([predicted, share]) => `${predicted} (${(100 * share).toFixed(0)} %)`).join(", ");
  const rest = wrong.filter((one) => !told.includes(one)).reduce((sum, [, share]) => sum + share, 0);
  const list = named ? `taken for ${named}${rest > 0.005 ? `, others (${(100 * rest).toFixed(0)} %)` : ""}; ` : "";
  return `${list}right: ${(100 * right).toFixed(0)} %`;
}

/** Return [predicted, pictures], as in `found`, of misjudged samples of a class; pictures are numbers on the sheet. */
function examplesOf(stream, { row, seed, after, name }, found) {
  const list = stream.pictures?.examples || [], true_ = stream.classes.indexOf(name), shown = new Map();
  for (let k = 0; k < list.length; k += 5) {
    const run = stream.runs[list[k]];
    if (run.row !== row || (seed !== "" && run.seed !== seed) || list[k + 1] !== after || list[k + 2] !== true_) continue;
    const predicted = stream.classes[list[k + 3]];
    shown.set(predicted, [...new Set([...(shown.get(predicted) || []), list[k + 4]])]);
  }
  return found.filter(([predicted]) => shown.has(predicted)).map(([predicted]) => [predicted, shown.get(predicted)]);
}

/** Return an element that shows a picture of the sheet. */
function tileOf(pictures, number, title) {
  const [height, width] = pictures.tile, scale = 48 / Math.max(height, width), x = number % pictures.columns, y = Math.floor(number / pictures.columns);
  const size = `width:${width * scale}px;height:${height * scale}px;background-position:${-x * width * scale}px ${-y * height * scale}px;background-size:${pictures.columns * width * scale}px auto`;
  return make("span", { class: "tile", role: "img", "aria-label": title, title, style: size });
}

/** Return pictures of misjudged samples, grouped by the class that they were taken for. */
function exampleFigures(stream, choice, found) {
  return examplesOf(stream, choice, found).slice(0, 8).map(([predicted, tiles]) => make("figure", {},
    make("div", {}, ...tiles.map((tile) => tileOf(stream.pictures, tile, `a ${choice.name} taken for ${predicted}`))), make("figcaption", {}, `taken for ${cut(predicted, 24)}`)));
}

function stagesOf(stream) {
  const lists = [...stream.confusions.filter(Boolean), ...Object.values(stream.row_confusions)];
  return [...new Set(lists.flatMap((list) => list.filter((_, k) => k % 5 === 0)))].sort((a, b) => a - b);
}

function testedTasksOf(stream) {
  const lists = stream.confusions.filter(Boolean);
  return [...new Set(lists.flatMap((list) => list.filter((_, k) => k % 5 === 1)))].filter(Boolean).sort((a, b) => a - b);
}

function withConfusions(stream) {
  return stream.rows.map((_, i) => i).filter((i) => stream.row_confusions[i] || stream.runs.some((run, k) => run.row === i && stream.confusions[k]));
}

/** Return the first of some rows in the order of the table that is no bound, as joint is; the first where all are. */
function firstMethod(stream, rows) {
  const ordered = STATE.order.filter((i) => rows.includes(i));
  return ordered.find((i) => !stream.rows[i].bound) ?? ordered[0] ?? rows[0];
}

/** Return the class of which a method takes the largest share for another one: {name, found}; undefined where it mistakes none. */
function mostConfused(stream, choice) {
  const counts = confusionCounts(stream, choice);
  const wrong = stream.classes.map((name) => { const found = takenFor(stream, counts, name); return { name, found, share: found.length ? 1 - share(found, name) : 0 }; });
  return wrong.filter((one) => one.share > 0).sort((a, b) => b.share - a.share)[0];
}

/** Fill the section with the accuracy on each class, a row a method. */
function classesSection(stream, section) {
  const stages = stagesOf(stream), choice = { after: stages[stages.length - 1] }, place = make("div");
  const rows = withConfusions(stream);
  section.append(make("div", { class: "controls" }, make("label", {}, "after task", makeSelect(stages.map((k) => [k, k]), choice.after, (v) => { choice.after = Number(v); fill(); }))), place);
  function fill() {
    const items = STATE.order.concat(rows).filter((row, k, all) => rows.includes(row) && all.indexOf(row) === k).map((row) => {
      const counts = confusionCounts(stream, { row, seed: "", after: choice.after, task: 0 });
      return { row, shares: stream.classes.map((name) => { const found = takenFor(stream, counts, name); return found.length ? share(found, name) : null; }) };
    });
    makeTable(place, "Accuracy by class", [
      { name: "method", text: true, value: ({ row }) => stream.rows[row].label, cell: ({ row }) => stream.rows[row].label },
      ...stream.classes.map((name, k) => ({ name: cut(name, 18), title: name, value: ({ shares }) => shares[k], cell: ({ shares }) => (shares[k] == null ? "" : (100 * shares[k]).toFixed(1)) })),
    ], items, ({ row }) => stream.rows[row].label);
  }
  fill();
}

/** Fill the section on confusions. */
function confusionSection(stream, section) {
  const stages = stagesOf(stream), tested = testedTasksOf(stream);
  const withAny = withConfusions(stream);
  const choice = { row: firstMethod(stream, withAny), seed: "", after: stages[stages.length - 1], task: 0 };
  choice.name = mostConfused(stream, choice)?.name ?? stream.classes[0];
  const pictures = make("div", { class: "examples" }), map = make("div", { class: "chart" }), answer = make("p", { class: "answer", role: "status" }), all = make("div"), seeds = make("span");
  const change = (name, read = (v) => v) => (value) => { choice[name] = read(value); update(); };
  section.append(
    make("div", { class: "controls" },
      make("label", {}, "Method", makeSelect(withAny.map((i) => [i, stream.rows[i].label]), choice.row, (v) => { choice.row = Number(v); choice.seed = ""; update(); })), seeds,
      make("label", {}, "after task", makeSelect(stages.map((k) => [k, k]), choice.after, change("after", Number))),
      tested.length > 1 && make("label", {}, "tested on", makeSelect([[0, "all tasks"], ...tested.map((k) => [k, `task ${k}`])], 0, change("task", Number))) || null,
      make("label", {}, "What is a", makeSelect(stream.classes.map((name) => [name, name]), choice.name, change("name")), "taken for?")),
    make("p", { class: "note no-print" }, "It opens on the best method that neither learns all tasks at once nor keeps all data, and on the class that it mistakes most."),
    answer, pictures, map, all);
  map.style.maxWidth = widthOfMap(stream.classes.length);
  if (stream.pictures) document.documentElement.style.setProperty("--sheet", `url(${stream.pictures.sheet})`);

  function update() {
    const runs = stream.row_confusions[choice.row] ? [] : runsOf(stream, choice.row);
    seeds.replaceChildren(make("label", {}, "seed", makeSelect([["", "all together"], ...runs.map((run) => [run.seed, run.seed])], choice.seed, change("seed"))));
    const counts = confusionCounts(stream, choice), C = stream.classes.length, label = stream.rows[choice.row].label;
    const totals = Array(C).fill(0);
    counts.forEach((n, key) => { totals[Math.floor(key / C)] += n; });
    const values = totals.map((total, i) => Array.from({ length: C }, (_, j) => (total ? (100 * (counts.get(i * C + j) || 0)) / total : null)));
    const mine = takenFor(stream, counts, choice.name);
    answer.textContent = `${label}, after task ${choice.after}: ${choice.name} is ${takenText(mine, choice.name)}.`.replace("is was", "was");
    pictures.replaceChildren(...exampleFigures(stream, choice, mine));
    heatMap(map, values, stream.classes, stream.classes, { x: "taken for", y: "class", few: C <= 12,
      hover: (i, j, v) => `${plain(stream.classes[i])} taken for ${plain(stream.classes[j])}: ${v.toFixed(1)} % of ${totals[i]}` });
    const lines = [...STATE.order, ...withAny].filter((row, k, rows) => withAny.includes(row) && rows.indexOf(row) === k).map((row) => ({ row, found: takenFor(stream, confusionCounts(stream, { ...choice, row, seed: "" }), choice.name) }));
    makeTable(all, `What ${choice.name} is taken for after task ${choice.after}, by method`, [
      { name: "method", text: true, value: ({ row }) => stream.rows[row].label, cell: ({ row }) => stream.rows[row].label },
      { name: "right, %", value: ({ found }) => share(found, choice.name), cell: ({ found }) => (found.length ? (100 * share(found, choice.name)).toFixed(0) : "") },
      { name: "taken for", text: true, long: true, value: ({ found }) => takenText(found, choice.name), cell: ({ found }) => takenText(found, choice.name) },
    ], lines, ({ row, found }) => `${stream.rows[row].label} ${takenText(found, choice.name)}`);
  }

  update();
  return update;
}

function share(found, name) {
  return found.find(([predicted]) => predicted === name)?.[1] || 0;
}
