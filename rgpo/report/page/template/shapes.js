// Intervals, dots, heat maps and parallel coordinates, as SVG and tables: each value is text under the pointer, too.
function shape(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const title = text => shape("title", {}, text);

// Round ticks between two values.
function ticksOf(low, high, count = 5) {
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find(f => f * unit >= raw) * unit;
  const made = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) made.push(+at.toPrecision(12));
  return made;
}

// rows: [{label, look, value, low, high, dots}]; level: a vertical line.
function intervals(box, { title: name, x, rows, level }) {
  const ends = rows.flatMap(row => [row.value, row.low, row.high, ...(row.dots || [])]).filter(v => v != null && Number.isFinite(v));
  box.replaceChildren(node("h4", {}, name));
  if (!ends.length) { box.append(node("p", { class: "caption" }, "nothing to show")); return; }
  if (level != null) ends.push(level);
  let low = Math.min(...ends), high = Math.max(...ends);
  const pad = (high - low || Math.abs(high) || 1) * 0.05;
  low -= pad; high += pad;
  const width = Math.max(280, Math.min(720, box.clientWidth || 480)), names = Math.min(width * 0.42, 12 + 7 * Math.max(...rows.map(row => row.label.length)));
  const row = 24, height = rows.length * row + 22, at = v => names + (v - low) / (high - low) * (width - names - 14);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "shape", role: "img", "aria-label": `${name}, ${x}: ${rows.map(r => `${r.label} ${short(r.value)}`).join(", ")}` });
  for (const tick of ticksOf(low, high, Math.max(2, Math.floor((width - names) / 70)))) {
    svg.append(shape("line", { x1: at(tick), x2: at(tick), y1: 0, y2: height - 20, class: "grid" }), shape("text", { x: at(tick), y: height - 6, "text-anchor": "middle" }, short(tick)));
  }
  if (level != null) svg.append(shape("line", { x1: at(level), x2: at(level), y1: 0, y2: height - 20, class: "level" }));
  rows.forEach((one, i) => {
    const y = i * row + row / 2, color = one.look ? colorOf(one.look) : "currentColor", group = shape("g", { style: `color:${color}` });
    const ends = one.low != null ? ` [${short(one.low)}, ${short(one.high)}]` : "";
    group.append(title(`${one.label}: ${short(one.value)}${ends}${one.note ? `, ${one.note}` : ""}`));
    svg.append(shape("text", { x: names - 8, y: y + 4, "text-anchor": "end" }, one.label.length * 7 > names - 8 ? `${one.label.slice(0, Math.floor(names / 7) - 2)}…` : one.label));
    if (one.low != null) group.append(shape("line", { x1: at(one.low), x2: at(one.high), y1: y, y2: y, class: "bar" }));
    for (const dot of one.dots || []) if (dot != null) group.append(shape("circle", { cx: at(dot), cy: y, r: 3, class: "seed" }));
    if (one.value != null) group.append(shape("circle", { cx: at(one.value), cy: y, r: 5 }));
    else group.append(shape("text", { x: width - 4, y: y + 4, "text-anchor": "end", class: "halo" }, one.note || "not measured"));
    group.append(shape("rect", { x: 0, y: i * row, width, height: row, fill: "transparent" }));
    svg.append(group);
  });
  box.append(svg, node("p", { class: "axis below" }, x));
}

// cells: Map of "row\tcolumn" -> {value, n}
function heatMap(box, { name, rowKey, columnKey, rows, columns, cells, unit }) {
  const values = [...cells.values()].map(cell => cell.value), low = Math.min(...values), high = Math.max(...values);
  const table = node("table", { class: "heat" });
  table.append(node("thead", {}, node("tr", {}, node("th", {}, `${rowKey} \\ ${columnKey}`), ...columns.map(c => node("th", { scope: "col" }, c)))));
  const body = node("tbody");
  for (const r of rows) {
    const line = node("tr", {}, node("th", { scope: "row" }, r));
    for (const c of columns) {
      const cell = cells.get(`${r}\t${c}`), share = cell ? (cell.value - low) / (high - low || 1) : 0;
      line.append(cell ? node("td", { style: `--share:${Math.round(45 * share)}%` }, `${short(cell.value)} (${cell.n})`) : node("td", { class: "none" }, "–"));
    }
    body.append(line);
  }
  table.append(body);
  box.replaceChildren(node("h4", {}, name), node("p", { class: "axis" }, `mean of ${unit} over the runs of a cell (number of runs)`), node("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, table));
}

// axes: [{name, values}] with words or numbers; lines: [{label, look, at: [value per axis]}]
function parallel(box, axes, lines) {
  const width = Math.max(420, Math.min(1100, box.clientWidth || 700)), height = 250, top = 34, bottom = 24, side = 70;
  const places = axes.map((axis, i) => side + i * (width - 2 * side) / Math.max(1, axes.length - 1));
  const numeric = axes.map(axis => axis.values.every(v => typeof v === "number"));
  const y = (k, value) => {
    const values = axes[k].values;
    if (!numeric[k]) return top + (height - top - bottom) * (values.length < 2 ? 0.5 : values.indexOf(value) / (values.length - 1));
    const low = Math.min(...values), high = Math.max(...values);
    return height - bottom - (height - top - bottom) * (high > low ? (value - low) / (high - low) : 0.5);
  };
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "shape parallel", role: "img", "aria-label": `Parallel coordinates over ${axes.map(a => a.name).join(", ")}` });
  for (const line of lines) {
    const points = line.at.map((value, k) => (value == null ? null : `${places[k]},${y(k, value)}`)).filter(Boolean).join(" ");
    svg.append(shape("polyline", { points, style: `color:${colorOf(line.look)}` }, title(`${line.label}: ${line.at.map((v, k) => `${axes[k].name} ${typeof v === "number" ? short(v) : v}`).join(", ")}`)));
  }
  axes.forEach((axis, k) => {
    svg.append(shape("line", { x1: places[k], x2: places[k], y1: top, y2: height - bottom, class: "level" }));
    svg.append(shape("text", { x: places[k], y: 16, "text-anchor": "middle", class: "strong" }, axis.name.split(".").pop()));
    const marks = numeric[k] ? [Math.min(...axis.values), Math.max(...axis.values)] : axis.values.slice(0, 14);
    for (const mark of new Set(marks)) svg.append(shape("text", { x: places[k] + 5, y: y(k, mark) + 4, class: "halo" }, numeric[k] ? short(mark) : mark.length > 16 ? `${mark.slice(0, 15)}…` : mark));
  });
  box.replaceChildren(node("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parallel coordinates" }, svg));
}
