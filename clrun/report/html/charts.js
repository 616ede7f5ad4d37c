// The charts of a stream. Every chart shows the methods that the legend has switched on.

const FEW = 8; // methods that are on from the start: more curves are hard to tell apart
const NAMED = 14; // points with names beside them

/** Draw traces into a place, in the colours of the page. */
function draw(place, traces, layout, height = 380) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, linecolor: ink, zerolinecolor: line, automargin: true, fixedrange: true };
  const whole = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 }, height,
    margin: { l: 56, r: 12, t: layout.title ? 40 : 12, b: 46 }, showlegend: false, hovermode: "closest", dragmode: false,
    hoverlabel: { namelength: -1, align: "left" }, ...layout };
  for (const name of ["xaxis", "yaxis"]) whole[name] = { ...axis, ...layout[name], title: { text: layout[name]?.title || "", standoff: 8 } };
  place.style.minHeight = height + "px";
  Plotly.react(place, traces, whole, { displayModeBar: false, responsive: true });
}

/** Return the rows that the legend has switched on, in the order of the table. */
function on(stream) {
  return STATE.order.filter((row) => STATE.on.has(row)).map((row) => ({ row, ...stream.rows[row] }));
}

function lineStyle(style, width = 2) {
  return { line: { color: visible(style.color), dash: style.dash, width }, marker: { color: visible(style.color), symbol: style.symbol, size: 7 } };
}

/** Return horizontal lines for joint, finetune and guessing; those far below the curves, which they would flatten, as a text. */
function referenceLines(stream, traces) {
  const dashes = { joint: "longdash", finetune: "dot", chance: "3px,6px" }, names = { chance: "guessing" };
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--faint").trim();
  const y = traces.flatMap((trace) => trace.y).filter((v) => v != null), low = Math.min(...y), high = Math.max(...y);
  const all = Object.entries(stream.references).filter(([, value]) => value != null);
  const lines = all.filter(([, value]) => low - 100 * value <= 1.5 * (high - low)), below = all.filter((line) => !lines.includes(line));
  const text = below.map(([name, value]) => `${names[name] || name} ${number(value)}`).join(", ");
  const note = { xref: "paper", yref: "paper", x: 0.01, y: 0.01, xanchor: "left", yanchor: "bottom", showarrow: false, text: `below this chart: ${text}`, font: { size: 11, color: ink } };
  return {
    shapes: lines.map(([name, value]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 100 * value, y1: 100 * value, layer: "below",
      line: { color: ink, width: 1, dash: dashes[name] } })),
    annotations: [...(below.length ? [note] : []), ...lines.map(([name, value]) => ({ xref: "paper", x: 1, xanchor: "right", y: 100 * value, yanchor: "bottom", showarrow: false,
      text: names[name] || name, font: { size: 11, color: ink } }))],
  };
}

// ---------------------------------------------------------------- accuracy

function tasksOf(stream) {
  return Math.max(0, ...stream.matrices.filter(Boolean).map((matrix) => matrix.length - 1));
}

/** Return the accuracies of a run after each task: on one task (from 1), or for 0 the average so far. */
function afterTasks(matrix, task) {
  return matrix.slice(1).map((row) => (task === 0 ? row[row.length - 1] : row.length > 1 ? row[task - 1] : null));
}

/** Return a sentence on lines that lie on each other. lines: [label, values]; "" where all can be told apart. */
function equalLines(lines) {
  const groups = new Map();
  lines.forEach(([label, values]) => { const key = values.map((v) => (v == null ? "" : v.toFixed(4))).join(); groups.set(key, [...(groups.get(key) || []), label]); });
  const same = [...groups.values()].filter((labels) => labels.length > 1).map((labels) => labels.join(" = "));
  return same.length ? `On each other, since they are equal: ${same.join("; ")}.` : "";
}

