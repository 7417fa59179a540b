// Figures over the runs of an experiment: sample efficiency, a heat map over two settings, parallel coordinates.
const tasksOf = section => [...new Set(section.runs.filter(run => run.used).map(run => run.task))];
const numberOf = text => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

// First x at which a smoothed curve reaches a level; null if it never does.
function reached(curve, level) {
  const y = smooth(curve.y, Math.min(9, curve.y.length)), at = y.findIndex(value => value >= level);
  return at < 0 ? null : curve.x[at];
}

function efficiency(section, box) {
  const place = section.metrics.findIndex(metric => metric.name === section.score), finals = section.finals[section.score];
  if (place < 0 || !finals) return false;
  const axis = section.axes.env_steps && !section.score.startsWith("reward/") ? "env_steps" : "iteration";
  const share = node("input", { type: "number", value: 80, min: 1, max: 100, step: 5, "aria-label": "percent of the baseline" }), grid = node("div", { class: "grid" });
  box.append(node("h3", {}, "Sample efficiency"), node("div", { class: "controls" }, node("label", {}, `${AXES[axis][0].toUpperCase()}${AXES[axis].slice(1)} until a run's ${NAMES[section.score] || section.score} (running mean over 9 points) reaches `, share, " % of the way from the first value to the baseline's final mean (circles: seeds; disk: their median, where every seed reaches it)")), grid);
  const draw = () => {
    grid.replaceChildren();
    for (const task of tasksOf(section)) {
      const members = section.runs.map((run, i) => [run, i]).filter(([run]) => run.used && run.task === task), base = section.baselines[task];
      const goals = members.filter(([run]) => run.label === base).map(([, i]) => finals[i]).filter(v => v != null);
      const starts = members.map(([, i]) => curveOf(section, place, i, axis)).filter(Boolean).map(curve => curve.y[0]);
      const cell = node("div", { class: "chart" });
      grid.append(cell);
      if (!goals.length || !starts.length) { cell.append(node("p", { class: "caption" }, `${task}: no baseline`)); continue; }
      const zero = section.score.startsWith("reward/") ? 0 : mean(starts), level = zero + (mean(goals) - zero) * share.value / 100;
      const rows = [...new Set(members.map(([run]) => run.label))].map(label => {
        const all = members.filter(([run]) => run.label === label).map(([, i]) => curveOf(section, place, i, axis)).filter(Boolean).map(curve => reached(curve, level));
        const done = all.filter(v => v != null).sort((a, b) => a - b);
        return { label, look: section.lines[label], value: done.length && done.length === all.length ? done[done.length >> 1] : null, dots: done, note: `${done.length} of ${all.length} seeds reach it` };
      }).sort((a, b) => (a.value ?? Infinity) - (b.value ?? Infinity));
      intervals(cell, { title: `${task}: to ${short(level)}`, x: AXES[axis], rows });
    }
  };
  share.addEventListener("input", draw);
  draw();
  return true;
}

// The number that summarizes a run, and its words.
function summaryOf(section) {
  const names = Object.keys(section.finals);
  return names.includes(section.score) ? section.score : names[0];
}

function settings(section, box) {
  const keys = section.keys.filter(key => new Set(section.runs.map(run => run.config[section.keys.indexOf(key)])).size > 1), names = Object.keys(section.finals);
  if (keys.length < 2 || !names.length) return false;
  const pick = (options, chosen, text) => node("label", {}, `${text} `, node("select", { onchange: () => draw() }, ...options.map(o => node("option", { value: o, selected: o === chosen }, o.replace("choices.", "")))));
  const pairOf = () => {
    for (const a of ["choices.gate", ...keys]) for (const b of ["gate.sharpness", "choices.penalty", ...keys]) if (a !== b && keys.includes(a) && keys.includes(b)) return [a, b];
    return keys;
  };
  const [first, second] = pairOf(), row = pick(keys, first, "rows"), column = pick(keys, second, "columns"), what = pick(names, summaryOf(section), "number"), grid = node("div", { class: "grid" }), lines = node("div");
  box.append(node("h3", {}, "Settings against results"), node("div", { class: "controls" }, row, column, what), grid, lines);
  const value = label => label.querySelector("select").value, of = (run, key) => run.config[section.keys.indexOf(key)];
  const order = list => [...new Set(list)].sort((a, b) => (typeof numberOf(a) === "number" && typeof numberOf(b) === "number" ? a - b : a.localeCompare(b)));
  function draw() {
    const [r, c, name] = [value(row), value(column), value(what)];
    grid.replaceChildren();
    for (const task of tasksOf(section)) {
      const members = section.runs.map((run, i) => [run, section.finals[name][i]]).filter(([run, v]) => run.used && run.task === task && v != null), cells = new Map();
      for (const [run, v] of members) {
        const key = `${of(run, r)}\t${of(run, c)}`, cell = cells.get(key) || { values: [] };
        cell.values.push(v);
        cells.set(key, cell);
      }
      for (const cell of cells.values()) { cell.value = mean(cell.values); cell.n = cell.values.length; }
      const cell = node("div", { class: "chart" });
      grid.append(cell);
      if (r !== c && members.length) heatMap(cell, { name: task, rowKey: r.replace("choices.", ""), columnKey: c.replace("choices.", ""), unit: name,
        rows: order(members.map(([run]) => of(run, r))), columns: order(members.map(([run]) => of(run, c))), cells });
      else cell.append(node("p", { class: "caption" }, "choose two different settings"));
    }
    lines.replaceChildren();
    for (const task of tasksOf(section)) {
      const labels = [...new Set(section.runs.filter(run => run.used && run.task === task).map(run => run.label))], shown = keys.slice(0, 7), part = node("div", { class: "chart" });
      const rows = labels.map(label => {
        const members = section.runs.map((run, i) => [run, i]).filter(([run]) => run.used && run.task === task && run.label === label), found = members.map(([, i]) => section.finals[name][i]).filter(v => v != null);
        return { label, look: section.lines[label], at: [...shown.map(key => numberOf(of(members[0][0], key))), found.length ? mean(found) : null] };
      }).filter(one => one.at[one.at.length - 1] != null);
      if (!rows.length) continue;
      const columns = [...shown, name].map((key, k) => {
        const all = rows.map(one => one.at[k]), words = all.some(v => typeof v === "string");
        if (words) rows.forEach(one => { one.at[k] = String(one.at[k]); });
        return { name: key, values: words ? order(all.map(String)) : all };
      });
      lines.append(part);
      parallel(part, columns, rows);
      part.prepend(node("h4", {}, `${task}: every arm through its settings to ${name}`));
    }
  }
  draw();
  return true;
}
