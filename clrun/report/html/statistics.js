// Numbers: how they are shown, and the statistics that --compare of clrun-report computes, from the values by seed.

function measureOf(name) {
  return PAGE.measures.find((measure) => measure.name === name);
}

/** Return a value as clrun-report prints it: shares in percent, costs with three significant digits. */
function shown(name, value, like = value) {
  if (value == null) return "";
  if (measureOf(name).percent) return (100 * value).toFixed(1);
  const scale = name.startsWith("kept_per_") ? 100 : 1;
  return significant(scale * value, scale * like);
}

function significant(value, like = value) {
  const size = Math.abs(like);
  if (size > 0 && size < 1e-4) return value.toExponential(2);
  return value.toFixed(Math.max(0, size ? 2 - Math.floor(Math.log10(size)) : 0));
}

/** Return 'mean ± deviation' of [n, mean, sd, low, high]. */
function shownStatistic(name, [n, mean, sd]) {
  if (!n || mean == null) return "";
  const constant = sd == null || (!measureOf(name).percent && sd <= 1e-9 * Math.abs(mean));
  const like = Math.max(Math.abs(mean), sd || 0);
  return constant ? shown(name, mean) : `${shown(name, mean, like)} ± ${shown(name, sd, like)}`;
}

/** Return [n, mean, sd, low, high] of differences: deviation with n - 1, and the interval of the mean by Student's t, which
 * ends at -1 and 1 where it is `bounded`. */
function statistic(values, bounded) {
  const n = values.length;
  const mean = n ? values.reduce((sum, v) => sum + v, 0) / n : null;
  const sd = n > 1 ? Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1)) : null;
  const half = n > 1 ? PAGE.widths[n - 2] * sd : null; // t(0.975, n - 1) / sqrt(n), from Python
  const [least, largest] = bounded ? [-1, 1] : [-Infinity, Infinity];
  return [n, mean, sd, n > 1 ? Math.max(mean - half, least) : null, n > 1 ? Math.min(mean + half, largest) : null];
}

/** Return [seed, difference a - b] of a measure for the seeds of which both rows have a run that is done. */
function differences(stream, a, b, name) {
  const place = stream.measures.indexOf(name);
  const values = (row) => new Map(runsOf(stream, row).filter((run) => run.status === "done" && run.measures[place] != null)
    .map((run) => [run.seed, run.measures[place]]));
  const first = values(a), second = values(b);
  return [...first].filter(([seed]) => second.has(seed)).map(([seed, value]) => [seed, value - second.get(seed)]);
}

function runsOf(stream, row) {
  return stream.runs.filter((run) => run.row === row);
}

/** Return the places of the rows that no other row beats in both measures. points: [x, y] or null; less: of x and y. */
function front(points, lessX, lessY) {
  const better = (a, b, less) => (less ? a < b : a > b);
  const atLeast = (a, b, less) => a === b || better(a, b, less);
  return points.flatMap((p, i) => (p && !points.some((q) => q && atLeast(q[0], p[0], lessX) && atLeast(q[1], p[1], lessY)
    && (better(q[0], p[0], lessX) || better(q[1], p[1], lessY))) ? [i] : []));
}