/** Add the accuracy over the tasks learnt: the mean of each method with markers, and faint lines for the seeds. */
function overTasks(stream, place, task) {
  const lines = [];
  const traces = on(stream).flatMap(({ row, label, style }) => {
    const runs = stream.runs.map((run, i) => ({ ...run, matrix: stream.matrices[i] }))
      .filter((run) => run.row === row && run.status === "done" && run.matrix);
    if (!runs.length) return [];
    const values = runs.map((run) => afterTasks(run.matrix, task));
    const x = values[0].map((_, k) => k + 1);
    const mean = x.map((_, k) => meanOf(values.map((v) => v[k])));
    lines.push([label, mean]);
    const seeds = { x: [], y: [], text: [] };
    runs.forEach((run, i) => values[i].forEach((v, k) => {
      if (k === 0) { seeds.x.push(null); seeds.y.push(null); seeds.text.push(""); }
      seeds.x.push(k + 1); seeds.y.push(percent(v)); seeds.text.push(`${plain(label)}, seed ${run.seed}<br>after task ${k + 1}: ${number(v)} %`);
    }));
    return [
      { ...seeds, mode: "lines", hoverinfo: "text", ...lineStyle(style, 1), opacity: 0.45 },
      { x, y: mean.map(percent), mode: "lines+markers", ...lineStyle(style, 2.5), hoverinfo: "text",
        text: mean.map((v, k) => `${plain(label)}, mean of ${runs.length} seeds<br>after task ${k + 1}: ${number(v)} %`) },
    ];
  });
  const title = task === 0 ? "average accuracy so far (%)" : `accuracy on task ${task} (%)`;
  draw(place, traces, { xaxis: { title: "tasks learnt", dtick: tasksOf(stream) > 20 ? null : 1 }, yaxis: { title }, ...(task === 0 ? referenceLines(stream, traces) : {}) });
  return equalLines(lines);
}

/** Add the accuracy within tasks, over the steps, one line for each run. */
function withinTasks(stream, place, task) {
  const traces = on(stream).flatMap(({ row, label, style }) => {
    const line = { x: [], y: [], text: [] };
    stream.runs.forEach((run, i) => {
      const curve = stream.curves[i];
      if (run.row !== row || !curve) return;
      line.x.push(null); line.y.push(null); line.text.push("");
      curve.steps.forEach((step, k) => {
        const seen = curve.tasks.slice(0, Math.max(1, stream.rows[row].strategy === "joint" ? curve.tasks.length : curve.stages[k]));
        const value = task === 0 ? meanOf(seen.map((values) => values[k])) : curve.tasks[task - 1]?.[k];
        line.x.push(step); line.y.push(percent(value));
        line.text.push(`${plain(label)}, seed ${run.seed}<br>step ${step}, learning task ${curve.stages[k]}: ${number(value)} %`);
      });
    });
    return line.x.length ? [{ ...line, mode: "lines", hoverinfo: "text", ...lineStyle(style, 1.4) }] : [];
  });
  const curves = stream.curves.filter((curve, i) => curve && STATE.on.has(stream.runs[i].row));
  const changes = curves.map((curve) => curve.steps.filter((_, k) => k + 1 < curve.steps.length && curve.stages[k] > 0 && curve.stages[k + 1] !== curve.stages[k]));
  const equal = new Set(changes.map(String)).size === 1; // methods that train on old tasks again take more steps
  const shapes = (equal ? changes[0] : []).map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: "#888", width: 1, dash: "dot" } }));
  const title = task === 0 ? "average accuracy so far (%)" : `accuracy on task ${task} (%)`;
  const lines = on(stream).flatMap(({ row, label }) => {
    const mine = stream.curves.filter((curve, i) => curve && stream.runs[i].row === row);
    return mine.length ? [[label, mine.flatMap((curve) => curve.tasks.flat())]] : [];
  });
  draw(place, traces, { shapes, xaxis: { title: equal ? "training steps (dotted: a new task begins)" : "training steps; tasks begin at different ones" }, yaxis: { title } });
  return equalLines(lines);
}

