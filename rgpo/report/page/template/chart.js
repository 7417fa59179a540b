// One pair of axes drawn by uPlot: thin seeds and bands behind, means in front, values at the pointer, zoom by dragging.
const charts = globalThis.charts = new Set(); // for the console too
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function unionOf(curves) {
  const all = new Set();
  for (const curve of curves) for (const x of curve.x) all.add(x);
  return [...all].sort((a, b) => a - b);
}

function aligned(curve, place, length, logY) {
  const y = new Array(length).fill(null);
  curve.x.forEach((x, i) => { if (curve.y[i] != null && !(logY && curve.y[i] <= 0)) y[place.get(x)] = curve.y[i]; });
  return y;
}

// Smallest and largest of what is between two values of x.
function extent(curves, low, high, logY, withSeeds) {
  let least = Infinity, most = -Infinity;
  const look = (xs, ys) => {
    for (let i = 0; i < xs.length; i++) {
      const y = ys[i];
      if (y != null && Number.isFinite(y) && xs[i] >= low && xs[i] <= high && !(logY && y <= 0)) {
        if (y < least) least = y;
        if (y > most) most = y;
      }
    }
  };
  for (const curve of curves) {
    look(curve.x, curve.y);
    if (curve.low && curve.low.length) { look(curve.x, curve.low); look(curve.x, curve.high); }
    if (withSeeds) for (const [xs, ys] of curve.seeds || []) look(xs, ys);
  }
  return [least, most];
}

// Lines of log-scaled axes: 1, 2, 5 where few decades are shown.
function logTicks(low, high) {
  const decades = Math.log10(high / low), factors = decades < 1 ? [1, 2, 3, 5, 7] : decades < 2.5 ? [1, 2, 5] : [1], ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
    for (const f of factors) { const at = f * 10 ** e; if (at >= low * 0.999 && at <= high * 1.001) ticks.push(at); }
  return ticks.length > 1 ? ticks : [low, high];
}

