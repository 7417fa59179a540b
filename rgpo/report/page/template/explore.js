// The explorer of an experiment: which metrics, which runs, along which axis, in which groups.
const NAMES = {
  "return/train_mean": "Training return", "return/eval_mean": "Evaluation return", "reward/train_mean": "Training reward", "kl/old_exact": "KL per update",
  "reward/eval_proxy_change": "Proxy reward, held out", "reward/eval_gold_change": "Gold reward, held out", "kl/eval_ref_sequence": "KL to the reference, held out",
};

const CROWDED = 15; // arms; from more on the compared ones are shown first

function explorer(section, box) {
  const index = new Map(section.metrics.map((metric, i) => [metric.name, i]));
  const used = section.runs.map((run, i) => i).filter(i => section.runs[i].used);
  const figures = section.figures.filter(figure => figure.metrics.length);
  const language = section.axes.samples != null && section.score.startsWith("reward/");
  const start = (figures.length && figures.every(f => f.name !== "learning_curves") ? figures.flatMap(f => f.metrics)
    : [section.score, ...(language ? ["reward/eval_gold_change", "kl/eval_ref_sequence", "return/train_mean"] : []), "kl/old_exact"]).filter(name => index.has(name));
  const labels = Object.keys(section.lines), crowded = labels.length > CROWDED && section.front.length > 1; // more than can be told apart
  const initial = { metrics: start.length ? start : section.metrics.slice(0, 1).map(m => m.name), axis: section.axes.env_steps && !language ? "env_steps" : "iteration",
    smooth: 7, band: "range", group: "arm", scale: "auto", seeds: !crowded, published: true, off: crowded ? labels.filter(label => !section.front.includes(label)) : [], filter: {} };
  const alike = (key, value) => key in initial && typeof value === typeof initial[key] && Array.isArray(value) === Array.isArray(initial[key]);
  const now = { ...initial, ...Object.fromEntries(Object.entries(state.at(section.name) || {}).filter(([key, value]) => alike(key, value))) };
  now.filter = Object.fromEntries(Object.entries(now.filter).filter(([key, value]) => ["task", ...section.keys].includes(key) && Array.isArray(value)));
  if (!section.axes[now.axis]) now.axis = initial.axis; // the address may be that of other results
  if (!["arm", "seed", ...section.keys].includes(now.group)) now.group = initial.group;
  now.metrics = now.metrics.filter(name => index.has(name));
  if (state.at("go") === section.name && index.has(state.at("show")) && !now.metrics.includes(state.at("show"))) now.metrics = [state.at("show"), ...now.metrics];
  const atFirst = () => crowded && same(now.off, initial.off);
  const save = () => state.put(section.name, Object.fromEntries(Object.entries(now).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(initial[key]))));
  const drawnCharts = [], home = box.closest(".experiment")?.querySelector("div.films"), films = home ? [...home.children] : [];

  const groupOf = run => (now.group === "arm" ? run.label : now.group === "seed" ? `${run.label}, seed ${run.seed}` : `${now.group.split(".").pop()}=${run.config[section.keys.indexOf(now.group)]}`);
  const passes = run => Object.entries(now.filter).every(([key, values]) => {
    const value = key === "task" ? run.task : run.config[section.keys.indexOf(key)];
    return values.includes(value);
  });
  const spare = Object.values(section.lines);
  const lookOf = label => section.lines[label] || spare[[...new Set(section.runs.map(groupOf))].indexOf(label) % spare.length];

  const select = (key, options, text) => node("label", {}, `${text} `, node("select", { onchange: event => { now[key] = event.target.value; change(); } },
    ...options.map(([value, words]) => node("option", { value, selected: now[key] === value }, words))));
  const check = (key, text) => node("label", {}, node("input", { type: "checkbox", checked: now[key], onchange: event => { now[key] = event.target.checked; change(); } }), ` ${text}`);
  const axes = Object.keys(AXES).filter(axis => section.axes[axis]);
  const smoothing = node("output", {}, `${now.smooth}`);
  const metricList = node("select", { "aria-label": "Add a metric", onchange: event => { if (event.target.value) { now.metrics = [event.target.value, ...now.metrics]; change(); } } });
  const legend = node("div", { class: "legend", role: "group", "aria-label": "Arms" });
  const values = key => [...new Set(section.runs.map(run => (key === "task" ? run.task : run.config[section.keys.indexOf(key)])))];
  const filters = ["task", ...section.keys].filter(key => values(key).length > 1 && values(key).length <= 30);
  const filterBox = node("details", { class: "filters" }, node("summary", {}, "Filter"), ...filters.map(key => node("fieldset", {}, node("legend", {}, key.replace("choices.", "")),
    ...values(key).map(value => node("label", {}, node("input", {
      type: "checkbox", checked: !now.filter[key] || now.filter[key].includes(value), "data-key": key, value,
      onchange: () => {
        const chosen = [...filterBox.querySelectorAll("input")].filter(i => i.dataset.key === key && i.checked).map(i => i.value);
        if (chosen.length === values(key).length) delete now.filter[key]; else now.filter[key] = chosen;
        change();
      },
    }), ` ${value}`)))));
  const presets = figures.map(figure => node("button", { type: "button", title: figure.metrics.join(", "), onclick: () => { now.metrics = figure.metrics.filter(name => index.has(name)); change(); } }, figure.title));
  const grid = node("div", { class: "grid" }), caption = node("p", { class: "caption" });
  box.append(
    node("div", { class: "toolbar" },
      node("div", { class: "controls presets" }, ...presets, metricList),
      node("div", { class: "controls" },
        select("axis", axes.map(axis => [axis, AXES[axis]]), "x axis"),
        node("label", {}, "smoothing ", node("input", { type: "range", min: "1", max: "51", step: "2", value: now.smooth, oninput: event => { now.smooth = +event.target.value; smoothing.value = now.smooth; change(); } }), " ", smoothing),
        select("band", [["range", "smallest to largest"], ["interval", "95 % of the mean"], ["none", "none"]], "band"),
        select("group", [["arm", "arm"], ["seed", "arm and seed"], ...section.keys.map(key => [key, key.replace("choices.", "")])], "group by"),
        select("scale", [["auto", "auto"], ["linear", "linear"], ["log", "log"]], "y axis"),
        check("seeds", "seeds"), section.published.length ? check("published", "published") : null,
        node("button", { type: "button", onclick: () => { Object.assign(now, initial, { off: [...initial.off], filter: {} }); state.put(section.name, {}); box.replaceChildren(); for (const one of drawnCharts) one.destroy(); explorer(section, box); } }, "reset")),
      filters.length ? filterBox : null, legend),
    grid, caption);

  function curvesOf(metric, task) {
    const groups = new Map(), others = new Map(); // runs that enter means, and unfinished or failed ones
    section.runs.forEach((run, i) => {
      if (run.task !== task || !passes(run)) return;
      const curve = curveOf(section, index.get(metric), i, now.axis), of = run.used ? groups : others;
      if (curve) of.set(groupOf(run), [...(of.get(groupOf(run)) || []), curve]);
    });
    return [...groups].filter(([label]) => !now.off.includes(label)).map(([label, curves]) => {
      const thin = [...(curves.length > 1 ? curves.slice(0, 5) : []), ...(others.get(label) || []).slice(0, 3)];
      return { label, look: lookOf(label), front: section.front.includes(label) || groups.size === 1, seeds: thin.map(curve => [curve.x, curve.y]), ...meanOf(curves, now.band, now.smooth) };
    });
  }

  function isLog(metric, curves) {
    if (now.scale !== "auto") return now.scale === "log";
    if (!/^(kl|gradvar|ratio|epoch)\//.test(metric)) return false;
    const middles = curves.map(curve => [...curve.y].sort((a, b) => a - b)[curve.y.length >> 1]).filter(Number.isFinite);
    return middles.length > 0 && Math.min(...middles) > 0 && Math.max(...curves.flatMap(c => c.y)) > 10 * Math.min(...middles);
  }

  function drawLegend() {
    const labels = [...new Set(used.map(i => section.runs[i]).filter(passes).map(groupOf))];
    legend.replaceChildren(...labels.map(label => node("span", { class: "arm" }, node("label", {}, node("input", {
      type: "checkbox", checked: !now.off.includes(label), value: label, onchange: event => { now.off = event.target.checked ? now.off.filter(l => l !== label) : [...now.off, label]; change(); },
    }), swatch(lookOf(label)), label),
    node("button", { type: "button", class: "only", title: `show only ${label}`, "aria-label": `only ${label}`, onclick: () => {
      const rest = labels.filter(l => l !== label), alone = rest.every(l => now.off.includes(l)) && !now.off.includes(label);
      now.off = alone ? [] : rest;
      change();
    } }, "only"))), labels.length > 1 ? node("button", { type: "button", onclick: () => {
      const pair = labels.filter(l => section.front.includes(l));
      now.off = pair.length ? labels.filter(l => !pair.includes(l)) : [];
      change();
    } }, "compared pair") : "", node("button", { type: "button", onclick: () => { now.off = []; change(); } }, "all"));
    metricList.replaceChildren(node("option", { value: "" }, "add a metric …"), ...section.metrics.filter(m => !now.metrics.includes(m.name)).map(m => node("option", { value: m.name, title: m.meaning }, m.name)));
    for (const row of box.closest(".experiment")?.querySelectorAll("tr[data-label], figure[data-label]") || []) row.classList.toggle("off", now.group === "arm" && now.off.includes(row.dataset.label) && !atFirst());
  }

  function change() {
    save();
    drawLegend();
    for (const one of drawnCharts.splice(0)) one.destroy();
    const tasks = [...new Set(used.map(i => section.runs[i]).filter(passes).map(run => run.task))];
    const boxes = [];
    let n = new Set();
    home?.append(...films);
    for (const name of now.metrics) {
      const metric = section.metrics[index.get(name)];
      const measured = tasks.filter(task => section.runs.some((run, i) => run.task === task && metric.of[i]));
      for (const task of measured.length ? measured : tasks) {
        const cell = node("div", { class: "chart", id: `${section.name}:${name}:${task}` });
        const close = now.metrics.length > 1 ? node("button", { type: "button", class: "close", "aria-label": `remove ${name}`, onclick: () => { now.metrics = now.metrics.filter(m => m !== name); change(); } }, "×") : "";
        boxes.push(cell);
        lazily(cell, () => {
          const curves = curvesOf(name, task);
          curves.forEach(curve => n.add(curve.n));
          const score = /^(return)\//.test(name);
          const made = chart(cell, { title: `${NAMES[name] || name}: ${task}`, x: AXES[now.axis], y: `${name}, ${metric.unit}: ${metric.meaning}`, logY: isLog(name, curves), curves, seeds: now.seeds,
            ribbons: score && now.published ? section.published.filter(p => p.task === task && p.metric === name) : [] });
          if (made) drawnCharts.push(made);
          if (score && now.published) for (const p of section.published.filter(p => p.task === task && p.metric === name)) cell.append(node("p", { class: "axis below" }, `dotted: published, ${p.text}, ${short(p.value)}${p.sd ? ` ± ${short(p.sd)} (sd)` : ""}`));
          const clips = films.filter(film => score && film.dataset.task === task && film.parentNode === home); // beside the first return of its task
          cell.append(clips.length ? node("div", { class: "films clips", tabindex: "0", role: "group", "aria-label": `Episodes of ${task}` }, ...clips) : "", close);
          say();
        });
      }
    }
    const say = () => {
      const [few, many] = [Math.min(...n), Math.max(...n)], seeds = few === many ? `${many} seed${many > 1 ? "s" : ""}` : `${few} to ${many} seeds`;
      const band = { range: `band: smallest to largest of the seeds`, interval: "band: 95 % interval of the mean (Student; none below 3 seeds)", none: "no band" }[now.band];
      caption.textContent = `Thick: mean over ${seeds}${now.smooth > 1 ? `, running mean over ${now.smooth} points` : ""}; ${now.seeds ? "thin: single seeds, not smoothed; " : ""}${band}. In front: ${section.front.join(", ") || "none"}${atFirst() ? "; the other arms are shown by “all”" : ""}. Drag to zoom, double-click to reset; a log axis where curves differ by 10.`;
    };
    grid.replaceChildren(...boxes);
    grid.style.setProperty("--columns", Math.min(3, Math.max(1, tasks.length > 1 ? tasks.length : Math.min(2, boxes.length))));
  }
  change();
}