/** Draw the accuracy matrix of a row: the mean over its seeds, or that of one run. */
function matrix(stream, place, row, seed) {
  const runs = stream.runs.map((run, i) => ({ ...run, matrix: stream.matrices[i] }))
    .filter((run) => run.row === row && run.matrix && run.matrix[0].length > 1 && (seed === "" ? run.status === "done" : run.seed === seed));
  if (!runs.length) return place.replaceChildren(make("p", { class: "note" }, "No accuracy matrix is on this page for this choice."));
  const mean = runs[0].matrix.map((values, after) => values.slice(0, -1).map((_, task) => meanOf(runs.map((run) => run.matrix[after]?.[task]))));
  const T = mean[0].length;
  return heatMap(place, mean.map((values) => values.map(percent)), numbers(T), ["none", ...numbers(T)], {
    x: "accuracy (%) on task", y: "after learning task", few: T <= 12,
    hover: (after, task, value) => `after task ${after || "0 (untrained)"}, on task ${task + 1}: ${value.toFixed(1)} %` });
}

/** Draw values (rows of columns, in percent) as a heat map, with numbers where they are few. */
function heatMap(place, values, columns, rows, { x, y, few, hover, range = [0, 100], zeros = false }) {
  const flat = values.flatMap((row, i) => row.map((v, j) => [i, j, v])).filter(([, , v]) => v != null);
  const middle = (range[0] + range[1]) / 2;
  const texts = few ? [{ type: "scatter", mode: "text", x: flat.map(([, j]) => j), y: flat.map(([i]) => i), hoverinfo: "skip",
    text: flat.map(([, , v]) => (Math.abs(v) < 0.05 ? (zeros ? "0" : "") : v >= 99.95 ? "100" : v.toFixed(v < 9.95 ? 1 : 0))),
    textfont: { size: 11, color: flat.map(([, , v]) => (v < middle + 0.05 * (range[1] - range[0]) ? "#ffffff" : "#000000")) } }] : [];
  const map = { type: "heatmap", z: values, zmin: range[0], zmax: range[1], colorscale: "Cividis", showscale: !few, xgap: 1, ygap: 1, hoverinfo: "text", hoverongaps: false,
    text: values.map((row, i) => row.map((v, j) => (v == null ? "" : hover(i, j, v)))) };
  const tick = (names) => ({ tickvals: thinned(names), ticktext: thinned(names).map((k) => plain(cut(names[k], 18))) });
  draw(place, [map, ...texts], { xaxis: { title: x, ...tick(columns), showgrid: false, zeroline: false },
    yaxis: { title: y, ...tick(rows), autorange: "reversed", showgrid: false, zeroline: false }, margin: { l: 70, r: 12, t: 12, b: 60 } },
  Math.min(680, 110 + Math.max(8, rows.length) * (few ? 26 : 20)));
}

/** Return the largest width of a heat map whose cells are not much wider than high. */
function widthOfMap(columns) {
  return `${Math.max(420, 130 + (columns <= 12 ? 56 : 24) * columns)}px`;
}

function thinned(names) {
  const step = Math.ceil(names.length / 30);
  return names.map((_, k) => k).filter((k) => k % step === 0);
}

// ---------------------------------------------------------------- forgetting, cost, settings

/** Draw what each method forgets of each task, one row a method. */
function forgetting(stream, place) {
  const rows = on(stream).filter((row) => row.forgetting);
  if (!rows.length) return draw(place, [], {}, 120);
  const T = rows[0].forgetting.length - 1;
  const values = rows.map((row) => row.forgetting.slice(0, T).map(percent));
  const most = Math.max(1, ...values.flat().filter((v) => v != null));
  return heatMap(place, values, numbers(T), rows.map((row) => row.label), { x: "points lost on task", y: "", few: T <= 12, range: [0, most], zeros: true,
    hover: (i, j, v) => `${plain(rows[i].label)}: ${v.toFixed(1)} points lost on task ${j + 1}` });
}

