// Lines over time by uPlot, in the page's colours, with one cursor over all of them.

import { h } from "./dom.js";

const HEIGHT = 132;
const SYNC = "live";

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// `lines`: of {label, colour}. `shown` formats a figure; `axis` one on the axis.
export function plot({ title, lines, shown, axis = shown, floor = 1 }) {
  const now = lines.map(() => h("b", {}, "–"));
  const keys = lines.map((line, place) => h("span", { class: `key ${line.colour}` },
    line.label ? h("span", { class: "label" }, line.label) : null, now[place]));
  const canvas = h("div", { class: "canvas" });
  const node = h("figure", { class: "card plot" },
    h("figcaption", {}, h("span", { class: "title" }, title), h("span", { class: "now" }, keys)),
    canvas);
  let chart = null, drawn = null, data = [[], ...lines.map(() => [])];

  function figures(place) {
    lines.forEach((_, line) => {
      const value = place === null ? latest(data[line + 1]) : data[line + 1][place];
      now[line].textContent = shown(value ?? null);
    });
  }

  // The step that is not over yet says little.
  function latest(values) {
    return values.at(-2) ?? values.at(-1) ?? null;
  }

  // Where traffic is sparse a step may have neither neighbour, and no line goes through it.
  function alone(self, line) {
    const values = self.data[line];
    return values.flatMap((value, place) => (value !== null && (values[place - 1] ?? null) === null
      && (values[place + 1] ?? null) === null ? [place] : []));
  }

  function make() {
    chart?.destroy();
    const [grid, text] = [colour("--line"), colour("--muted")];
    drawn = grid;
    chart = new window.uPlot({
      width: canvas.clientWidth || 300,
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 6, 0, 0],
      cursor: { sync: { key: SYNC, setSeries: false }, drag: { x: false, y: false },
        points: { size: 5 } },
      scales: { y: { range: (_, low, high) => [0, Math.max(floor, (high ?? 0) * 1.15)] } },
      axes: [
        { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 24,
          font: "11px system-ui, sans-serif", space: 70,
          values: (_, splits) => splits.map((at) => new Date(1000 * at).toTimeString().slice(0, 5)) },
        { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 56,
          font: "11px system-ui, sans-serif", space: 32,
          values: (_, splits) => splits.map((value) => axis(value)) },
      ],
      series: [{}, ...lines.map((line) => ({
        stroke: colour(`--${line.colour}`), width: 1.5, spanGaps: false,
        points: { show: true, size: 4, filter: alone },
      }))],
      hooks: { setCursor: [(self) => figures(self.cursor.idx ?? null)] },
    }, data, canvas);
  }

  const resized = new ResizeObserver(() => {
    if (chart && canvas.clientWidth) chart.setSize({ width: canvas.clientWidth, height: HEIGHT });
  });
  resized.observe(canvas);
  return {
    node,
    draw(times, ...values) {
      data = [times, ...values];
      if (chart && drawn === colour("--line")) chart.setData(data);
      else make();
      if (chart.cursor.left < 0) figures(null);
    },
  };
}
