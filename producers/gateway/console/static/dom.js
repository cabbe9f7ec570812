// Elements and figures. Text goes in as text nodes only: whatever a model or a person wrote is
// never read as markup.

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name === "class") node.className = value;
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

let labels = 0;

// A label above its control.
export function field(text, control, hint) {
  control.id ||= `field-${++labels}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, text), control,
    hint ? h("span", { class: "hint" }, hint) : null);
}

export function options(select, choices, chosen) {
  const wanted = chosen ?? select.value;
  select.replaceChildren(...choices.map(([value, text]) => h("option", { value }, text ?? value)));
  if (choices.some(([value]) => value === wanted)) select.value = wanted;
}

// A table whose body is drawn anew only when what it shows has changed, so that focus stays.
export function table(columns, { empty }) {
  const body = h("tbody");
  const node = h("div", { class: "scroll" },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map(([text, kind]) =>
        h("th", { scope: "col", class: kind }, text)))),
      body));
  let drawn = null;
  const cells = (row) => row.map((cell, place) =>
    h("td", { class: columns[place][1] }, cell ?? "–"));
  return {
    node,
    body,
    message(text, kind = "empty") {
      drawn = null;
      body.replaceChildren(h("tr", {}, h("td", { colspan: columns.length, class: kind }, text)));
    },
    draw(rows, signature, row) {
      const now = JSON.stringify(signature);
      if (now === drawn) return;
      if (!rows.length) this.message(empty);
      else body.replaceChildren(...rows.map((one) => row(one, cells)).flat());
      drawn = now;
    },
  };
}

export function badge(kind, text) {
  return h("span", { class: `badge ${kind}` }, text);
}

export function definitions(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null).map(([name, value]) =>
    [h("dt", {}, name), h("dd", {}, value === "" ? "–" : value)]));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  if (!digits) return whole.format(value);
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function rate(value) {
  if (value === null || value === undefined) return "–";
  return number(value, value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

export function percent(share, digits = 1) {
  return share === null || share === undefined ? "–" : `${number(100 * share, digits)} %`;
}

// Of one of the platform's services, without what all of them begin with.
export function service(name) {
  return name.replace(/^feedloom-/, "");
}

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms === 0) return "0 ms";
  if (ms < 1) return `${number(1000 * ms)} µs`;
  if (ms < 10) return `${number(ms, 1)} ms`;
  if (ms < 10_000) return `${number(ms)} ms`;
  return `${number(ms / 1000, 1)} s`;
}

export function age(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} days`;
}

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  for (const [size, unit] of [[1 << 30, "GiB"], [1 << 20, "MiB"], [1 << 10, "KiB"]]) {
    if (count >= size) return `${number(count / size, 1)} ${unit}`;
  }
  return `${count} B`;
}

export function moment(ms) {
  const at = new Date(ms);
  const two = (part) => String(part).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const today = new Date().toDateString() === at.toDateString();
  return h("time", { datetime: at.toISOString(), title: at.toISOString() },
    today ? time : `${day} ${time}`);
}

// Calls `work` now and then again `ms` after it has ended, while the panel and the page are shown.
export function poller(work, ms) {
  let timer = null, running = false, wanted = false;
  const turn = async () => {
    if (running) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
      if (wanted) timer = setTimeout(next, ms);
    }
  };
  const next = () => {
    if (!document.hidden) turn();
    else document.addEventListener("visibilitychange", () => wanted && turn(), { once: true });
  };
  return {
    start() {
      wanted = true;
      clearTimeout(timer);
      turn();
    },
    stop() {
      wanted = false;
      clearTimeout(timer);
    },
  };
}