/** Return the means of two measures of each row, as far as they are shown: equal ones are equal; null where a row lacks one. */
function pointsOf(stream, x, y) {
  const [px, py] = [x, y].map((name) => stream.measures.indexOf(name));
  const of = (name, value) => (measureOf(name).percent ? Number(value.toFixed(3)) : Number(value.toPrecision(3)));
  return stream.rows.map((row) => {
    const [a, b] = [row.measures[px]?.[1] ?? null, row.measures[py]?.[1] ?? null];
    return a == null || b == null ? null : [of(x, a), of(y, b)];
  });
}

/** Draw one measure against another, a point for each method, and return the places of those that none beats in both. */
function against(stream, place, x, y) {
  const [px, py] = [x, y].map((name) => stream.measures.indexOf(name));
  const points = pointsOf(stream, x, y);
  const best = front(points, measureOf(x).less, measureOf(y).less).sort((a, b) => points[a][0] - points[b][0]);
  const unit = (name, v) => (measureOf(name).percent ? 100 * v : v);
  const positive = points.flatMap((p) => (p && p[0] > 0 ? [p[0]] : []));
  const wide = positive.length > 1 && Math.max(...positive) / Math.min(...positive) >= 20;
  const zero = Math.min(...positive) / 3; // where 0 stands on a logarithmic axis
  const at = (v) => (wide && v <= 0 ? zero : unit(x, v));
  const drawn = stream.rows.map((_, i) => i).filter((i) => points[i] && STATE.order.includes(i));
  const spot = (i) => [Math.log10(at(points[i][0])), unit(y, points[i][1])], straight = (i) => [at(points[i][0]), unit(y, points[i][1])];
  const positions = labelPositions([...best, ...drawn.filter((i) => STATE.on.has(i) && !best.includes(i))].filter((i) => drawn.includes(i)), drawn, wide ? spot : straight,
    place.clientWidth - 90, 360, (i) => cut(stream.rows[i].label, 24));
  const trace = (chosen, faint) => ({
    x: chosen.map((i) => at(points[i][0])), y: chosen.map((i) => unit(y, points[i][1])), mode: "markers+text", hoverinfo: "text", textposition: chosen.map((i) => positions.get(i) || "top center"),
    text: chosen.map((i) => (positions.has(i) ? plain(cut(stream.rows[i].label, 24)) : "")), cliponaxis: false,
    hovertext: chosen.map((i) => `${plain(stream.rows[i].label)}<br>${x}: ${shownStatistic(x, stream.rows[i].measures[px])}<br>${y}: ${shownStatistic(y, stream.rows[i].measures[py])}`),
    marker: { size: 11, opacity: faint ? 0.45 : 1, color: chosen.map((i) => visible(stream.rows[i].style.color)), symbol: chosen.map((i) => stream.rows[i].style.symbol) } });
  const line = { x: best.map((i) => at(points[i][0])), y: best.map((i) => unit(y, points[i][1])), mode: "lines", hoverinfo: "skip", line: { color: "#888888", width: 1, dash: "dot" } };
  const zeros = wide && points.some((p) => p && p[0] <= 0);
  const ticks = zeros ? { tickvals: [zero, ...decades(positive)], ticktext: ["0", ...decades(positive).map((v) => String(Number(v.toPrecision(3))))] } : {};
  draw(place, [line, trace(drawn.filter((i) => !STATE.on.has(i)), true), trace(drawn.filter((i) => STATE.on.has(i)), false)],
    { xaxis: { title: titleOf(x), type: wide ? "log" : "linear", tickangle: 0, ...ticks }, yaxis: { title: titleOf(y) }, margin: { l: 60, r: 30, t: 24, b: 46 } }, 440);
  return best;
}

/** Return powers of ten among positive values, thinned. */
function decades(values) {
  const low = Math.ceil(Math.log10(Math.min(...values))), high = Math.floor(Math.log10(Math.max(...values)));
  return Array.from({ length: high - low + 1 }, (_, k) => 10 ** (low + k)).filter((_, k) => (high - low - k) % Math.ceil((high - low + 1) / 6) === 0);
}

