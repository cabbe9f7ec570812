// Dead letters: what could not be processed and why; replay or drop it. What a letter holds is a
// person's text: it is fetched when somebody asks to see it, not before.

import { Failure, get, post } from "./api.js";
import { confirm, sheet, toast } from "./dialogs.js";
import { badge, bytes, definitions, h, moment, number, options, table } from "./dom.js";

const STATES = { open: "bad", replayed: "ok", dropped: "muted" };

export const letters = {
  id: "letters",
  title: "Dead letters",
  mount(root) {
    let found = null;
    const chosen = new Set();
    const note = h("p", { class: "note" });
    const topic = h("select", { "aria-label": "Topic", on: { change: () => draw() } });
    const state = h("select", { "aria-label": "State", on: { change: () => draw() } });
    options(state, [["open", "Open"], ["all", "All"]]);
    const button = (text, kind, click) =>
      h("button", { type: "button", class: kind, on: { click } }, text);
    const replay = button("Replay…", "primary", () => settle("replay"));
    const drop = button("Drop…", "danger", () => settle("drop"));
    const refresh = button("Refresh", "", () => load());
    const every = h("input", { type: "checkbox", "aria-label": "Select all shown",
      on: { change: () => {
        for (const one of rows()) {
          if (every.checked) chosen.add(one.id);
          else chosen.delete(one.id);
        }
        draw();
      } } });
    const counts = h("div", { class: "counts" });
    const list = table(
      [[every, "fit"], ["Letter"], ["State"], ["When"], ["From", "num"], ["Size", "num"], ["Error"],
        ["Message"], ["", "fit"]],
      { empty: "No open dead letter: every record could be processed." });
    list.message("Loading…");
    root.append(
      h("div", { class: "head" }, h("h1", {}, "Dead letters"), note),
      counts, h("div", { class: "row bar" }, topic, state, refresh, replay, drop), list.node);

    function rows() {
      return (found?.letters ?? []).filter((one) => (!topic.value || one.topic === topic.value)
        && (state.value === "all" || one.state === "open"));
    }

    function row(one, cells) {
      const box = h("input", { type: "checkbox", "aria-label": `Select ${one.id}`,
        checked: chosen.has(one.id), on: { change: () => {
          if (box.checked) chosen.add(one.id);
          else chosen.delete(one.id);
          enable();
        } } });
      return h("tr", {}, cells([box, h("code", {}, one.id), badge(STATES[one.state], one.state),
        moment(one.at_ms), `${one.source_partition ?? "–"}/${one.source_offset ?? "–"}`,
        bytes(one.bytes), one.error, h("span", { class: "clip", title: one.message }, one.message),
        h("button", { type: "button", class: "quiet", "aria-label": `Show ${one.id}`,
          on: { click: () => show(one.id) } }, "Show")]));
    }

    function enable() {
      const shown = new Set(rows().map((one) => one.id));
      for (const id of chosen) if (!shown.has(id)) chosen.delete(id);
      const some = chosen.size ? ` ${number(chosen.size)}…` : "…";
      replay.textContent = `Replay${some}`;
      drop.textContent = `Drop${some}`;
      replay.disabled = drop.disabled = !chosen.size;
      every.checked = shown.size > 0 && chosen.size === shown.size;
    }

    function draw() {
      enable();
      list.draw(rows(), [rows(), [...chosen]], row);
    }

    async function show(id) {
      try {
        const one = await get(`dead-letters/letter?id=${encodeURIComponent(id)}`);
        sheet(one.id,
          definitions([
            ["State", badge(STATES[one.state], one.state)],
            ["History", one.history.join("; ") || "none"],
            ["Since", moment(one.at_ms)],
            ["From", `${one.topic}, partition ${one.source_partition ?? "–"}, `
              + `offset ${one.source_offset ?? "–"}`],
            ["Replay of", one.replayed_from],
            ["Error", one.exception],
            ["Message", one.message],
            ["Key", one.key ?? "none"],
          ]),
          h("h3", {}, `Headers, ${one.headers.length}`), definitions(one.headers),
          h("h3", {}, one.value ? `Value, ${bytes(one.bytes)}, as ${one.value.form}`
            : "No value: a tombstone"),
          ...(one.value ? [h("pre", { class: "value" }, one.value.text)] : []),
          ...(one.value_cut ? [h("p", { class: "hint" },
            "The beginning only: feedloom dlq show --raw FILE writes all.")] : []));
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        toast(error.message, "bad");
      }
    }

    async function settle(what) {
      const ids = [...chosen];
      const many = ids.length === 1 ? ids[0] : `${ids.length} letters`;
      const again = (found?.letters ?? []).some((one) => chosen.has(one.id) && one.state !== "open");
      const reason = await confirm({
        title: `${what === "replay" ? "Replay" : "Drop"} ${many}?`,
        yes: what === "replay" ? "Replay" : "Drop",
        danger: what === "drop",
        what: h("p", {}, what === "replay"
          ? "They are published to their source topics again, unchanged"
            + (again ? "; some of them were settled before." : ".")
          : "They are marked as not worth replaying, and stay readable until they expire."),
      });
      if (reason === null) return;
      try {
        await post(`dead-letters/${what}`,
          { ids, reason, ...(what === "replay" && again ? { again } : {}) });
        chosen.clear();
        toast(`${many} ${what === "replay" ? "replayed" : "dropped"}`);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        toast(error.message, "bad");
      }
      await load();
    }

    async function load() {
      refresh.disabled = true;
      note.className = "note";
      note.textContent = "Reading the dead-letter topics…";
      try {
        found = await get("dead-letters");
        counts.replaceChildren(...found.topics.map((one) => h("span", {
          class: one.open ? "count bad" : "count" }, h("code", {}, one.topic),
        h("b", {}, number(one.open)), " open", one.replayed || one.dropped
          ? `, ${number(one.replayed + one.dropped)} settled` : "")));
        options(topic, [["", "Every topic"], ...found.topics.map((one) => [one.topic])]);
        note.replaceChildren("As of ", moment(Date.now()),
          found.left_out ? `; ${number(found.left_out)} older ones are not listed` : "");
        draw();
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        note.className = "note failure";
        note.textContent = `Not read: ${error.message}`;
        if (!found) list.message("The letters could not be read. Refresh tries again.");
      }
      refresh.disabled = false;
    }
    enable();
    return { show: load, focus: () => topic.focus() };
  },
};