// spec: {title, x, y, logX, logY, curves: [{label, look, front, x, y, low, high, seeds, path}], levels, ribbons, seeds, note}
function chart(box, spec) {
  const curves = spec.curves.filter(curve => curve.x.length).sort((a, b) => !!a.front - !!b.front);
  const xs = unionOf(curves).filter(x => !(spec.logX && x <= 0));
  box.replaceChildren(node("h4", {}, spec.title), node("p", { class: "axis" }, spec.y));
  if (!xs.length) { box.append(node("p", { class: "caption" }, "nothing to show")); return null; }
  const place = new Map(xs.map((x, i) => [x, i])), tip = node("div", { class: "tip", hidden: true }), plot = node("div", { class: "plot" });
  box.append(plot, node("p", { class: "axis below" }, spec.x));
  const height = spec.height || 230, ink = () => css("--soft"), grid = () => css("--grid");
  const axis = (log, format) => ({
    stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 }, font: "12px system-ui, sans-serif",
    values: (_, splits) => splits.map(format), ...(log ? { splits: (_, __, low, high) => logTicks(low, high), filter: (_, s) => s } : {}),
  });
  const trace = (u, points, ys) => {
    const c = u.ctx;
    c.beginPath();
    let begun = false;
    for (let i = 0; i < points.length; i++) {
      const y = ys[i];
      if (y == null || !Number.isFinite(y) || (spec.logY && y <= 0) || (spec.logX && points[i] <= 0)) { begun = false; continue; }
      const px = u.valToPos(points[i], "x", true), py = u.valToPos(y, "y", true);
      begun ? c.lineTo(px, py) : c.moveTo(px, py);
      begun = true;
    }
  };
  const behind = u => {
    const c = u.ctx, ratio = devicePixelRatio || 1, { left, top, width, height: tall } = u.bbox;
    c.save();
    c.beginPath(); c.rect(left, top, width, tall); c.clip();
    for (const ribbon of spec.ribbons || []) {
      c.fillStyle = c.strokeStyle = ink(); c.lineWidth = ratio;
      const at = u.valToPos(ribbon.value, "y", true);
      if (ribbon.sd) {
        const a = u.valToPos(ribbon.value + ribbon.sd, "y", true), b = u.valToPos(ribbon.value - ribbon.sd, "y", true);
        c.globalAlpha = 0.13; c.fillRect(left, a, width, b - a);
      }
      c.globalAlpha = 0.8; c.setLineDash([2 * ratio, 3 * ratio]); c.beginPath(); c.moveTo(left, at); c.lineTo(left + width, at); c.stroke(); c.setLineDash([]);
    }
    for (const level of spec.levels || []) {
      const at = u.valToPos(level, "y", true);
      c.globalAlpha = 1; c.strokeStyle = ink(); c.lineWidth = ratio; c.setLineDash([4 * ratio, 4 * ratio]);
      c.beginPath(); c.moveTo(left, at); c.lineTo(left + width, at); c.stroke(); c.setLineDash([]);
    }
    for (const curve of curves) {
      const color = colorOf(curve.look);
      if (spec.seeds !== false) {
        c.strokeStyle = color; c.globalAlpha = 0.35; c.lineWidth = 0.8 * ratio;
        for (const [x, y] of curve.seeds || []) { trace(u, x, y); c.stroke(); }
      }
      if (curve.low && curve.low.length) {
        const x = [...curve.x, ...[...curve.x].reverse()], y = [...curve.high, ...[...curve.low].reverse()];
        const floor = spec.logY ? u.scales.y.min : null;
        trace(u, x, floor == null ? y : y.map(v => (v != null && v <= 0 ? floor : v)));
        c.globalAlpha = curve.front ? 0.18 : 0.1; c.fillStyle = color; c.fill();
      }
      if (curve.path) {
        c.globalAlpha = 1; c.strokeStyle = color; c.lineWidth = (curve.front ? 3 : 2) * ratio;
        trace(u, curve.x, curve.y); c.stroke();
      }
      if (curve.cross && curve.cross.flat().every(v => v != null)) {
        const [[x, x1, x2], [y, y1, y2]] = curve.cross;
        c.globalAlpha = 0.5; c.strokeStyle = color; c.lineWidth = 3 * ratio;
        trace(u, [x1, x2], [y, y]); c.stroke();
        trace(u, [x, x], [y1, y2]); c.stroke();
      }
      for (const [x, low, high] of curve.bars || []) {
        if (low == null || high == null) continue;
        c.globalAlpha = 0.8; c.strokeStyle = color; c.lineWidth = ratio;
        trace(u, [x, x], [low, high]); c.stroke();
      }
    }
    c.restore();
  };
  const nearest = (u, series, at) => {
    const ys = u.data[series], half = Math.ceil(ys.length / 12) + 1;
    if (ys[at] != null) return at;
    for (let k = 1; k <= half; k++) { if (ys[at - k] != null) return at - k; if (ys[at + k] != null) return at + k; }
    return null;
  };
  const tell = u => {
    const at = u.cursor.idx;
    tip.hidden = at == null || u.cursor.left < 0;
    if (tip.hidden) return;
    const rows = curves.map((curve, k) => [curve, nearest(u, k + 1, at)]).filter(([, i]) => i != null)
      .map(([curve, i]) => [curve, u.data[curves.indexOf(curve) + 1][i]]).sort((a, b) => b[1] - a[1]);
    tip.replaceChildren(node("b", {}, `${spec.x.split(",")[0]} ${short(xs[at])}`), ...rows.slice(0, 14).map(([curve, y]) =>
      node("div", {}, curve.look ? swatch(curve.look) : "", `${curve.label}: ${short(y)}`)));
    const right = u.cursor.left > u.bbox.width / (2 * (devicePixelRatio || 1));
    tip.style.left = right ? "" : `${u.over.offsetLeft + u.cursor.left + 14}px`;
    tip.style.right = right ? `${plot.clientWidth - u.over.offsetLeft - u.cursor.left + 14}px` : "";
  };
  const range = log => (_, low, high) => (low === high ? (log ? [low / 2, high * 2] : [low - 0.5, high + 0.5]) : [low, high]);
  const u = new uPlot({
    width: Math.max(200, plot.clientWidth), height, legend: { show: false },
    cursor: { drag: { x: true, y: false }, points: { size: 7 }, dataIdx: nearest, y: false },
    scales: {
      x: { time: false, distr: spec.logX ? 3 : 1, range: range(spec.logX) },
      y: {
        distr: spec.logY ? 3 : 1,
        range: me => {
          let [low, high] = extent(curves, me.scales.x.min ?? xs[0], me.scales.x.max ?? xs[xs.length - 1], spec.logY, spec.seeds !== false);
          if (low === Infinity) return spec.logY ? [0.1, 1] : [0, 1];
          if (spec.logY) return [low / 1.15, Math.max(high * 1.15, low * 1.5)];
          for (const ribbon of spec.ribbons || []) { low = Math.min(low, ribbon.value); high = Math.max(high, ribbon.value); }
          const pad = (high - low || Math.abs(high) || 1) * 0.05;
          return [low - pad, high + pad];
        },
      },
    },
    axes: [{ ...axis(spec.logX, short), size: 30 }, { ...axis(spec.logY, short), size: 56 }],
    padding: [8, 22, 0, 0],
    series: [{}, ...curves.map(curve => ({
      stroke: () => (curve.path ? "transparent" : colorOf(curve.look)), width: curve.front ? 2.6 : 1.6, dash: (curve.look && curve.look[2]) || [], spanGaps: true,
      points: { show: curve.x.length < 25, size: 5, fill: () => colorOf(curve.look), stroke: () => colorOf(curve.look) },
    }))],
    hooks: { drawClear: [], drawAxes: [behind], setCursor: [tell] },
  }, [xs, ...curves.map(curve => aligned(curve, place, xs.length, spec.logY))], plot);
  plot.append(tip);
  plot.tabIndex = 0;
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${spec.title}: ${spec.y} over ${spec.x}. ${curves.map(c => `${c.label} ends at ${short(c.y[c.y.length - 1])}`).join(", ")}. Arrow keys move the pointer, plus and minus zoom, Escape resets.`);
  plot.addEventListener("keydown", event => {
    const { min, max } = u.scales.x, at = u.cursor.idx ?? Math.floor(xs.length / 2), move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const center = xs[at], zoom = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (move) u.setCursor({ left: u.valToPos(xs[Math.min(xs.length - 1, Math.max(0, at + move))], "x"), top: 20 });
    else if (zoom) u.setScale("x", { min: Math.max(xs[0], center - (center - min) * zoom), max: Math.min(xs[xs.length - 1], center + (max - center) * zoom) });
    else if (event.key === "Escape") u.setScale("x", { min: xs[0], max: xs[xs.length - 1] });
    else return;
    event.preventDefault();
  });
  const watch = new ResizeObserver(() => { if (plot.clientWidth && Math.abs(plot.clientWidth - u.width) > 1) u.setSize({ width: plot.clientWidth, height }); });
  watch.observe(plot);
  const made = { u, destroy() { watch.disconnect(); charts.delete(made); u.destroy(); } };
  charts.add(made);
  return made;
}
dark.addEventListener("change", () => { for (const one of charts) one.u.redraw(false, true); });

// Draw when a box comes near the screen.
const due = new Map();
const near = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) { near.unobserve(target); due.get(target)?.(); due.delete(target); }
}, { rootMargin: "300px" });
function lazily(box, draw) { due.set(box, draw); near.observe(box); }