/** Return where the names of points may stand without covering each other or a point; a name without room is left out. */
function labelPositions(wanted, drawn, spot, width, height, label) {
  const all = drawn.map(spot), range = (k) => [Math.min(...all.map((p) => p[k])), Math.max(...all.map((p) => p[k]))];
  const [[x0, x1], [y0, y1]] = [range(0), range(1)], boxes = [], found = new Map();
  const pixel = (i) => { const [x, y] = spot(i); return [((x - x0) / (x1 - x0 || 1)) * width * 0.9, (1 - (y - y0) / (y1 - y0 || 1)) * height * 0.9]; };
  drawn.forEach((i) => { const [x, y] = pixel(i); boxes.push([x - 5, y - 5, x + 5, y + 5]); });
  for (const i of wanted.slice(0, NAMED)) {
    const [x, y] = pixel(i), w = 6.6 * label(i).length, places = { "top center": [x - w / 2, y - 22], "bottom center": [x - w / 2, y + 8], "middle right": [x + 9, y - 7], "middle left": [x - w - 9, y - 7] };
    for (const [name, [left, top]] of Object.entries(places)) {
      const box = [left, top, left + w, top + 14];
      if (left < -20 || left + w > width + 20 || boxes.some((b) => b[0] < box[2] && box[0] < b[2] && b[1] < box[3] && box[1] < b[3])) continue;
      boxes.push(box);
      found.set(i, name);
      break;
    }
  }
  return found;
}

/** Draw a measure against a key that was swept: a curve for each combination of the other keys, with its intervals. */
function againstKey(stream, place, key, name) {
  const p = stream.measures.indexOf(name), curves = new Map();
  for (const row of STATE.order.map((i) => stream.rows[i])) {
    if (row.numbers[key] == null) continue;
    const others = stream.keys.filter((k) => k !== key && k !== "strategy" && row.keys[k]).map((k) => `${k}=${row.keys[k]}`);
    const label = [row.strategy, ...others].join(" ");
    curves.set(label, [...(curves.get(label) || []), row]);
  }
  const unit = (v) => (v == null ? null : measureOf(name).percent ? 100 * v : v);
  const traces = [...curves].filter(([, rows]) => rows.length > 1).map(([label, rows]) => {
    rows.sort((a, b) => a.numbers[key] - b.numbers[key]);
    const of = (k) => rows.map((row) => unit(row.measures[p][k]));
    return { x: rows.map((row) => row.numbers[key]), y: of(1), mode: "lines+markers", ...lineStyle(rows[0].style), name: plain(cut(label, 40)), hoverinfo: "text",
      text: rows.map((row) => `${plain(row.label)}<br>${name}: ${shownStatistic(name, row.measures[p])}, n = ${row.measures[p][0]}${row.diverged ? `<br>${row.diverged} diverged` : ""}`),
      error_y: { type: "data", symmetric: false, array: rows.map((row) => (row.measures[p][4] == null ? 0 : unit(row.measures[p][4] - row.measures[p][1]))),
        arrayminus: rows.map((row) => (row.measures[p][3] == null ? 0 : unit(row.measures[p][1] - row.measures[p][3]))), thickness: 1, width: 3 } };
  });
  const x = traces.flatMap((trace) => trace.x), positive = x.filter((v) => v > 0);
  const wide = positive.length === x.length && Math.max(...x) / Math.min(...x) >= 50;
  draw(place, traces, { xaxis: { title: plain(key), type: wide ? "log" : "linear" }, yaxis: { title: titleOf(name) }, showlegend: true,
    legend: { orientation: "h", y: -0.22, yanchor: "top" }, margin: { l: 60, r: 16, t: 12, b: 60 } }, 420);
}

