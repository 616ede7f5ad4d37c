// The comparison of two rows, paired by seed.

/** Return what an interval allows to conclude. */
function conclusion([n, mean, , low, high]) {
  if (n < 2) return "Too few pairs with the same seed to tell anything: run both with 5 seeds.";
  if (low > 0 || high < 0) return "The interval excludes 0.";
  return mean === 0 ? "They are too few to tell them apart, if they differ at all." : "The interval includes 0: they are too few to tell them apart.";
}

/** Fill the section in which two rows are compared. */
function comparisonSection(stream, section) {
  const rows = stream.rows.map((row, i) => [i, row.label]);
  const choice = { a: STATE.order[0] ?? 0, b: STATE.order[1] ?? 0, name: PAGE.measures[0].name };
  const answer = make("p", { class: "answer", role: "status" }), chart = make("div", { class: "chart" });
  const change = (name, read = (v) => v) => (value) => { choice[name] = read(value); update(); };
  section.append(make("div", { class: "controls" },
    make("label", {}, makeSelect(rows, choice.a, change("a", Number))), "minus", make("label", {}, makeSelect(rows, choice.b, change("b", Number))),
    make("label", {}, "in", makeSelect(stream.measures.map((name) => [name, name]), choice.name, change("name")))), answer, chart);

  function update() {
    const found = differences(stream, choice.a, choice.b, choice.name), result = statistic(found.map(([, d]) => d), measureOf(choice.name).bounded);
    const [a, b] = [stream.rows[choice.a], stream.rows[choice.b]], unit = (v) => (measureOf(choice.name).percent ? 100 * v : v);
    const diverged = a.diverged + b.diverged, show = (v) => shown(choice.name, v);
    const interval = result[0] > 1 ? `${show(result[1])} (95 % interval [${show(result[3])}, ${show(result[4])}], n = ${result[0]} pairs by seed). ` : `n = ${result[0]}. `;
    answer.textContent = `${choice.name}, ${a.label} minus ${b.label}: ${interval}${conclusion(result)}${diverged ? ` ${diverged} diverged runs are left out.` : ""}`;
    const points = { x: found.map(([, d]) => unit(d)), y: found.map(() => 0.35), mode: "markers", hoverinfo: "text", text: found.map(([seed, d]) => `seed ${plain(seed)}: ${show(d)}`),
      marker: { size: 11, color: visible("#0072B2"), symbol: "circle-open", line: { width: 2 } } };
    const mean = { x: [unit(result[1])], y: [0.75], mode: "markers", hoverinfo: "text", text: [`mean ${show(result[1])}`], marker: { size: 12, color: visible("#D55E00"), symbol: "diamond" },
      error_x: result[0] > 1 ? { type: "data", symmetric: false, array: [unit(result[4] - result[1])], arrayminus: [unit(result[1] - result[3])], thickness: 2, width: 8 } : undefined };
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    draw(chart, found.length ? [points, mean] : [], { shapes: [{ type: "line", x0: 0, x1: 0, y0: 0, y1: 1, line: { color: ink, width: 1 } }], xaxis: { title: `difference in ${titleOf(choice.name).replace("(%)", "(points)")}` },
      yaxis: { tickvals: [0.35, 0.75], ticktext: ["by seed", "mean, interval"], range: [0, 1], showgrid: false } , margin: { l: 90, r: 16, t: 12, b: 46 } }, 190);
  }

  update();
  return update;
}
