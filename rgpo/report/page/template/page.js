// The page's parts: experiments, computed figures, tables, completions, and renewal.
// Insert the rows of long tables, whose texts were escaped when the page was made.
for (const body of document.querySelectorAll("tbody[data-rows]")) body.innerHTML = ROWS[body.dataset.rows];
for (const home of document.querySelectorAll(".experiment[data-section]")) {
  const section = DATA.sections[home.dataset.section], box = home.querySelector(".explorer");
  if (!box || !section.runs) continue;
  lazily(box, () => explorer(section, box));
  for (const draw of [efficiency, settings]) {
    const part = node("section", { class: "extra" });
    home.insertBefore(part, home.querySelector(".completions, .all-runs, .provenance"));
    lazily(part, () => { if (!draw(section, part)) part.remove(); });
  }
}
for (const figure of document.querySelectorAll("figure.panels")) {
  const section = figure.dataset.section === "general" ? DATA.general : DATA.sections[figure.dataset.section];
  const panels = section.figures[figure.dataset.figure].panels, home = figure.querySelector(".charts"), small = panels.length > 6;
  home.classList.add("grid");
  home.style.setProperty("--columns", small ? 4 : Math.min(2, panels.length));
  const order = [...new Set(panels.flatMap(p => (p.curves || p.rows || []).map(c => c.label)))], spare = ["#0060b0", "#d5480a", "#00805d", "#a87400"], bright = ["#5aa9ff", "#ff7a3d", "#2fc797", "#e8b23a"];
  const lookOf = label => section.lines[label] || (order.length < 8 ? [spare[order.indexOf(label) % 4], bright[order.indexOf(label) % 4], order.indexOf(label) > 3 ? [6, 4] : []] : null);
  for (const panel of panels) {
    const cell = node("div", { class: "chart" });
    home.append(cell);
    lazily(cell, () => {
      if (panel.kind === "intervals") intervals(cell, { ...panel, rows: panel.rows.map(row => ({ ...row, look: section.lines[panel.looks?.[row.label] ?? row.label] || (order.length < 8 ? lookOf(row.label) : null) })) });
      else chart(cell, { ...panel, height: small ? 150 : 230, curves: panel.curves.map(curve => ({ ...curve, look: lookOf(curve.label), front: (section.front || []).includes(curve.label),
        low: curve.low && curve.low.every(v => v != null) ? curve.low : [], high: curve.high || [] })) });
    });
  }
  if (home.childElementCount && panels.some(p => p.curves)) figure.querySelector("figcaption").prepend(node("p", { class: "legend" }, ...[...new Set(panels.flatMap(p => (p.curves || []).map(c => c.label)))].map(label => node("span", { class: "arm" }, lookOf(label) ? swatch(lookOf(label)) : "", label))));
}
// Sort a table by a column: numbers by value, words alphabetically, missing values last.
for (const button of document.querySelectorAll(".sort")) {
  const head = button.closest("th");
  head.addEventListener("click", () => { // the whole cell, which a click on the button reaches, too
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent, missing = text => text === "" || text === "nan";
    body.append(...[...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    }));
  });
}
// Fade the right edge of a box that can be scrolled further.
const faded = new ResizeObserver(entries => { for (const { target } of entries) fade(target); });
const fade = box => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
for (const box of document.querySelectorAll(".scroll")) {
  box.addEventListener("scroll", () => fade(box), { passive: true });
  faded.observe(box);
}
// Browse completions by algorithm and text, a few at a time.
const PAGE = 8;
for (const browser of document.querySelectorAll(".completions")) {
  const pairs = DATA.sections[browser.dataset.section].pairs, label = browser.querySelector("select"), words = browser.querySelector("input");
  const count = browser.querySelector("output"), home = browser.querySelector(".articles"), more = browser.querySelector(".more");
  label.append(node("option", { value: "" }, "all"), ...[...new Set(pairs.map(pair => pair.label))].map(name => node("option", {}, name)));
  const texts = pairs.map(pair => [pair.prompt, ...pair.sides.map(side => side.text)].join("\n").toLowerCase());
  let most = PAGE;
  const scores = side => Object.entries(side.scores).map(([name, value]) => `${name} ${name === "KL" ? `${value.toFixed(2)} nats` : value.toFixed(3)}`);
  const side = one => node("div", { class: "side" }, node("h5", {}, one.title), node("pre", { tabindex: "0" }, one.text), node("p", { class: "scores" }, [...scores(one), `${one.tokens} tokens`].join(", ")));
  const choose = () => {
    const fit = pairs.filter((pair, i) => (!label.value || pair.label === label.value) && texts[i].includes(words.value.toLowerCase()));
    home.replaceChildren(...fit.slice(0, most).map(pair => node("article", {}, node("h4", {}, `${pair.label}, seed ${pair.seed} `, node("small", {}, `${pair.task}, prompt ${pair.id}`)),
      node("pre", { class: "prompt", tabindex: "0" }, pair.prompt), node("div", { class: "sides" }, ...pair.sides.map(side)))));
    count.textContent = `${fit.length} found`;
    more.hidden = fit.length <= most;
  };
  label.addEventListener("change", () => { most = PAGE; choose(); });
  words.addEventListener("input", () => { most = PAGE; choose(); });
  more.addEventListener("click", () => { most += 3 * PAGE; choose(); });
  lazily(browser, choose);
}
// Links to a figure of the page: #go=experiment&show=metric
const visit = () => {
  const words = new URLSearchParams(location.hash.slice(1)), home = words.get("go") && document.getElementById(words.get("go"));
  if (home) home.scrollIntoView();
};
for (const link of document.querySelectorAll('a[href^="#go="]')) {
  link.addEventListener("click", event => {
    event.preventDefault();
    const words = new URLSearchParams(link.getAttribute("href").slice(1)), home = document.getElementById(words.get("go")), box = home?.querySelector(".explorer");
    if (!box) return;
    const name = words.get("go"), section = DATA.sections[home.dataset.section];
    state.put(name, { ...(state.at(name) || {}), metrics: [words.get("show")] });
    due.delete(box);
    box.replaceChildren();
    explorer(section, box);
    home.scrollIntoView();
  });
}
visit();
// Mark the section on the screen in the contents.
const entries = new Map([...document.querySelectorAll(".contents a")].map(a => [document.getElementById(decodeURIComponent(a.hash.slice(1))), a]));
const spy = () => {
  let current = null;
  for (const [target, link] of entries) { link.removeAttribute("aria-current"); if (target && target.getBoundingClientRect().top < 140) current = link; }
  current?.setAttribute("aria-current", "true");
};
addEventListener("scroll", spy, { passive: true });
spy();
// Renewal: by events of the server that the page came from, or by time where the file is rewritten; never under a reader's hands.
let touched = 0;
for (const kind of ["pointermove", "keydown", "scroll"]) addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
const status = document.getElementById("status");
if (DATA.live) {
  const events = new EventSource(`events${location.search}`);
  const renew = () => { if (!document.hidden && Date.now() - touched > 3000) location.reload(); else setTimeout(renew, 1000); };
  events.addEventListener("report", () => { status.hidden = false; status.textContent = "New results: the page is renewed when you pause."; renew(); });
} else if (DATA.watch) {
  setInterval(() => { if (!document.hidden && Date.now() - touched > 5000) location.reload(); }, DATA.watch * 1000);
}
