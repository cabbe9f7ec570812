// The newest traces, and where the time of one went.

import { Failure, get } from "./api.js";
import { badge, definitions, duration, h, moment, number, service, table } from "./dom.js";

export const traces = {
  id: "traces",
  title: "Traces",
  mount(root) {
    let found = [], opened = null;
    const note = h("p", { class: "note" });
    const filter = h("input", { type: "search", placeholder: "Name, service, request or trace id",
      "aria-label": "Filter", on: { input: () => draw() } });
    const refresh = h("button", { type: "button", on: { click: () => load() } }, "Refresh");
    const list = table(
      [["Began"], ["Trace", "line"], ["Services", "line"], ["Spans", "num"], ["Took", "num"], ["State"], ["", "fit"]],
      { empty: "No trace yet. Ask something in the playground, then refresh." });
    list.message("Loading…");
    const detail = h("div", { class: "waterfall card" },
      h("p", { class: "empty" }, "Open a trace to see where its time went."));
    root.append(
      h("div", { class: "head" }, h("h1", {}, "Traces"), note, filter, refresh),
      h("div", { class: "split even" }, list.node, detail));

    function row(one, cells) {
      return h("tr", { class: one.trace_id === opened ? "chosen" : "" }, cells([
        moment(one.start_ms), h("span", { title: one.name }, one.name),
        one.services.map(service).join(", "),
        number(one.spans), duration(one.duration_ms),
        one.failed ? badge("bad", "failed") : badge("ok", "ok"),
        h("button", { type: "button", class: "quiet", "aria-label": `Open trace ${one.trace_id}`,
          on: { click: () => open(one.trace_id) } }, "Open")]));
    }

    function draw() {
      const wanted = filter.value.trim().toLowerCase();
      const shown = found.filter((one) => [one.trace_id, one.name, one.request_id ?? "",
        ...one.services].join(" ").toLowerCase().includes(wanted));
      if (found.length && !shown.length) list.message(`Nothing matches “${filter.value}”.`);
      else list.draw(shown, [shown, opened], row);
    }

    async function open(id) {
      opened = id;
      draw();
      try {
        const { spans } = await get(`traces/${encodeURIComponent(id)}`);
        if (opened === id) detail.replaceChildren(...waterfall(id, spans));
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        detail.replaceChildren(h("p", { class: "failure" }, error.message));
      }
    }

    function waterfall(id, spans) {
      const whole = Math.max(...spans.map((one) => one.offset_ms + one.duration_ms), 1e-6);
      const facts = h("div", { class: "facts-of-span" },
        h("p", { class: "hint" }, "Open a span to see its attributes."));
      return [
        h("div", { class: "row between" }, h("code", {}, id), h("b", {}, duration(whole))),
        h("ol", { class: "spans" }, spans.map((one) => {
          const bar = h("span", { class: `bar ${one.failed ? "bad" : one.linked ? "linked" : ""}` });
          bar.style.marginLeft = `${100 * one.offset_ms / whole}%`;
          bar.style.width = `${Math.max(0.4, 100 * one.duration_ms / whole)}%`;
          const name = h("span", { class: "name" }, `${service(one.service)}: ${one.name}`);
          name.title = name.textContent;
          name.style.paddingLeft = `${Math.min(one.depth, 12) * 12}px`;
          return h("li", {}, h("button", { type: "button", class: "span", on: { click: (event) => {
            for (const other of detail.querySelectorAll(".span[aria-pressed]")) {
              other.removeAttribute("aria-pressed");
            }
            event.currentTarget.setAttribute("aria-pressed", "true");
            facts.replaceChildren(h("h3", {}, one.name), definitions([
              ["Service", one.service], ["Kind", one.kind], ["State", one.failed ? "failed" : "ok"],
              ["Began after", duration(one.offset_ms)], ["Took", duration(one.duration_ms)],
              ["Linked", one.linked ? "of another trace, which links to this one" : null],
              ...Object.entries(one.attributes).map(([key, value]) => [key, String(value)])]));
          } } }, name, h("span", { class: "track" }, bar),
          h("span", { class: "num" }, duration(one.duration_ms))));
        })),
        facts,
      ];
    }

    async function load() {
      try {
        const { directory, traces: listed } = await get("traces");
        found = listed;
        note.className = "note";
        note.textContent = directory ? `From ${directory}` : "";
        if (directory) draw();
        else {
          list.message("No spans are kept. Set FEEDLOOM_TELEMETRY__SPAN_DIRECTORY to a folder, for "
            + "the gateway and the workers, and start them again.");
        }
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        note.className = "note failure";
        note.textContent = error.message;
        if (!found.length) list.message("No traces could be read.");
      }
    }
    return {
      show: load,
      focus: () => filter.focus(),
      async receive(requestId) {
        filter.value = requestId;
        await load();
        const one = found.find((each) => each.request_id === requestId);
        if (one) open(one.trace_id);
      },
    };
  },
};
