// The answers that are asked for most, in a few sentences at the top.

const LISTED = 8; // methods in a sentence

/** Add the section with the answers. runsTable: returns the table of runs. */
function glanceSection(stream, runsTable) {
  const answers = [mostAccurate(stream), leastForgotten(stream), failing(stream, runsTable), mistaken(stream)].filter(Boolean);
  if (!answers.length) return;
  const list = make("dl", { class: "glance" });
  answers.forEach(([question, ...parts]) => list.append(make("dt", {}, question), make("dd", {}, ...parts)));
  addSection("glance", "At a glance").append(list);
}

function measured(stream, i, name) {
  return stream.rows[i].measures[stream.measures.indexOf(name)]?.[1] ?? null;
}

/** Return a row's value as it is shown: mean ± deviation. */
function valueOf(stream, i, name) {
  return shownStatistic(name, stream.rows[i].measures[stream.measures.indexOf(name)]);
}

/** Return that a row is a bound and no contender, such as ' (keeps all data)'; '' for all others. */
function boundNote(stream, i) {
  return stream.rows[i].bound ? ` (${stream.rows[i].bound})` : "";
}

/** Which methods are the most accurate? */
function mostAccurate(stream) {
  const name = PAGE.measures[0].name, unit = measureOf(name).percent ? " %" : "";
  const rows = bestFirst(stream).filter((i) => measured(stream, i, name) != null);
  if (!rows.length) return null;
  const told = (i) => `${stream.rows[i].label} ${valueOf(stream, i, name)}${unit}${boundNote(stream, i)}`;
  return [`Which is best in ${name.replace(/_/g, " ")}?`, rows.slice(0, 3).map(told).join(", "), rows.length > 3 ? `, ... , ${told(rows[rows.length - 1])}.` : ".", " ", make("a", { href: "#methods" }, "All")];
}

/** Which methods forget least for the memory that they keep? */
function leastForgotten(stream) {
  const points = pointsOf(stream, "state_mb", "forgetting");
  const best = front(points, true, true).sort((a, b) => points[a][0] - points[b][0]);
  if (!best.length) return null;
  const accuracy = (i) => (measured(stream, i, "average_accuracy") == null ? "" : `, accuracy ${valueOf(stream, i, "average_accuracy")} %`);
  const told = best.slice(0, LISTED).map((i) => make("li", {}, make("strong", {}, stream.rows[i].label), `${boundNote(stream, i)} keeps ${valueOf(stream, i, "state_mb")} MB and loses ${valueOf(stream, i, "forgetting")} points${accuracy(i)}`));
  return ["Which forgets least for its memory?", "No other method forgets less with as little memory beside the network as these, from the least memory on. (One that has learnt little has little to forget: see its accuracy.)",
    make("ul", {}, ...told), best.length > LISTED ? `and ${best.length - LISTED} more. ` : "", make("a", { href: "#cost" }, "Chart")];
}

/** Return the first names of a list, and how many more there are. */
function shortList(names, most) {
  return names.length <= most ? names.join(", ") : `${names.slice(0, most).join(", ")} and ${names.length - most} more`;
}

/** Return by how much a row is better than finetune on the seeds on which it does not fail: often hardly. */
function onTheOthers(stream, i, failed) {
  const place = stream.measures.indexOf("accuracy_kept");
  const kept = runsOf(stream, i).filter((run) => !failed.includes(run.seed)).map((run) => run.measures[place]).filter((v) => v != null);
  if (!kept.length) return "";
  const [least, most] = [Math.min(...kept), Math.max(...kept)].map((v) => shown("accuracy_kept", v));
  return `; on the others better by ${least === most ? most : `${least} to ${most}`} points`;
}

/** On which seeds do methods fail? */
function failing(stream, runsTable) {
  const found = stream.rows.map((row, i) => ({ row, i, failed: failures(stream, i), all: runsOf(stream, i).length })).filter(({ failed }) => failed.length);
  const question = "Which fail, and on which seeds?", rule = "A run fails that diverged, or is no better than finetune with its seed or than guessing.";
  const kept = stream.measures.indexOf("accuracy_kept"), unknown = stream.rows.filter((row) => !["finetune", "joint"].includes(row.strategy) && row.n && (kept < 0 || row.measures[kept][1] == null)).map((row) => row.label);
  const untold = unknown.length ? `Without a finetune of the same lr, epochs and network, only divergence and guessing could be looked at, of ${shortList(unknown, 4)}. ` : "";
  if (!found.length) return [question, `None. ${rule} ${untold}`];
  const told = ({ row, i, failed, all }) => make("li", {}, make("strong", {}, row.label), ": ", make("a", { href: "#runs", onclick: () => runsTable().filterBy(row.label) },
    failed.length === all ? (all > 1 ? `all ${all} seeds` : `seed ${failed[0][0]}, the only one`) : `seed${failed.length > 1 ? "s" : ""} ${failed.map(([seed]) => seed).join(", ")} of ${all}`), ` (${[...new Set(failed.map(([, reason]) => reason.replace(/ at .*/, "")))].join("; ")})${onTheOthers(stream, i, failed.map(([seed]) => seed))}`);
  return [question, rule, make("ul", {}, ...found.slice(0, LISTED).map(told)), found.length > LISTED ? `and ${found.length - LISTED} more methods: ` : "", untold, make("a", { href: "#methods" }, "column \"fails on seeds\"")];
}

/** What does the best method that learns in sequence mistake most? */
function mistaken(stream) {
  if (!stream.classes.length) return null;
  const rows = withConfusions(stream);
  if (!rows.length) return null;
  const stages = stagesOf(stream), after = stages[stages.length - 1], row = firstMethod(stream, rows), worst = mostConfused(stream, { row, seed: "", after, task: 0 });
  const link = make("a", { href: "#confusion" }, "Every class, after every task");
  if (!worst) return ["What is taken for what?", `${stream.rows[row].label} mistakes nothing after task ${after}. `, link];
  return ["What is taken for what?", `After task ${after}, ${stream.rows[row].label} mistakes ${worst.name} most: ${takenText(worst.found, worst.name)}. `, link];
}
