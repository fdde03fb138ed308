"use strict";
// A pointer, a finger or the arrow keys read the values of a figure's lines where it stands.
for (const plot of document.querySelectorAll("[data-plots]")) {
  const panels = JSON.parse(plot.dataset.plots);
  const added = (kind) => plot.appendChild(Object.assign(document.createElement("div"), { className: "reading " + kind }));
  const rule = added("rule"), box = added("values");
  box.setAttribute("role", "status");
  let dots = [], at = null;
  const percent = (fraction) => `${100 * fraction}%`;
  const nearest = (points, x) => points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
  const format = (value) => value.toLocaleString("en", { maximumSignificantDigits: 5 });
  const hide = () => { for (const part of [rule, box, ...dots]) part.classList.remove("shown"); at = null; };

  function show(panel, x) {
    const read = panel.lines.map((line) => ({ ...line, point: nearest(line.points, x) }));
    const first = read.reduce((a, b) => (Math.abs(a.point[0] - x) <= Math.abs(b.point[0] - x) ? a : b)).point;
    at = { panel, x: first[0], i: panel.lines[0].points.indexOf(nearest(panel.lines[0].points, x)) };
    const [left, top, , bottom] = panel.box;
    Object.assign(rule.style, { left: percent(first[0]), top: percent(top), height: percent(bottom - top) });
    dots.forEach((dot) => dot.remove());
    dots = read.map((line) => {
      const dot = added("dot shown");
      Object.assign(dot.style, { left: percent(line.point[0]), top: percent(line.point[1]), background: line.colour });
      return dot;
    });
    box.replaceChildren(Object.assign(document.createElement("b"), { textContent: `${format(first[2])} ${panel.x}` }));
    for (const line of read) {
      const row = document.createElement("div"), key = document.createElement("i");
      key.style.background = line.colour;
      row.append(key, `${line.name}: ${format(line.point[3])}`);
      box.append(row);
    }
    rule.classList.add("shown");
    box.classList.add("shown");
    const right = first[0] > 0.5;  // the box keeps to the wider side
    Object.assign(box.style, { left: right ? "auto" : `calc(${percent(first[0])} + 12px)`, top: percent(Math.max(0, top)) });
    box.style.right = right ? `calc(${percent(1 - first[0])} + 12px)` : "auto";
  }

  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width, y = (event.clientY - frame.top) / frame.height;
    const inside = panels.find(({ box: [l, t, r, b] }) => l <= x && x <= r && t <= y && y <= b);
    inside ? show(inside, x) : hide();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const panel = at ? at.panel : panels[0], points = panel.lines[0].points;
    show(panel, points[at ? Math.min(points.length - 1, Math.max(0, at.i + step)) : 0][0]);
  });
}
// What is folded is printed all the same, and a link into a folded run opens it.
const folded = () => document.querySelectorAll("details:not([open])");
addEventListener("beforeprint", () => folded().forEach((d) => { d.open = d.dataset.folded = true; }));
addEventListener("afterprint", () => document.querySelectorAll("[data-folded]").forEach((d) => { d.open = false; d.removeAttribute("data-folded"); }));
const open = () => { const d = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details"); if (d) { d.open = true; d.scrollIntoView(); } };
addEventListener("hashchange", open);
open();
