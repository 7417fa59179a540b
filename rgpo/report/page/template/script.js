"use strict";
// Sort a table by a column: numbers by value, words alphabetically, missing values last.
for (const button of document.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[column].dataset.value, missing = text => text === "" || text === "nan";
    body.append(...[...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    }));
  });
}
// Hide or show a label in every drawing and table of its experiment.
for (const box of document.querySelectorAll(".series input")) {
  const show = () => {
    for (const part of box.closest(".experiment").querySelectorAll(".drawing [data-label], tr[data-label]"))
      if (part.dataset.label === box.value) part.classList.toggle("off", !box.checked);
  };
  box.addEventListener("change", show);
  show();
}
// Fade the right edge of a box that can be scrolled further.
for (const box of document.querySelectorAll(".scroll")) {
  const fade = () => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  box.addEventListener("scroll", fade, { passive: true });
  new ResizeObserver(fade).observe(box);
}
const press = (button, on) => button.setAttribute("aria-pressed", on);
for (const button of document.querySelectorAll("button.axis")) {
  button.addEventListener("click", () => {
    const [first, second] = button.closest("figure").querySelectorAll(".drawing"), on = second.hidden;
    [first.hidden, second.hidden] = [on, !on];
    press(button, on);
  });
}
for (const button of document.querySelectorAll("button.raw")) {
  button.addEventListener("click", () => press(button, button.closest("figure").classList.toggle("show-raw")));
}
// Filter completions by algorithm and text.
for (const browser of document.querySelectorAll(".completions")) {
  const label = browser.querySelector("select"), words = browser.querySelector("input"), count = browser.querySelector("output");
  const choose = () => {
    let shown = 0;
    for (const article of browser.querySelectorAll("article")) {
      const fits = (!label.value || article.dataset.label === label.value)
        && article.textContent.toLowerCase().includes(words.value.toLowerCase());
      article.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} shown`;
  };
  label.addEventListener("change", choose);
  words.addEventListener("input", choose);
  choose();
}
