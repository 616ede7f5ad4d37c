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
  const named = wrong.slice(0, 4).map(([predicted, share]) => `${predicted} (${(100 * share).toFixed(0)} %)`).join(", ");
  const rest = wrong.slice(4).reduce((sum, [, share]) => sum + share, 0);
  const list = named ? `taken for ${named}${rest > 0.005 ? `, others (${(100 * rest).toFixed(0)} %)` : ""}; ` : "";
  return `${list}right: ${(100 * right).toFixed(0)} %`;
}

function stagesOf(stream) {
  const lists = [...stream.confusions.filter(Boolean), ...Object.values(stream.row_confusions)];
  return [...new Set(lists.flatMap((list) => list.filter((_, k) => k % 5 === 0)))].sort((a, b) => a - b);
}

function testedTasksOf(stream) {
  const lists = stream.confusions.filter(Boolean);
  return [...new Set(lists.flatMap((list) => list.filter((_, k) => k % 5 === 1)))].filter(Boolean).sort((a, b) => a - b);
}

/** Fill the section on confusions. */
function confusionSection(stream, section) {
  const stages = stagesOf(stream), tested = testedTasksOf(stream);
  const withAny = stream.rows.map((_, i) => i).filter((i) => stream.row_confusions[i] || stream.runs.some((run, k) => run.row === i && stream.confusions[k]));
  const choice = { row: STATE.order.find((i) => withAny.includes(i)) ?? withAny[0], seed: "", after: stages[stages.length - 1], task: 0, name: stream.classes[0] };
  const map = make("div", { class: "chart" }), answer = make("p", { class: "answer", role: "status" }), all = make("div"), seeds = make("span");
  const change = (name, read = (v) => v) => (value) => { choice[name] = read(value); update(); };
  section.append(
    make("div", { class: "controls" },
      make("label", {}, "Method", makeSelect(withAny.map((i) => [i, stream.rows[i].label]), choice.row, (v) => { choice.row = Number(v); choice.seed = ""; update(); })), seeds,
      make("label", {}, "after task", makeSelect(stages.map((k) => [k, k]), choice.after, change("after", Number))),
      tested.length > 1 && make("label", {}, "tested on", makeSelect([[0, "all tasks"], ...tested.map((k) => [k, `task ${k}`])], 0, change("task", Number))) || null,
      make("label", {}, "What is a", makeSelect(stream.classes.map((name) => [name, name]), choice.name, change("name")), "taken for?")),
    answer, map, all);

  function update() {
    const runs = stream.row_confusions[choice.row] ? [] : runsOf(stream, choice.row);
    seeds.replaceChildren(make("label", {}, "seed", makeSelect([["", "all together"], ...runs.map((run) => [run.seed, run.seed])], choice.seed, change("seed"))));
    const counts = confusionCounts(stream, choice), C = stream.classes.length, label = stream.rows[choice.row].label;
    const totals = Array(C).fill(0);
    counts.forEach((n, key) => { totals[Math.floor(key / C)] += n; });
    const values = totals.map((total, i) => Array.from({ length: C }, (_, j) => (total ? (100 * (counts.get(i * C + j) || 0)) / total : null)));
    answer.textContent = `${label}, after task ${choice.after}: ${choice.name} is ${takenText(takenFor(stream, counts, choice.name), choice.name)}.`.replace("is was", "was");
    heatMap(map, values, stream.classes, stream.classes, { x: "taken for", y: "class", few: C <= 12,
      hover: (i, j, v) => `${plain(stream.classes[i])} taken for ${plain(stream.classes[j])}: ${v.toFixed(1)} % of ${totals[i]}` });
    const lines = withAny.map((row) => ({ row, found: takenFor(stream, confusionCounts(stream, { ...choice, row, seed: "" }), choice.name) }));
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
