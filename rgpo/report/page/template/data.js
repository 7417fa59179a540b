"use strict";
// Data of the page: decoded columns, curves of runs, means and bands over seeds, and the state in the address.
const unpack = id => {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), letter => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};
const DATA = await unpack("data"), ROWS = await unpack("rows");
const STEPS = 65534;

// Node with attributes and children; texts are only ever text.
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child != null));
  return made;
}

// Curve of [smallest, largest, logarithmic, codes]; NaN where nothing was measured.
const decoded = new Map();
function decode(encoded) {
  if (!encoded) return null;
  let values = decoded.get(encoded);
  if (!values) {
    const [low, high, log, text] = encoded, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    values = Float64Array.from(new Uint16Array(bytes.buffer), code => {
      if (code > STEPS) return NaN;
      const value = low + (high - low) * code / STEPS;
      return log ? Math.exp(value) : value;
    });
    decoded.set(encoded, values);
  }
  return values;
}

const AXES = {
  env_steps: "environment steps (samples)", iteration: "iteration", samples: "completion tokens", wall: "wall time, s", cpu: "CPU time, s",
};

// Measured points {x, y} of a metric of one run along an axis; null without any.
function curveOf(section, place, run, axis) {
  const y = decode(section.metrics[place].of[run]), along = section.axes[axis];
  if (!y || !along || along.of[run] < 0) return null;
  const known = along.points[along.of[run]], x = typeof known[3] === "string" ? decode(known) : known, points = { x: [], y: [] };
  for (let i = 0; i < y.length; i++) if (!Number.isNaN(y[i])) { points.x.push(x[i]); points.y.push(y[i]); }
  return points.x.length ? points : null;
}

const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

function interpolate(curve, x) {
  let i = 1;
  return x.map(at => {
    while (i < curve.x.length - 1 && curve.x[i] < at) i++;
    if (curve.x.length < 2) return curve.y[0];
    const share = (at - curve.x[i - 1]) / (curve.x[i] - curve.x[i - 1] || 1);
    return curve.y[i - 1] + (curve.y[i] - curve.y[i - 1]) * Math.min(1, Math.max(0, share));
  });
}

function smooth(y, window) {
  if (window < 2) return y;
  const half = Math.floor(window / 2), sums = [0];
  for (const value of y) sums.push(sums[sums.length - 1] + value);
  return y.map((_, i) => {
    const near = Math.min(half, i, y.length - 1 - i);
    return (sums[i + near + 1] - sums[i - near]) / (2 * near + 1);
  });
}

// Student's quantile at 97.5 % for 1 to 30 degrees of freedom; 1.96 beyond is 4 % too small at 31.
const T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042];
const quantile = n => T[n - 2] ?? 1.96 + 2.4 / (n - 1);

// Mean over seeds with a band, up to the point that every seed reaches; band: range, interval or none.
function meanOf(curves, band, window) {
  let x = curves[0].x, ys;
  const longest = Math.min(...curves.map(curve => curve.x[curve.x.length - 1]));
  if (curves.every(curve => same(curve.x, x))) ys = curves.map(curve => curve.y);
  else {
    const first = Math.max(...curves.map(curve => curve.x[0])), base = curves.reduce((a, b) => (a.x.length > b.x.length ? a : b));
    x = base.x.filter(at => at >= first && at <= longest);
    ys = curves.map(curve => interpolate(curve, x));
  }
  ys = ys.map(y => smooth(y, window));
  const n = ys.length, made = { x, y: [], low: [], high: [], n };
  for (let i = 0; i < x.length; i++) {
    let sum = 0, low = Infinity, high = -Infinity;
    for (const y of ys) { sum += y[i]; low = Math.min(low, y[i]); high = Math.max(high, y[i]); }
    const mean = sum / n;
    if (band === "interval" && n > 2) {
      const sd = Math.sqrt(ys.reduce((total, y) => total + (y[i] - mean) ** 2, 0) / (n - 1)), half = quantile(n) * sd / Math.sqrt(n);
      [low, high] = [mean - half, mean + half];
    }
    made.y.push(mean);
    if (band !== "none" && n > 1 && (band !== "interval" || n > 2)) { made.low.push(low); made.high.push(high); }
  }
  return made;
}

const mean = values => values.reduce((a, b) => a + b, 0) / values.length;

// A number with few digits: 2.38k, 0.0097.
function short(value) {
  if (value == null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size && size < 1e-3 ? value.toExponential(1) : `${+value.toPrecision(4)}`;
}

// Colors of a label, which follow the scheme.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colorOf = look => (look ? look[dark.matches ? 1 : 0] : getComputedStyle(document.body).color);
const swatch = look => node("span", { class: "swatch", style: `--light:${look[0]};--dark:${look[1]}`, "aria-hidden": "true" });

// State of the sections in the address: #first_evidence={"axis":"wall"}&go=...
const state = (() => {
  const found = new Map();
  const text = location.hash.slice(1);
  if (text.includes("=")) {
    for (const [key, value] of new URLSearchParams(text)) {
      if (key === "go" || key === "show") { found.set(key, value); continue; }
      try { found.set(key, Object(JSON.parse(value))); } catch { continue; } // typed by hand
    }
  }
  return {
    at: key => found.get(key),
    put(key, value) {
      found.set(key, value);
      const words = new URLSearchParams();
      for (const [name, entry] of found)
        if (name !== "go" && name !== "show" && Object.keys(entry).length) words.set(name, JSON.stringify(entry));
      history.replaceState(null, "", `#${words}`);
    },
  };
})();