/** Draw parallel coordinates: an axis for each key and for a measure, a line for each row, coloured by the measure. */
function parallel(stream, place, name) {
  const p = stream.measures.indexOf(name), rows = STATE.order.map((i) => stream.rows[i]).filter((row) => row.measures[p][1] != null);
  const axes = [...stream.keys.map((key) => ({ name: key, of: (row) => row.numbers[key] ?? row.keys[key] })), { name, of: (row) => row.measures[p][1], measure: true }];
  const scales = axes.map((axis) => scaleOf(rows.map(axis.of)));
  const ends = scales[axes.length - 1];
  const traces = rows.map((row) => ({ x: axes.map((_, i) => i), y: axes.map((axis, i) => scales[i].place(axis.of(row))), mode: "lines+markers", hoverinfo: "text",
    text: axes.map(() => `${plain(row.label)}<br>${name}: ${shownStatistic(name, row.measures[p])}`), opacity: 0.75, marker: { size: 4 }, line: { width: 1.6 } }))
    .map((trace, i) => { const color = cividis(ends.place(rows[i].measures[p][1])); trace.line.color = color; trace.marker.color = color; return trace; });
  const labels = axes.flatMap((axis, i) => scales[i].ticks.map(([value, y]) => ({ x: i, y, text: plain(cut(axis.measure ? shown(name, value) : String(value), 16)), showarrow: false,
    xanchor: i ? "left" : "right", xshift: i ? 6 : -6, font: { size: 10.5 }, bgcolor: getComputedStyle(document.documentElement).getPropertyValue("--back").trim() })));
  draw(place, traces, { annotations: labels, xaxis: { tickvals: axes.map((_, i) => i), ticktext: axes.map((axis) => plain(cut(axis.name, 20))), range: [-0.45, axes.length - 0.5], zeroline: false },
    yaxis: { visible: false, range: [-0.05, 1.05] }, margin: { l: 20, r: 40, t: 16, b: 46 } }, 520);
}

/** Return where values stand on an axis from 0 to 1, and those as ticks [value, place] for which there is room: numbers by size (by
 * their logarithm where they are far apart), texts in their order, empty ones at the bottom. */
function scaleOf(values) {
  const there = [...new Set(values.filter((v) => v != null && v !== ""))].sort((a, b) => compare(a, b, false));
  const numeric = there.every((v) => typeof v === "number"), empty = there.length < new Set(values).size;
  const log = numeric && there[0] > 0 && there[there.length - 1] / there[0] >= 50;
  const size = (v) => (log ? Math.log(v) : v), [low, high] = [size(there[0]), size(there[there.length - 1])];
  const share = (v) => (numeric ? (high > low ? (size(v) - low) / (high - low) : 0.5) : there.length > 1 ? there.indexOf(v) / (there.length - 1) : 0.5);
  const place = (v) => (v == null || v === "" ? 0 : empty ? 0.12 + 0.88 * share(v) : share(v));
  const spaced = [];
  for (const v of there) if (!spaced.length || place(v) - spaced[spaced.length - 1][1] >= 0.035) spaced.push([v, place(v)]);
  return { place, ticks: empty ? [["-", 0], ...spaced] : spaced };
}

function cividis(share) {
  const stops = [[0, 32, 76], [87, 92, 109], [163, 152, 107], [233, 208, 60]];
  const position = Math.max(0, Math.min(1, share || 0)) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(position));
  return `rgb(${stops[k].map((v, i) => Math.round(v + (stops[k + 1][i] - v) * (position - k))).join(",")})`;
}

// ---------------------------------------------------------------- numbers

// What costs are in plain words, with their units.
const WORDS = { state_mb: "memory kept, MB", peak_memory_mb: "peak memory, MB", total_seconds: "training time, s", wall_seconds: "wall time, s", cpu_seconds: "CPU time, s", energy_wh: "energy, Wh" };

function titleOf(name) {
  return WORDS[name] ? `${WORDS[name]} (${name})` : name.replace(/_/g, " ") + (measureOf(name).percent ? " (%)" : "");
}

function percent(value) {
  return value == null ? null : 100 * value;
}

function number(value) {
  return value == null ? "-" : (100 * value).toFixed(1);
}

function meanOf(values) {
  const there = values.filter((v) => v != null);
  return there.length ? there.reduce((sum, v) => sum + v, 0) / there.length : null;
}

function numbers(n) {
  return Array.from({ length: n }, (_, k) => String(k + 1));
}
